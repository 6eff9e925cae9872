//! Assembles the one weight file that every loader accepts from the modules' shards, without holding a whole shard in
//! memory.

use crate::lora::write::piece::{Piece, ShardNames, check_shape, zeros};
use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;

use crate::container::safetensors::writer::SafetensorsWriter;
use crate::durable::atomic_file;
use crate::durable::digest::Written;
use crate::lora::config::{AdapterConfig, write_config};
use crate::lora::names::{Keys, Place};
use crate::lora::write::adapter::{Adapter, AdapterWriter, WrittenAdapter};
use crate::lora::write::expert_stacks;
use crate::lora::write::shard::Shard;
use crate::lora::{CONFIG, WEIGHTS};
use crate::quant::weight::TensorInfo;
use crate::{Error, Result};

/// The layout of PEFT, which vLLM and SGLang load too: `adapter_model.safetensors` and `adapter_config.json`.
#[derive(Clone, Copy, Debug)]
pub struct Peft;

impl AdapterWriter for Peft {
    fn files(&self) -> &'static [&'static str] {
        &[WEIGHTS, CONFIG]
    }

    fn write(&self, out: &Path, adapter: &Adapter<'_>) -> Result<WrittenAdapter> {
        let (weights, modules) = assemble(&out.join(WEIGHTS), adapter)?;
        let tree = adapter.modules;
        let named = |piece: &Piece| {
            tree.single_expert(&piece.module).unwrap_or_else(|| tree.name_in_model(&piece.module))
        };
        let targets: Vec<String> = adapter.pieces.iter().map(named).collect();
        let targets = targets.iter().map(String::as_str);
        let config = AdapterConfig {
            task_type: adapter.task_type.map(str::to_owned),
            ..AdapterConfig::for_modules(adapter.base, adapter.rank, targets, tree)
        };
        let text = write_config(&config).map_err(|e| Error::unexpected("cannot write JSON").because(e))?;
        let config = atomic_file::write(&out.join(CONFIG), |file| file.write_all(text.as_bytes()))?;
        let files = [(WEIGHTS, weights), (CONFIG, config)];
        Ok(WrittenAdapter {
            files: files.map(|(name, written)| (name.to_owned(), written.blake3)).into(),
            modules,
        })
    }
}

/// Writes `adapter_model.safetensors` of uniform rank `r` durably; factors of a lower rank are padded with zeros, of
/// those of a higher one the first directions are taken.
///
/// Returns the file's digest, and for each module the digest of its `lora_A` followed by its `lora_B`.
///
/// # Errors
/// A shard that does not match the journal, or a failing disk.
fn assemble(path: &Path, adapter: &Adapter<'_>) -> Result<(Written, BTreeMap<String, blake3::Hash>)> {
    let Adapter { rank: r, dtype, pieces, names, modules, .. } = adapter;
    let (r, dtype) = (*r, *dtype);
    let is_stacked =
        |piece: &Piece| piece.place == Place::Stacked && modules.single_expert(&piece.module).is_none();
    let keys_of = |piece: &Piece| match modules.single_expert(&piece.module) {
        Some(name) => Keys::of(&name, Place::Linear),
        None => Keys::of(&modules.key_name(&piece.module), piece.place),
    };
    // Experts of one stack share their tensors.
    let mut order: BTreeMap<String, Vec<&Piece>> = BTreeMap::new();
    for piece in *pieces {
        order.entry(keys_of(piece).a).or_default().push(piece);
    }
    let mut layout = Vec::new();
    for (name, pieces) in &mut order {
        let (first, stacked) = (pieces[0], is_stacked(pieces[0]));
        if stacked {
            *pieces = expert_stacks::stack(name, std::mem::take(pieces))?;
        }
        let ([out, inner], keys) = (first.shape, keys_of(first));
        let width = r * if stacked { pieces.len() } else { 1 };
        let stored = |name, shape: [usize; 2]| TensorInfo::new(name, dtype, shape);
        layout.extend([stored(keys.a, [width, inner]), stored(keys.b, [out, width])]);
    }
    let mut writer = SafetensorsWriter::create(path, layout)?;
    let mut digests = BTreeMap::new();
    for pieces in order.values() {
        if is_stacked(pieces[0]) {
            expert_stacks::copy(&mut writer, r, dtype, (pieces, &keys_of(pieces[0])), names, &mut digests)?;
            continue;
        }
        for piece in pieces {
            let digest = copy(&mut writer, r, dtype, (piece, &keys_of(piece)), names)?;
            digests.insert(piece.module.clone(), digest);
        }
    }
    Ok((writer.finish()?, digests))
}

fn copy(
    writer: &mut SafetensorsWriter,
    r: usize,
    dtype: Dtype,
    (piece, keys): (&Piece, &Keys),
    names: &ShardNames<'_>,
) -> Result<blake3::Hash> {
    let ([out, inner], size) = (piece.shape, dtype.bitsize() / 8);
    let mut hasher = blake3::Hasher::new();
    let mut put = |key: &str, bytes: &[u8]| {
        hasher.update(bytes);
        writer.put(key, bytes)
    };
    match &piece.shard {
        None => {
            zeros(r * inner * size, |bytes| put(&keys.a, bytes))?;
            zeros(out * r * size, |bytes| put(&keys.b, bytes))?;
        }
        Some(open) => {
            let (shard, kept) = (open()?, piece.rank.min(r));
            check_shape(&shard, names.a, &[piece.rank, inner])?;
            check_shape(&shard, names.b, &[out, piece.rank])?;
            shard.copy_first(names.a, (kept * inner * size) as u64, |bytes| put(&keys.a, bytes))?;
            zeros((r - kept) * inner * size, |bytes| put(&keys.a, bytes))?;
            resized_rows(&shard, names.b, out, piece.rank * size, r * size, |bytes| put(&keys.b, bytes))?;
        }
    }
    Ok(hasher.finalize())
}

/// Writes rows of `from` bytes, each padded with zeros, or cut, to `to` bytes.
fn resized_rows(
    shard: &Shard,
    name: &str,
    rows: usize,
    from: usize,
    to: usize,
    mut put: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    const PIECE: usize = 1 << 20;
    let step = (PIECE / to.max(from).max(1)).clamp(1, rows.max(1));
    let (mut packed, mut resized, kept) = (vec![0; step * from], vec![0; step * to], from.min(to));
    for start in (0..rows).step_by(step) {
        let count = step.min(rows - start);
        if from > 0 {
            shard.read(name, (start * from) as u64, &mut packed[..count * from])?;
            let rows = packed[..count * from].chunks_exact(from);
            for (resized, packed) in resized.chunks_exact_mut(to).zip(rows) {
                resized[..kept].copy_from_slice(&packed[..kept]);
            }
        }
        put(&resized[..count * to])?;
    }
    Ok(())
}

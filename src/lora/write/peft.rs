//! Assembles the one weight file that every loader accepts from the modules' shards, without holding a whole shard in
//! memory.

use crate::lora::write::piece::{Piece, ShardNames, check_shape, zeros};
use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;

use crate::Result;
use crate::container::safetensors::writer::SafetensorsWriter;
use crate::durable::digest::Written;
use crate::lora::names::{Keys, Place};
use crate::lora::write::expert_stacks;
use crate::lora::write::shard::Shard;
use crate::quant::weight::TensorInfo;

/// Writes `adapter_model.safetensors` of uniform rank `r` durably; factors of a lower rank are padded with zeros.
/// Returns the file's digest, and for each module the digest of its `lora_A` followed by its `lora_B`.
///
/// # Errors
/// A shard that does not match the journal, or a failing disk.
pub fn assemble(
    path: &Path,
    r: usize,
    dtype: Dtype,
    pieces: &[Piece],
    names: &ShardNames<'_>,
) -> Result<(Written, BTreeMap<String, blake3::Hash>)> {
    // Experts of one stack share their tensors.
    let mut order: BTreeMap<String, Vec<&Piece>> = BTreeMap::new();
    for piece in pieces {
        order.entry(Keys::of(&piece.module, piece.place).a).or_default().push(piece);
    }
    let mut layout = Vec::new();
    for (name, pieces) in &mut order {
        let (first, stacked) = (pieces[0], pieces[0].place == Place::Stacked);
        if stacked {
            *pieces = expert_stacks::stack(name, std::mem::take(pieces))?;
        }
        let ([out, inner], keys) = (first.shape, Keys::of(&first.module, first.place));
        let width = r * if stacked { pieces.len() } else { 1 };
        let stored = |name, shape| TensorInfo { name, dtype, shape };
        layout.extend([stored(keys.a, vec![width, inner]), stored(keys.b, vec![out, width])]);
    }
    let mut writer = SafetensorsWriter::create(path, layout)?;
    let mut digests = BTreeMap::new();
    for pieces in order.values() {
        if pieces[0].place == Place::Stacked {
            expert_stacks::copy(&mut writer, r, dtype, pieces, names, &mut digests)?;
            continue;
        }
        for piece in pieces {
            let digest = copy(&mut writer, r, dtype, piece, names)?;
            digests.insert(piece.module.clone(), digest);
        }
    }
    Ok((writer.finish()?, digests))
}

fn copy(
    writer: &mut SafetensorsWriter,
    r: usize,
    dtype: Dtype,
    piece: &Piece,
    names: &ShardNames<'_>,
) -> Result<blake3::Hash> {
    let ([out, inner], size) = (piece.shape, dtype.bitsize() / 8);
    let keys = Keys::of(&piece.module, piece.place);
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
            let shard = open()?;
            check_shape(&shard, names.a, &[piece.rank, inner])?;
            check_shape(&shard, names.b, &[out, piece.rank])?;
            shard.copy(names.a, |bytes| put(&keys.a, bytes))?;
            zeros((r - piece.rank) * inner * size, |bytes| put(&keys.a, bytes))?;
            if piece.rank == r {
                shard.copy(names.b, |bytes| put(&keys.b, bytes))?;
            } else {
                padded_rows(&shard, names.b, out, piece.rank * size, r * size, |bytes| put(&keys.b, bytes))?;
            }
        }
    }
    Ok(hasher.finalize())
}

/// Writes rows of `from` bytes, each padded with zeros to `to` bytes.
fn padded_rows(
    shard: &Shard,
    name: &str,
    rows: usize,
    from: usize,
    to: usize,
    mut put: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    const PIECE: usize = 1 << 20;
    let step = (PIECE / to.max(1)).clamp(1, rows.max(1));
    let (mut packed, mut padded) = (vec![0; step * from], vec![0; step * to]);
    for start in (0..rows).step_by(step) {
        let count = step.min(rows - start);
        if from > 0 {
            shard.read(name, (start * from) as u64, &mut packed[..count * from])?;
            for (padded, packed) in padded.chunks_exact_mut(to).zip(packed[..count * from].chunks_exact(from))
            {
                padded[..from].copy_from_slice(packed);
            }
        }
        put(&padded[..count * to])?;
    }
    Ok(())
}

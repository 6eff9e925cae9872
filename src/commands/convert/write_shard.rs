//! Computes the pieces of a file on several threads and writes them in order on one.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use safetensors::Dtype;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::module::{Module, PackedRows};
use crate::commands::convert::sharding::{Content, OutTensor, Shard, ShardPiece, height, pieces};
use crate::container::safetensors::writer::SafetensorsWriter;
use crate::durable::digest::Written;
use crate::lora::read::PeftAdapter;
use crate::pipeline::ordered_panels;
use crate::quant::encode::fp8::{FP8_BLOCK, encode_block_fp8};
use crate::quant::number::rounding;
use crate::quant::number::rounding::to_bytes;
use crate::run::progress::Progress;
use crate::storage::Window;
use crate::{Error, Result};

/// Values decoded at a time, so that they are rounded while they are in the cache.
const CHUNK: usize = 1 << 16;

/// Pieces that the operating system is asked to prefetch.
const AHEAD: usize = 12;

/// Pieces that are announced to the link to a server, which fetches those that there is memory for.
const FETCHED_AHEAD: usize = 96;

/// What is added to the weights of a module after dequantizing them.
pub(crate) trait Change: Sync {
    /// Whether anything is added to `module`.
    fn concerns(&self, module: &str) -> bool;

    /// Adds to `rows` of `module`, in f32. The result still has to be rounded, once, to `dtype`.
    fn add(&self, module: &str, rows: Range<usize>, dtype: Dtype, values: &mut [f32]) -> Result<()>;
}

/// Adds nothing.
pub(crate) struct Unchanged;

impl Change for Unchanged {
    fn concerns(&self, _: &str) -> bool {
        false
    }

    fn add(&self, _: &str, _: Range<usize>, _: Dtype, _: &mut [f32]) -> Result<()> {
        Ok(())
    }
}

/// Produces the bytes of weight files.
pub(crate) struct Producer<'a> {
    pub base: &'a Checkpoint,
    pub adapter: Option<&'a PeftAdapter>,
    pub change: &'a dyn Change,
    pub threads: usize,
    idle: Mutex<Vec<Buffer>>,
    /// The most recently used of the modules that are mapped whole.
    kept: Mutex<VecDeque<(String, Arc<PackedRows>)>>,
}

/// The memory for one piece. Buffers are reused: fresh pages would have to be zeroed for each piece.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    scales: Vec<f32>,
    values: Vec<f32>,
    non_finite: u64,
}

/// A piece that is ready to be written.
enum Made {
    Mapped(Window),
    Computed(Buffer),
    /// Scales, which the writer has already collected.
    Scales,
}

/// A finished file, and the number of values in it that are not finite, by module.
pub(crate) struct WrittenShard {
    pub written: Written,
    pub non_finite: BTreeMap<String, u64>,
}

impl<'a> Producer<'a> {
    pub fn new(
        base: &'a Checkpoint,
        adapter: Option<&'a PeftAdapter>,
        change: &'a dyn Change,
        threads: usize,
    ) -> Producer<'a> {
        let (idle, kept) = (Mutex::default(), Mutex::default());
        Producer { base, adapter, change, threads, idle, kept }
    }

    /// Writes one file, durably.
    ///
    /// # Errors
    /// Errors of reading, decoding or writing. No file of that name is left behind.
    pub fn write(&self, path: &Path, shard: &Shard, progress: &dyn Progress) -> Result<WrittenShard> {
        let tensors = shard.tensors.iter().map(|tensor| tensor.stored.clone()).collect();
        let mut writer = SafetensorsWriter::in_order(path, tensors)?;
        let planned: Vec<(&OutTensor, ShardPiece)> = shard
            .tensors
            .iter()
            .flat_map(|tensor| pieces(tensor, tensor.module()).into_iter().map(move |piece| (tensor, piece)))
            .collect();
        let ahead = if self.base.is_remote() { FETCHED_AHEAD } else { AHEAD };
        planned.iter().take(ahead).for_each(|(tensor, piece)| self.prefetch(tensor, piece));
        let mut scales: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
        let mut non_finite: BTreeMap<String, u64> = BTreeMap::new();
        let make = |index: usize| {
            if let Some((tensor, piece)) = planned.get(index + ahead) {
                self.prefetch(tensor, piece);
            }
            self.make(planned[index].0, &planned[index].1)
        };
        ordered_panels::in_order(planned.len(), self.threads, make, |index, made| {
            let tensor = planned[index].0;
            let name = &tensor.stored.name;
            match made {
                Made::Mapped(window) => {
                    writer.put(name, &window)?;
                    progress.written(window.len() as u64);
                }
                Made::Computed(mut buffer) => {
                    writer.put(name, &buffer.bytes)?;
                    progress.written(buffer.bytes.len() as u64);
                    if let Content::Codes(of) = &tensor.content {
                        scales.entry(&of.name).or_default().append(&mut buffer.scales);
                    }
                    if buffer.non_finite > 0 {
                        *non_finite.entry(name.trim_end_matches(".weight").to_owned()).or_default() +=
                            buffer.non_finite;
                    }
                    self.give_back(buffer);
                }
                Made::Scales => {
                    let Content::Scales(of) = &tensor.content else { return Ok(()) };
                    let mine = scales.remove(&*of.name).unwrap_or_default();
                    let bytes: Vec<u8> = mine.iter().flat_map(|scale| scale.to_le_bytes()).collect();
                    writer.put(name, &bytes)?;
                    progress.written(bytes.len() as u64);
                }
            }
            Ok(())
        })?;
        Ok(WrittenShard { written: writer.finish()?, non_finite })
    }

    fn prefetch(&self, tensor: &OutTensor, piece: &ShardPiece) {
        match (piece, &tensor.content, tensor.module()) {
            (ShardPiece::Bytes(range), Content::Base(from), _) => self.base.prefetch(from, range.clone()),
            // A module that is mapped whole is read when it is mapped.
            (ShardPiece::Rows(rows), _, Some(module)) if !module.is_whole() => {
                module.prefetch(self.base, rows.clone());
            }
            _ => {}
        }
    }

    fn make(&self, tensor: &OutTensor, piece: &ShardPiece) -> Result<Made> {
        match (piece, &tensor.content, self.adapter) {
            (ShardPiece::Bytes(range), Content::Base(from), _) => {
                Ok(Made::Mapped(self.base.read(from, range.clone())?))
            }
            (ShardPiece::Bytes(range), Content::Adapter(from), Some(adapter)) => {
                Ok(Made::Mapped(adapter.window(from, range.clone())?))
            }
            (ShardPiece::Scales, ..) => Ok(Made::Scales),
            (ShardPiece::Rows(rows), content, _) => {
                let missing = || Error::unexpected("the module is gone").tensor(&tensor.stored.name);
                let module = tensor.module().ok_or_else(missing)?;
                let mut buffer =
                    self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
                let name = match content {
                    // Of a head that is the embedding, the head.
                    Content::Weight(of) | Content::Codes(of) => &of.name,
                    _ => module.name(),
                };
                let encoded = matches!(content, Content::Codes(_));
                self.compute(
                    module,
                    name,
                    rows.clone(),
                    (!encoded).then_some(tensor.stored.dtype),
                    &mut buffer,
                )?;
                Ok(Made::Computed(buffer))
            }
            _ => Err(Error::unexpected("the source of this tensor is unknown").tensor(&tensor.stored.name)),
        }
    }

    fn give_back(&self, buffer: Buffer) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }

    /// Computes rows of a weight, rounded to `dtype` or, without one, encoded.
    fn compute(
        &self,
        module: &Module,
        name: &str,
        rows: Range<usize>,
        dtype: Option<Dtype>,
        buffer: &mut Buffer,
    ) -> Result<()> {
        let columns = module.shape()[1];
        let located = |e: Error| e.tensor(name).path(self.base.path(module.tensors()[0].file));
        let (whole, changed) = (module.is_whole(), self.change.concerns(name));
        let packed = if whole { self.kept(module)? } else { Arc::new(module.read(self.base, rows.clone())?) };
        let step = step(module, rows.clone(), changed || dtype.is_none());
        let Buffer { bytes, scales, values, non_finite } = buffer;
        let size = dtype.map_or(1, |dtype| dtype.bitsize() / 8);
        bytes.resize(rows.len() * columns * size, 0);
        *non_finite = 0;
        for start in rows.clone().step_by(step.max(1)) {
            let part = start..(start + step).min(rows.end);
            values.resize(part.len() * columns, 0.0);
            packed.decode_some(part.clone(), values).map_err(located)?;
            if changed {
                self.change.add(name, part.clone(), dtype.unwrap_or(Dtype::F32), values)?;
            }
            *non_finite += rounding::non_finite(values);
            let out = &mut bytes
                [(part.start - rows.start) * columns * size..(part.end - rows.start) * columns * size];
            match dtype {
                Some(dtype) => round(dtype, values, out).map_err(located)?,
                None => {
                    let bands = part.len().div_ceil(FP8_BLOCK[0]);
                    scales.resize(bands * columns.div_ceil(FP8_BLOCK[1]), 0.0);
                    encode_block_fp8(values, columns, FP8_BLOCK, out, scales);
                }
            }
        }
        if *non_finite > 0 && (dtype.is_none() || changed) {
            let what = format!(
                "{non_finite} of its values are NaN or infinite, in rows {} to {}",
                rows.start, rows.end
            );
            let hint = "run `trephine autopsy` to find out what is wrong with base and adapter";
            return Err(located(Error::input(what).hint(hint)));
        }
        Ok(())
    }

    /// Maps a module whole, once for all pieces that need it.
    fn kept(&self, module: &Module) -> Result<Arc<PackedRows>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, packed)) = kept.iter().find(|(name, _)| name == module.name()) {
            return Ok(Arc::clone(packed));
        }
        let packed = Arc::new(module.read(self.base, 0..module.shape()[0])?);
        kept.push_back((module.name().to_owned(), Arc::clone(&packed)));
        // The previous module may still be in use.
        if kept.len() > 2 {
            kept.pop_front();
        }
        Ok(packed)
    }
}

/// Rows that are decoded at a time: all of `rows` if one row costs as much as all of them, for example in a transposed
/// stack, or if there is more to do than rounding.
fn step(module: &Module, rows: Range<usize>, at_once: bool) -> usize {
    let first = rows.start..rows.end.min(rows.start + 1);
    let costly = module.is_whole() || 2 * module.packed_size(first) >= module.packed_size(rows.clone());
    if costly || at_once { rows.len() } else { (CHUNK / module.shape()[1].max(1)).max(1) }
}

/// Bytes that the buffer of one piece of a tensor takes: the values that are decoded at a time, and the encoded piece.
pub(crate) fn result_bytes(tensor: &OutTensor, change: &dyn Change) -> u64 {
    let Some(module) = tensor.module() else { return 0 };
    let (name, encoded) = match &tensor.content {
        Content::Scales(_) => return 0,
        Content::Codes(of) => (&*of.name, true),
        Content::Weight(of) => (&*of.name, false),
        _ => (module.name(), false),
    };
    let [rows, columns] = module.shape();
    let piece = 0..height(columns).min(rows);
    let step = step(module, piece.clone(), encoded || change.concerns(name)).min(piece.len());
    (4 * step * columns + piece.len() * columns * tensor.stored.dtype.bitsize() / 8) as u64
}

/// Rounds to nearest even.
///
/// # Errors
/// A number that is too large for `dtype`.
fn round(dtype: Dtype, values: &[f32], out: &mut [u8]) -> Result<()> {
    /// From this magnitude on, f16 rounds to infinity.
    const F16: f32 = 65520.0;
    if dtype == Dtype::F16
        && let Some(value) = values.iter().find(|v| v.is_finite() && v.abs() >= F16)
    {
        let what = format!("a weight is {value}, which is out of range for f16");
        return Err(Error::input(what).hint("--dtype bf16 has a wider range"));
    }
    to_bytes(dtype, values, out);
    Ok(())
}

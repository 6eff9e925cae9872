//! The factors of a stack of experts in PEFT's layout: one `lora_A` `[E·r, in]` and one `lora_B` `[out, r·E]` for all
//! `E` experts.
//!
//! Row `e·r + k` of `lora_A` and column `k·E + e` of `lora_B` are direction `k` of expert `e` (PEFT's `ParamWrapper`).
//! The modules are still single experts: each has a shard, a rank and a digest of its own, and is put in its place
//! here.

use std::collections::BTreeMap;
use std::ops::Range;

use safetensors::Dtype;

use crate::container::safetensors::writer::SafetensorsWriter;
use crate::lora::names::{Keys, Place, expert_of_stack};
use crate::lora::tree::BaseModules;
use crate::lora::write::piece::{Piece, ShardNames, check_shape, zeros};
use crate::lora::write::shard::Shard;
use crate::{Error, Result};

/// Bytes of `lora_B` that are assembled at a time.
const BLOCK: usize = 8 << 20;

/// The most shards that are held open: a process may open only a few hundred files.
const OPEN: usize = 128;

/// The pieces of one stack, in the order of its experts.
///
/// # Errors
/// An expert that is missing or present twice: a stack's factors have one place for each expert.
pub(crate) fn stack<'a>(name: &str, mut pieces: Vec<&'a Piece>) -> Result<Vec<&'a Piece>> {
    let index = |piece: &&Piece| expert_of_stack(&piece.module).map(|(_, index)| index);
    pieces.sort_by_key(index);
    let whole = pieces.iter().enumerate().all(|(at, piece)| index(piece) == Some(at));
    let alike = pieces.iter().all(|piece| piece.shape == pieces[0].shape);
    if whole && alike {
        return Ok(pieces);
    }
    Err(Error::unexpected("the experts of a stack are incomplete or differ in shape").tensor(name))
}

/// Writes both factors of a stack, with rank `r` for every expert, and adds each expert's digest to `digests`.
pub(crate) fn copy(
    writer: &mut SafetensorsWriter,
    r: usize,
    dtype: Dtype,
    (pieces, keys): (&[&Piece], &Keys),
    names: &ShardNames<'_>,
    digests: &mut BTreeMap<String, blake3::Hash>,
) -> Result<()> {
    let ([out, inner], size) = (pieces[0].shape, dtype.bitsize() / 8);
    let mut hashers = vec![blake3::Hasher::new(); pieces.len()];
    let mut shards: Vec<Option<Shard>> = Vec::new();
    for (piece, hasher) in pieces.iter().zip(&mut hashers) {
        let mut put = |bytes: &[u8]| {
            hasher.update(bytes);
            writer.put(&keys.a, bytes)
        };
        let shard = piece.shard.as_ref().map(|open| open()).transpose()?;
        let kept = if shard.is_some() { piece.rank.min(r) } else { 0 };
        if let Some(shard) = &shard {
            check_shape(shard, names.a, &[piece.rank, inner])?;
            check_shape(shard, names.b, &[out, piece.rank])?;
            shard.copy_first(names.a, (kept * inner * size) as u64, &mut put)?;
        }
        zeros((r - kept) * inner * size, put)?;
        shards.push(shard.filter(|_| shards.len() < OPEN));
    }
    let row = r * pieces.len() * size;
    let step = (BLOCK / row.max(1)).clamp(1, out.max(1));
    let (mut block, mut own) = (Vec::new(), Vec::new());
    for start in (0..out).step_by(step) {
        let rows = start..(start + step).min(out);
        block.clear();
        block.resize(rows.len() * row, 0);
        for (index, piece) in pieces.iter().enumerate() {
            read_rows(piece, shards[index].as_ref(), names.b, rows.clone(), r * size, size, &mut own)?;
            hashers[index].update(&own);
            scatter(&own, &mut block, index, pieces.len(), size);
        }
        writer.put(&keys.b, &block)?;
    }
    let digested =
        pieces.iter().zip(&hashers).map(|(piece, hasher)| (piece.module.clone(), hasher.finalize()));
    digests.extend(digested);
    Ok(())
}

/// Reads rows of an expert's `lora_B` into `own`, each padded with zeros, or cut, to `to` bytes.
fn read_rows(
    piece: &Piece,
    kept: Option<&Shard>,
    name: &str,
    rows: Range<usize>,
    to: usize,
    size: usize,
    own: &mut Vec<u8>,
) -> Result<()> {
    own.clear();
    own.resize(rows.len() * to, 0);
    let (from, kept_bytes) = (piece.rank * size, to.min(piece.rank * size));
    let (Some(open), true) = (&piece.shard, from > 0) else { return Ok(()) };
    let opened = if kept.is_none() { Some(open()?) } else { None };
    let Some(shard) = kept.or(opened.as_ref()) else { return Ok(()) };
    let mut packed = vec![0; rows.len() * from];
    shard.read(name, (rows.start * from) as u64, &mut packed)?;
    for (own, packed) in own.chunks_exact_mut(to).zip(packed.chunks_exact(from)) {
        own[..kept_bytes].copy_from_slice(&packed[..kept_bytes]);
    }
    Ok(())
}

/// Copies the elements of one of `count` experts to their columns: element `i` of `own` to element `i·count + index` of
/// `block`.
fn scatter(own: &[u8], block: &mut [u8], index: usize, count: usize, size: usize) {
    let places = block.chunks_exact_mut(size).skip(index).step_by(count);
    places.zip(own.chunks_exact(size)).for_each(|(place, element)| place.copy_from_slice(element));
}

/// The factors of one module, from an adapter's weight file.
#[derive(Clone, Debug)]
pub struct ModuleFactors {
    /// How the numbers are stored.
    pub dtype: Dtype,
    /// `lora_A` `[r, in]`, and its bytes.
    pub a: ([usize; 2], Vec<u8>),
    /// `lora_B` `[out, r]`, and its bytes.
    pub b: ([usize; 2], Vec<u8>),
}

/// Reads the factors of the module that the base's files call `stored` from an adapter of uniform rank `r`; those of an
/// expert of a stack are picked from the stack's, where the adapter does not have them singly.
///
/// # Errors
/// Factors that are missing, are not matrices, or do not have rank `r`.
pub fn read_factors(
    adapter: &Shard,
    base: &BaseModules,
    stored: &str,
    place: Place,
    r: usize,
) -> Result<ModuleFactors> {
    match base.single_expert(stored) {
        Some(name) => read_named(adapter, &name, Place::Linear, r),
        None => read_named(adapter, &base.key_name(stored), place, r),
    }
}

fn read_named(adapter: &Shard, module: &str, place: Place, r: usize) -> Result<ModuleFactors> {
    let keys = Keys::of(module, place);
    let matrix = |key: &str| {
        let stored = &adapter.tensor(key)?.stored;
        let shape: Option<[usize; 2]> = stored.shape.as_slice().try_into().ok();
        let bad =
            || Error::input(format!("a factor is {}, which is not a matrix", stored.describe())).tensor(key);
        Ok::<_, Error>((shape.ok_or_else(bad)?, stored.dtype))
    };
    let (([a_rows, inner], dtype), ([out, b_columns], _)) = (matrix(&keys.a)?, matrix(&keys.b)?);
    let size = dtype.bitsize() / 8;
    let expert = expert_of_stack(module).filter(|_| place == Place::Stacked).map(|(_, index)| index);
    let count = if expert.is_some() { a_rows / r.max(1) } else { 1 };
    let index = expert.unwrap_or(0);
    let rank = a_rows / count.max(1);
    if a_rows != b_columns || rank * count != a_rows || index >= count {
        let what = format!("the factors are {:?} and {:?}", [a_rows, inner], [out, b_columns]);
        return Err(Error::input(format!("{what}, but rank {r} is expected")).tensor(module));
    }
    let mut a = vec![0; rank * inner * size];
    adapter.read(&keys.a, (index * rank * inner * size) as u64, &mut a)?;
    let row = b_columns * size;
    let step = (BLOCK / row.max(1)).clamp(1, out.max(1));
    let (mut b, mut block) = (Vec::with_capacity(out * rank * size), Vec::new());
    for start in (0..out).step_by(step) {
        block.resize((out - start).min(step) * row, 0);
        adapter.read(&keys.b, (start * row) as u64, &mut block)?;
        block
            .chunks_exact(size.max(1))
            .skip(index)
            .step_by(count.max(1))
            .for_each(|e| b.extend_from_slice(e));
    }
    Ok(ModuleFactors { dtype, a: ([rank, inner], a), b: ([out, rank], b) })
}

#[cfg(test)]
mod tests {
    use super::scatter;

    #[test]
    fn column_k_e_plus_e_is_direction_k_of_expert_e() {
        // Two rows, two directions, three experts; elements of two bytes.
        let mut block = vec![0u8; 2 * 2 * 3 * 2];
        for expert in 0..3u8 {
            let own: Vec<u8> = (0..4u8).flat_map(|i| [10 * expert + i, 99]).collect();
            scatter(&own, &mut block, usize::from(expert), 3, 2);
        }
        let firsts: Vec<u8> = block.iter().copied().step_by(2).collect();
        assert_eq!(firsts, [0, 10, 20, 1, 11, 21, 2, 12, 22, 3, 13, 23]);
    }
}

//! Digests of tensors, or of the parts of them that belong to a module. Hashing advances together with the decoding, so
//! each page is read from disk once; what comes from a server is hashed as it arrives, so each byte is fetched once.

use std::ops::Range;

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::catalogue::Tensor;
use crate::delta::operand::Operand;
use crate::delta::record::{Side, TensorRecord};

/// Bytes of a tensor that are mapped for hashing at a time.
const HASH_WINDOW: u64 = 2 << 20;

/// The running digests of all tensors of some modules.
pub struct Hashers<'a>(Vec<Hasher<'a>>);

struct Hasher<'a> {
    half: (Side, &'a Checkpoint),
    tensor: &'a Tensor,
    /// `None` where the source hashes what it fetches.
    state: Option<blake3::Hasher>,
    range: Range<u64>,
    at: u64,
}

impl<'a> Hashers<'a> {
    /// One hasher for every tensor of these modules, over which a pass begins.
    pub fn new(halves: &[Operand<'a>]) -> Hashers<'a> {
        let hashers = |half: &Operand<'a>| {
            let (side, checkpoint) = (half.side, half.checkpoint);
            let hasher = move |(tensor, range): (&'a Tensor, Range<u64>)| {
                checkpoint.begin_pass(tensor, range.clone());
                let state = (!checkpoint.is_remote()).then(blake3::Hasher::new);
                Hasher { half: (side, checkpoint), tensor, state, at: range.start, range }
            };
            half.module.extents().map(hasher)
        };
        Hashers(halves.iter().flat_map(hashers).collect())
    }

    /// Hashes every tensor up to the end of part `step` of `steps` equal parts.
    pub fn advance(&mut self, step: usize, steps: usize, read: &(dyn Fn(u64) + Sync)) -> Result<()> {
        for hasher in &mut self.0 {
            let size = hasher.range.end - hasher.range.start;
            let to = hasher.range.start + (u128::from(size) * step as u128 / steps as u128) as u64;
            while hasher.at < to {
                let end = (hasher.at + HASH_WINDOW).min(to);
                if let Some(state) = &mut hasher.state {
                    state.update(&hasher.half.1.read(hasher.tensor, hasher.at..end)?);
                }
                read(end - hasher.at);
                hasher.at = end;
            }
        }
        Ok(())
    }

    /// The records of all tensors at the end of the pass.
    ///
    /// # Errors
    /// A tensor whose rest, which nobody has decoded, cannot be fetched.
    pub fn finish(self) -> Result<Vec<TensorRecord>> {
        let record = |hasher: Hasher<'_>| {
            let (side, checkpoint) = hasher.half;
            let digest = match hasher.state {
                Some(state) => state.finalize(),
                None => checkpoint.hash_range(hasher.tensor, hasher.range.clone())?,
            };
            Ok(tensor_record(side, checkpoint, hasher.tensor, hasher.range, digest))
        };
        let mut records: Vec<TensorRecord> = self.0.into_iter().map(record).collect::<Result<_>>()?;
        // Collected in place: the allocation is that of the hashers, of 2 KiB each.
        records.shrink_to_fit();
        Ok(records)
    }
}

/// The manifest's entry for a tensor: the bytes in `range` have the digest `digest`.
pub fn tensor_record(
    side: Side,
    checkpoint: &Checkpoint,
    tensor: &Tensor,
    range: Range<u64>,
    digest: blake3::Hash,
) -> TensorRecord {
    TensorRecord {
        checkpoint: side,
        name: tensor.stored.name.clone(),
        file: checkpoint.shared_file_name(tensor.file),
        dtype: tensor.stored.dtype,
        shape: tensor.stored.shape.clone(),
        part: (range != (0..tensor.size())).then_some([range.start, range.end]),
        blake3: digest.into(),
    }
}

/// Hashes a module's tensors without decoding them.
///
/// # Errors
/// A tensor that cannot be read.
pub fn digests(half: Operand<'_>, read: &(dyn Fn(u64) + Sync)) -> Result<Vec<TensorRecord>> {
    let mut hashers = Hashers::new(&[half]);
    hashers.advance(1, 1, read)?;
    hashers.finish()
}

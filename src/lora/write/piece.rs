//! One module of an adapter that is being written, and the names of its factors in a shard.

use crate::lora::names::Place;
use crate::lora::write::shard::Shard;
use crate::{Error, Result};

/// One module of an adapter that is being assembled.
pub struct Piece {
    /// Its name in the base.
    pub module: String,
    /// Determines the names and the orientation of its factors.
    pub place: Place,
    /// `[out, in]` of the adapter's product: for an embedding `[dim, vocab]`.
    pub shape: [usize; 2],
    /// Its own rank, at most the adapter's.
    pub rank: usize,
    /// How to open its shard; `None` for factors of zeros.
    pub shard: Option<Opener>,
}

/// The names of `lora_A` and `lora_B` inside a shard.
pub struct ShardNames<'a> {
    /// `lora_A` `[rank, in]`.
    pub a: &'a str,
    /// `lora_B` `[out, rank]`.
    pub b: &'a str,
}

pub(crate) fn check_shape(shard: &Shard, name: &str, shape: &[usize]) -> Result<()> {
    let found = &shard.tensor(name)?.stored.shape;
    if *found == *shape {
        return Ok(());
    }
    let what = format!("a factor in a shard has shape {found:?} instead of {shape:?}");
    Err(Error::input(what).tensor(name).path(shard.path()).hint("--overwrite starts again"))
}

pub(crate) fn zeros(bytes: usize, mut put: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    const PIECE: usize = 1 << 16;
    let zeros = [0; PIECE];
    for start in (0..bytes).step_by(PIECE) {
        put(&zeros[..PIECE.min(bytes - start)])?;
    }
    Ok(())
}

/// Opens a shard and checks its digest.
pub type Opener = Box<dyn Fn() -> Result<Shard>>;

//! How many bytes of a module cross the link.

use crate::checkpoint::Checkpoint;
use crate::checkpoint::module::Module;
use crate::commands::extract::inputs::Inputs;
use crate::delta::pair::Pair;

/// Stored bytes of a module that come from a server, by side.
#[derive(Clone, Copy)]
pub(crate) struct Fetched {
    pub(crate) base: u64,
    pub(crate) tuned: u64,
    pub(crate) served: u64,
    pub(crate) dense: u64,
}

impl Fetched {
    /// Those of a pair.
    pub(crate) fn of(pair: &Pair, inputs: &Inputs) -> Fetched {
        let bytes = |checkpoint: &Checkpoint, name: &str| {
            checkpoint.module(name).filter(|_| checkpoint.is_remote()).map_or(0, Module::size)
        };
        let other =
            |checkpoint: &Option<Checkpoint>| checkpoint.as_ref().map_or(0, |open| bytes(open, &pair.name));
        Fetched {
            base: bytes(&inputs.base, &pair.name),
            tuned: bytes(&inputs.tuned, &pair.tuned),
            served: other(&inputs.served),
            dense: other(&inputs.dense),
        }
    }

    /// Of all sides.
    pub(crate) fn all(self) -> u64 {
        self.base + self.tuned + self.served + self.dense
    }
}

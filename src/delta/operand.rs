//! One side of a difference: a module of one checkpoint.

use crate::checkpoint::Checkpoint;
use crate::checkpoint::module::Module;
use crate::delta::record::Side;

/// One side of a difference.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// Which side it is.
    pub side: Side,
    /// The checkpoint that holds it.
    pub checkpoint: &'a Checkpoint,
    /// The weight.
    pub module: &'a Module,
}

impl<'a> Operand<'a> {
    /// The file of the weight itself.
    pub(crate) fn path(&self) -> &'a std::path::Path {
        self.checkpoint.path(self.module.tensors()[0].file)
    }
}

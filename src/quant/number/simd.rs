//! Loops that the compiler turns into the widest vectors of the machine at hand, found out at run time.

use pulp::{Arch, Simd, WithSimd};

/// A loop that the compiler vectorizes by itself, with what it works on.
pub(crate) trait Loop {
    type Output;

    /// Does it. It must be inlined always: as a function of its own it would be compiled for the lowest level of vectors alone.
    fn run(self) -> Self::Output;
}

/// Does a loop that was compiled once for each level of vectors that a processor may have. No result depends on the level: nothing is
/// fused and no sum is reordered.
#[inline(always)]
pub(crate) fn widest<L: Loop>(work: L) -> L::Output {
    Arch::new().dispatch(Work(work))
}

struct Work<L>(L);

impl<L: Loop> WithSimd for Work<L> {
    type Output = L::Output;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> L::Output {
        self.0.run()
    }
}

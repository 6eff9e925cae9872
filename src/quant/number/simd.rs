//! Loops that the compiler turns into the machine's widest vectors, detected at run time.

use pulp::{Arch, Simd, WithSimd};

/// A loop that the compiler vectorizes by itself, with its data.
pub(crate) trait Loop {
    type Output;

    /// Runs it. Must be inlined always: as a separate function it would be compiled for the lowest vector level only.
    fn run(self) -> Self::Output;
}

/// Runs a loop that was compiled once for each vector level that a processor may have. No result depends on the level:
/// nothing is fused and no sum is reordered.
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

//! The machine's vector instructions, and a way to do without the widest of them.

use std::sync::atomic::{AtomicU8, Ordering};

use pulp::{Arch, Simd, WithSimd};

/// Vector instructions, from none to the widest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum SimdLevel {
    /// What every processor of the architecture has.
    Portable,
    /// x86-64: 256-bit vectors, AVX2 and FMA.
    Avx2,
    /// Whatever this processor has.
    Widest,
}

impl SimdLevel {
    /// The level of this name, as in the environment variable `TREPHINE_SIMD`.
    pub fn named(name: &str) -> Option<SimdLevel> {
        match name {
            "portable" => Some(SimdLevel::Portable),
            "avx2" => Some(SimdLevel::Avx2),
            "widest" => Some(SimdLevel::Widest),
            _ => None,
        }
    }
}

static LIMIT: AtomicU8 = AtomicU8::new(SimdLevel::Widest as u8);

/// Uses nothing above `level` from now on, in the products of this crate. Those of faer, in which the f32 backends
/// orthonormalize and solve, keep to what the processor has.
pub fn limit_simd(level: SimdLevel) {
    LIMIT.store(level as u8, Ordering::Relaxed);
}

/// The widest level that may be used.
pub fn simd_limit() -> SimdLevel {
    #[cfg(test)]
    if let Some(level) = testing::level() {
        return level;
    }
    match LIMIT.load(Ordering::Relaxed) {
        0 => SimdLevel::Portable,
        1 => SimdLevel::Avx2,
        _ => SimdLevel::Widest,
    }
}

/// Whether a fused multiplication and addition is an instruction: elsewhere it is a slow function, and the two are
/// rounded one by one, which gives other bits. Nearly every processor since 2013 has it.
#[cfg(target_arch = "x86_64")]
pub fn fuses() -> bool {
    std::arch::is_x86_feature_detected!("fma")
}

/// Whether a fused multiplication and addition is an instruction.
#[cfg(not(target_arch = "x86_64"))]
pub fn fuses() -> bool {
    true
}

/// Runs `work` with the widest vectors within the limit.
#[inline(always)]
pub(crate) fn dispatch<W: WithSimd>(work: W) -> W::Output {
    match simd_limit() {
        SimdLevel::Portable => Arch::Scalar.dispatch(work),
        SimdLevel::Avx2 => dispatch_narrow(work),
        SimdLevel::Widest => Arch::new().dispatch(work),
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn dispatch_narrow<W: WithSimd>(work: W) -> W::Output {
    match pulp::x86::V3::try_new() {
        Some(narrow) => Arch::V3(narrow).dispatch(work),
        None => Arch::Scalar.dispatch(work),
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn dispatch_narrow<W: WithSimd>(work: W) -> W::Output {
    Arch::new().dispatch(work)
}

/// A loop that the compiler vectorizes by itself, with its data. No result may depend on the level: additions keep
/// their order, and what is fused says so.
pub(crate) trait Loop {
    type Output;

    /// Runs it. Must be inlined always: as a separate function it would be compiled for the lowest level only.
    fn run(self) -> Self::Output;
}

/// Runs a loop that was compiled once for each level.
#[inline(always)]
pub(crate) fn widest<L: Loop>(work: L) -> L::Output {
    dispatch(Work(work))
}

struct Work<L>(L);

impl<L: Loop> WithSimd for Work<L> {
    type Output = L::Output;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> L::Output {
        self.0.run()
    }
}

/// Levels for one test at a time: the limit is the whole process's, and tests run at once.
#[cfg(test)]
pub(crate) mod testing {
    use std::cell::Cell;

    use super::SimdLevel;

    thread_local! { static LEVEL: Cell<Option<SimdLevel>> = const { Cell::new(None) }; }

    pub(super) fn level() -> Option<SimdLevel> {
        LEVEL.get()
    }

    /// Runs `work` at `level`, on two threads.
    pub(crate) fn at_level<T: Send>(level: SimdLevel, work: impl FnOnce() -> T + Send) -> T {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2);
        pool.start_handler(move |_| LEVEL.set(Some(level))).build().unwrap().install(work)
    }
}

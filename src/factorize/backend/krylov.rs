//! Randomized block Krylov with full reorthogonalization.
//!
//! The basis is that of `delta^T·delta`, started from a Gaussian block (Musco and Musco, *Randomized block Krylov
//! methods for stronger and faster approximate singular value decomposition*, 2015; Tropp and Webber, *Randomized
//! algorithms for low-rank matrix approximation: design, analysis, and applications*, 2023). Each step visits the delta
//! once and adds a block.

use faer::Accum;
use faer::prelude::*;

use crate::Result;
use crate::factorize::backend::operator::{Norm, Operator, Plain};
use crate::factorize::kernel::block_ops::{
    append, cross_gram, eigen_bytes, eigen_flops, eigenvalues, eigenvalues_bytes, multiply, narrow,
};
use crate::factorize::kernel::convergence::{Estimate, History};
use crate::factorize::kernel::orthonormalize::{orthogonal_bytes, orthonormalize};
use crate::factorize::kernel::passes::Scratch;
use crate::factorize::kernel::ritz;
use crate::factorize::kernel::ritz::{Coefficients, Left, flat_enough};
use crate::factorize::kernel::rng::Stream;
use crate::factorize::kernel::skinny_gemm::packed_bytes;
use crate::factorize::kernel::tiling::{groups, panel_rows};
use crate::factorize::types::{
    Backend, BasisPlan, Cost, Factors, Method, Panels, Request, kept_rank, unit_scale,
};

/// Share of the energy that f32 arithmetic cannot tell from zero.
const ROUNDING: f64 = 1e-6;

/// Share of the tolerance that the estimate may use up: it is usually too high, but not always.
const MARGIN: f64 = 0.9;

/// The growing basis and what is known of the delta on it, all in units of `1 / scale`.
struct Basis {
    /// `V` `[n, d + next]`: orthonormal; the last block has not been multiplied yet.
    v: Mat<f32>,
    /// `W = delta·V` `[m, d]`.
    w: Mat<f32>,
    /// `W^T·W` `[d, d]`.
    gram: Mat<f64>,
    /// `S = N^T·delta^T·W` of the last block of `W`, `[next, last]`, with `N` the last block of `V`.
    link: Mat<f64>,
    /// Whether the last step found nothing new: the basis holds an invariant subspace.
    closed: bool,
    flops: u64,
    passes: usize,
    scratch: Scratch,
}

/// The state in which the iteration ended.
struct End {
    rank: usize,
    estimate: Estimate,
    left: Option<Left>,
    /// The matrix's squared norm, as far as it is known.
    total: f64,
}

/// Randomized block Krylov on the delta itself.
pub(crate) struct Krylov;

impl Backend for Krylov {
    fn method(&self) -> Method {
        Method::Krylov
    }

    fn cost(&self, [m, n]: [usize; 2], request: &Request) -> Cost {
        let plan = BasisPlan::of(m, n, request);
        Cost { flops: flops(m, n, plan), workspace: bytes(m, n, plan), thread: 0 }
    }

    fn factorize(&self, delta: &dyn Panels, norm2: f64, module: &str, request: &Request) -> Result<Factors> {
        factorize(delta, norm2, module, request, BasisPlan::of(delta.rows(), delta.cols(), request))
    }
}

/// Factorizes `delta` `[m, n]` with squared norm `norm2`, which must be neither zero nor infinite.
pub(crate) fn factorize(
    delta: &dyn Panels,
    norm2: f64,
    module: &str,
    request: &Request,
    plan: BasisPlan,
) -> Result<Factors> {
    Ok(iterate(&Plain(delta), &Norm::Known(norm2), module, request, plan)?.0)
}

/// Factors of the matrix `operator`, in the basis that `plan` allows, and its squared norm, estimated where it was
/// only probed.
pub(crate) fn iterate(
    operator: &dyn Operator,
    norm: &Norm,
    module: &str,
    request: &Request,
    plan: BasisPlan,
) -> Result<(Factors, f64)> {
    let (m, n) = (operator.rows(), operator.cols());
    let scale = match norm {
        Norm::Known(norm2) => unit_scale(*norm2),
        Norm::Probed(probe) => unit_scale(probe.norm2()),
    };
    let mut fresh = Stream::new(request.seed, module);
    let mut basis = Basis::start(m, n, &plan, &mut fresh)?;
    let mut history = History::default();
    let end = loop {
        let was_closed = basis.closed;
        basis.step(operator, scale as f32, &plan, &mut fresh)?;
        // A restart from random directions begins a new history, unless the random block itself is invariant: then the
        // matrix is a multiple of an isometry as far as can be seen.
        if basis.closed && !was_closed {
            history.clear();
        }
        if let Some(end) = basis.judge((norm, scale), &mut history, &plan, request)? {
            break end;
        }
    };
    let norm2 = end.total / (scale * scale);
    Ok((basis.finish(end, scale)?, norm2))
}

impl Basis {
    fn start(m: usize, n: usize, plan: &BasisPlan, fresh: &mut Stream) -> Result<Basis> {
        let mut v = Mat::with_capacity(n, (plan.most + plan.block).min(n));
        let mut first = fresh.gaussian(n, plan.block);
        orthonormalize(v.as_ref(), 0, &mut first, fresh)?;
        append(&mut v, first.as_ref());
        Ok(Basis {
            v,
            w: Mat::with_capacity(m, plan.most),
            gram: Mat::new(),
            link: Mat::new(),
            closed: false,
            flops: 0,
            passes: 0,
            scratch: Scratch::default(),
        })
    }

    /// Columns that have been multiplied.
    fn size(&self) -> usize {
        self.w.ncols()
    }

    /// Multiplies the newest block and adds the next one.
    fn step(
        &mut self,
        operator: &dyn Operator,
        scale: f32,
        plan: &BasisPlan,
        fresh: &mut Stream,
    ) -> Result<()> {
        let (m, n, old) = (operator.rows(), operator.cols(), self.size());
        let b = self.v.ncols() - old;
        self.w.resize_with(m, old + b, |_, _| 0.0);
        let newest = self.v.as_ref().subcols(old, b);
        let z = operator.step(newest, self.w.as_mut().subcols_mut(old, b), scale, &mut self.scratch)?;
        self.passes += 1;
        self.extend_gram(old, b);
        let d = old + b;
        self.flops += 2 * ((2 * operator.multiplications() * b) + (m * d * b) + 4 * n * d * b) as u64;
        let next = plan.block.min(n - d);
        if next == 0 {
            self.link = Mat::zeros(0, b);
            return Ok(());
        }
        // If fewer directions are left than a block has, any basis of them works.
        let mut block = if next < b { fresh.gaussian(n, next) } else { z.clone() };
        // The product is mostly along the last two blocks.
        let near = b + self.link.ncols();
        let spent = orthonormalize(self.v.as_ref(), near, &mut block, fresh)?;
        self.link = cross_gram(block.as_ref(), z.as_ref());
        append(&mut self.v, block.as_ref());
        self.closed = spent == next && next == b;
        Ok(())
    }

    /// `W^T·W` is block tridiagonal: `delta^T·W` of a block is in the span of the basis up to the block after it, to
    /// which all later ones are orthogonal. So the newest block couples only with itself and the one before.
    fn extend_gram(&mut self, old: usize, b: usize) {
        let from = old.saturating_sub(self.link.ncols());
        let newest =
            cross_gram(self.w.as_ref().subcols(from, old + b - from), self.w.as_ref().subcols(old, b));
        let gram = &self.gram;
        let entry = |i: usize, j: usize| if i < from { 0.0 } else { newest[(i - from, j - old)] };
        self.gram = Mat::from_fn(old + b, old + b, |i, j| match (i < old, j < old) {
            (true, true) => gram[(i, j)],
            (false, true) => entry(j, i),
            (_, false) => entry(i, j),
        });
    }

    /// Decides whether the basis is good enough.
    fn judge(
        &self,
        (norm, scale): (&Norm, f64),
        history: &mut History,
        plan: &BasisPlan,
        request: &Request,
    ) -> Result<Option<End>> {
        let d = self.size();
        let full = self.v.nrows() == d;
        if d < plan.rank && !full && !self.closed {
            return Ok(None);
        }
        // Two squares, one thread each; the left one may turn out to be useless.
        let (values, further) = rayon::join(|| eigenvalues(self.gram.as_ref()), || self.left(plan.rank));
        let (values, further) = (values?, further?);
        let inside = values.iter().sum::<f64>();
        let (outside, total) = match norm {
            Norm::Known(norm2) => (norm2 * scale * scale - inside, norm2 * scale * scale),
            Norm::Probed(probe) => {
                let outside = probe.outside(self.v.as_ref().subcols(0, d), self.w.as_ref(), scale as f32);
                (outside, inside + outside)
            }
        };
        if full || (self.closed && outside <= ROUNDING * total) {
            let rank = kept_rank(&values, plan.rank, request.energy, total);
            let captured = values[..rank].iter().sum();
            return Ok(Some(End { rank, estimate: Estimate::of(0.0, captured, total), left: None, total }));
        }
        if d < plan.rank {
            return Ok(None);
        }
        let further = further.filter(|_| flat_enough(&values));
        let (left, further) = further.unzip();
        history.push(&values, further.as_deref());
        let best = further.unwrap_or(values);
        let rank = kept_rank(&best, plan.rank, request.energy, total);
        let estimate = history.estimate(rank, total, outside);
        let tolerance = MARGIN * request.tolerance;
        let enough = |e: &Estimate| e.excess <= tolerance && e.share <= 10.0 * tolerance;
        // A basis that may grow to all columns ends there, whatever is left of its last block.
        let out_of_room = d + plan.block > plan.most && plan.most < self.v.nrows();
        if !out_of_room && !estimate.as_ref().is_some_and(enough) {
            return Ok(None);
        }
        // Without an estimate, everything outside the basis may be missing.
        let captured = best[..rank].iter().sum();
        let estimate = estimate.unwrap_or_else(|| Estimate::of(outside.max(0.0), captured, total));
        Ok(Some(End { rank, estimate, left, total }))
    }

    /// The left projection and its eigenvalues, if the basis has room for `rank` and the Gram matrix allows it.
    fn left(&self, rank: usize) -> Result<Option<(Left, Vec<f64>)>> {
        if self.size() < rank || self.size() == self.v.nrows() {
            return Ok(None);
        }
        let Some(left) = Left::of(self.gram.as_ref(), self.link.as_ref()) else { return Ok(None) };
        let values = eigenvalues(left.square.as_ref())?;
        Ok(Some((left, values)))
    }

    /// The factors, in the delta's own units.
    fn finish(self, end: End, scale: f64) -> Result<Factors> {
        let (m, n, d, k) = (self.w.nrows(), self.v.nrows(), self.size(), end.rank);
        drop(self.scratch);
        let Coefficients { squares, on_w, on_v, on_next } = match &end.left {
            Some(left) => left.coefficients(k)?,
            None => ritz::right(self.gram.as_ref(), k)?,
        };
        let unit = scale.sqrt().recip() as f32;
        let mut left = vec![0.0; m * k];
        let out = MatMut::from_row_major_slice_mut(&mut left, m, k);
        multiply(out, Accum::Replace, self.w.as_ref(), narrow(on_w.as_ref()).as_ref(), unit);
        drop(self.w);
        // Column-major [n, k] is row-major [k, n].
        let mut right = vec![0.0; k * n];
        let mut out = MatMut::from_column_major_slice_mut(&mut right, n, k);
        let (known, next) = (self.v.as_ref().subcols(0, d), self.v.as_ref().subcols(d, self.v.ncols() - d));
        multiply(out.rb_mut(), Accum::Replace, known, narrow(on_v.as_ref()).as_ref(), unit);
        if let Some(c) = on_next {
            multiply(out, Accum::Add, next, narrow(c.as_ref()).as_ref(), unit);
        }
        let singular_values: Vec<f64> = squares.iter().map(|s| s.max(0.0).sqrt() / scale).collect();
        Ok(Factors {
            left,
            right,
            rank: k,
            method: Method::Krylov,
            converged: k,
            captured: singular_values[..k].iter().map(|s| s * s).sum(),
            singular_values,
            estimated_excess: end.estimate.excess,
            basis: d,
            passes: self.passes,
            flops: self.flops + 2 * ((m + n) * d * k) as u64,
        })
    }
}

fn flops(m: usize, n: usize, plan: BasisPlan) -> f64 {
    let (m, n, d) = (m as f64, n as f64, plan.expected() as f64);
    let passes = 4.0 * m * n * d * narrowness(plan.block);
    // Projections of 4 n d b each, summed over the blocks, and W^T W in f64.
    let orthogonal = (8.0 * n + 4.0 * m) * d * d;
    // One with vectors, and their values alone at every step.
    passes + orthogonal + 4.0 * eigen_flops(d)
}

/// How much slower a product with few columns is than a square one.
fn narrowness(block: usize) -> f64 {
    1.0 + 25.0 / block as f64
}

/// An upper bound on the bytes of a run of these sizes, beyond the delta and the buffers its panels are decoded into.
pub(crate) fn bytes(m: usize, n: usize, BasisPlan { rank, block, most }: BasisPlan) -> usize {
    let basis = 4 * (n * (most + block) + m * most) + 8 * most * most;
    // The groups' sums, the packed block and the result, the first two in whole strips; what groups pack of their
    // panels.
    let (strips, height) = (4 * block.next_multiple_of(32), panel_rows(m, n).1);
    let sweep =
        (groups(n) + 1) * n * strips + 4 * n * block + groups(n) * (height * strips + packed_bytes(height));
    let orthogonal = orthogonal_bytes(n, most, block);
    // R, M and two eigensolvers.
    let judge = 3 * 8 * most * most + 2 * eigenvalues_bytes(most);
    let factors = (4 * (m + n) * rank).max(eigen_bytes(most)) + (8 + 4) * 3 * most * rank;
    // Where the allocator keeps some of the sums it was given back, they count beside what follows.
    basis + sweep + orthogonal.max(judge).max(factors) + (8 << 20)
}

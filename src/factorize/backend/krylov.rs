//! Randomized block Krylov with full reorthogonalization.
//!
//! The basis is that of `delta^T·delta`, started from a Gaussian block (Musco and Musco, *Randomized block Krylov
//! methods for stronger and faster approximate singular value decomposition*, 2015; Tropp and Webber, *Randomized
//! algorithms for low-rank matrix approximation: design, analysis, and applications*, 2023). Each step visits the delta
//! once and adds a block.

use faer::Accum;
use faer::prelude::*;

use crate::factorize::backend::krylov_cost::{bytes, flops};
use crate::factorize::backend::operator::{Norm, Operator, Plain, Quantized};
use crate::factorize::kernel::arithmetic::Arithmetic;
use crate::factorize::kernel::block_ops::{append, narrow};
use crate::factorize::kernel::bytes::passes::Codes;
use crate::factorize::kernel::convergence::{Estimate, History};
use crate::factorize::kernel::orthonormalize::orthonormalize_by;
use crate::factorize::kernel::passes::Scratch;
use crate::factorize::kernel::ritz;
use crate::factorize::kernel::ritz::{Coefficients, Left, Unrounding, flat_enough};
use crate::factorize::kernel::rng::Stream;
use crate::factorize::precision::Precision;
use crate::factorize::types::{
    Backend, BasisPlan, Cost, Factors, Method, Panels, Request, kept_rank, unit_scale,
};
use crate::{Error, Result};

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
    by: Arithmetic,
}

/// How a look at the basis ended.
enum Judged {
    /// The basis has to grow.
    Grow,
    /// It is good enough, or as good as it gets.
    Enough(Box<End>),
    /// The operator's products are too coarse for what is left.
    Coarse,
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
        Cost { flops: flops(m, n, plan, 1.0), workspace: bytes(m, n, plan), thread: 0 }
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
    let found = attempt(operator, norm, module, request, plan)?;
    found.ok_or_else(|| Error::unexpected("products too coarse for a basis").tensor(module))
}

/// Factors of the matrix of `codes`, whose squared norm, neither zero nor infinite, is `norm2`. `None` where bytes are
/// too coarse for the request, unless they `must` do.
pub(crate) fn factorize_codes(
    codes: &dyn Codes,
    norm2: f64,
    module: &str,
    request: &Request,
    must: bool,
) -> Result<Option<Factors>> {
    let plan = BasisPlan::of(codes.rows(), codes.cols(), request);
    let operator = Quantized::new(codes, norm2, request, must);
    let found = attempt(&operator, &Norm::Known(norm2), module, request, plan)?;
    Ok(found.map(|(factors, _)| Factors { precision: Precision::Int8, ..factors }))
}

/// [`iterate`], or `None` where the operator's products are too coarse.
fn attempt(
    operator: &dyn Operator,
    norm: &Norm,
    module: &str,
    request: &Request,
    plan: BasisPlan,
) -> Result<Option<(Factors, f64)>> {
    let (m, n) = (operator.rows(), operator.cols());
    let scale = match norm {
        Norm::Known(norm2) => unit_scale(*norm2),
        Norm::Probed(probe) => unit_scale(probe.norm2()),
    };
    let mut fresh = Stream::new(request.seed, module);
    let mut basis = Basis::start(operator.arithmetic(), (m, n), &plan, &mut fresh)?;
    let mut history = History::default();
    let end = loop {
        let was_closed = basis.closed;
        basis.step(operator, scale as f32, &plan, &mut fresh)?;
        // A restart from random directions begins a new history, unless the random block itself is invariant: then the
        // matrix is a multiple of an isometry as far as can be seen.
        if basis.closed && !was_closed {
            history.clear();
        }
        match basis.judge(operator, (norm, scale), &mut history, &plan, request)? {
            Judged::Grow => {}
            Judged::Enough(end) => break *end,
            Judged::Coarse => return Ok(None),
        }
    };
    let norm2 = end.total / (scale * scale);
    Ok(Some((basis.finish(operator, end, scale)?, norm2)))
}

impl Basis {
    fn start(by: Arithmetic, (m, n): (usize, usize), plan: &BasisPlan, fresh: &mut Stream) -> Result<Basis> {
        let mut v = Mat::with_capacity(n, (plan.most + plan.block).min(n));
        let mut first = fresh.gaussian(n, plan.block);
        orthonormalize_by(by, v.as_ref(), 0, &mut first, fresh)?;
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
            by,
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
        let spent = orthonormalize_by(self.by, self.v.as_ref(), near, &mut block, fresh)?;
        self.link = self.by.cross_gram(block.as_ref(), z.as_ref());
        append(&mut self.v, block.as_ref());
        self.closed = spent == next && next == b;
        Ok(())
    }

    /// `W^T·W` is block tridiagonal: `delta^T·W` of a block is in the span of the basis up to the block after it, to
    /// which all later ones are orthogonal. So the newest block couples only with itself and the one before.
    fn extend_gram(&mut self, old: usize, b: usize) {
        // In bytes the basis leaks a little of the leading directions into all later blocks: what couples them counts.
        let near = if self.by == Arithmetic::Fixed { old } else { self.link.ncols() };
        let from = old.saturating_sub(near);
        let (near, newest) = (self.w.as_ref().subcols(from, old + b - from), self.w.as_ref().subcols(old, b));
        let newest = self.by.cross_gram(near, newest);
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
        operator: &dyn Operator,
        (norm, scale): (&Norm, f64),
        history: &mut History,
        plan: &BasisPlan,
        request: &Request,
    ) -> Result<Judged> {
        let d = self.size();
        let full = self.v.nrows() == d;
        if d < plan.rank && !full && !self.closed {
            return Ok(Judged::Grow);
        }
        // Two squares, one thread each; the left one may turn out to be useless.
        let (values, further) =
            rayon::join(|| self.by.eigenvalues(self.gram.as_ref()), || self.left(plan.rank));
        let (values, further) = (values?, further?);
        let inside = values.iter().sum::<f64>();
        let (outside, total) = match norm {
            Norm::Known(norm2) => (norm2 * scale * scale - inside, norm2 * scale * scale),
            Norm::Probed(probe) => {
                let outside = probe.outside(self.v.as_ref().subcols(0, d), self.w.as_ref(), scale as f32);
                (outside, inside + outside)
            }
        };
        let enough = |captured: f64| operator.is_enough((total - captured).max(0.0) / (scale * scale));
        if full || (self.closed && outside <= ROUNDING * total) {
            let rank = kept_rank(&values, plan.rank, request.energy, total);
            let captured = values[..rank].iter().sum();
            if !enough(captured) {
                return Ok(Judged::Coarse);
            }
            let estimate = Estimate::of(0.0, captured, total);
            return Ok(Judged::Enough(Box::new(End { rank, estimate, left: None, total })));
        }
        if d < plan.rank {
            return Ok(Judged::Grow);
        }
        let further = further.filter(|_| flat_enough(&values));
        let (left, further) = further.unzip();
        history.push(&values, further.as_deref());
        let best = further.unwrap_or(values);
        let rank = kept_rank(&best, plan.rank, request.energy, total);
        let captured = best[..rank].iter().sum();
        if !enough(captured) {
            return Ok(Judged::Coarse);
        }
        let estimate = history.estimate(rank, total, outside);
        let tolerance = MARGIN * request.tolerance;
        let near = |e: &Estimate| e.excess <= tolerance && e.share <= 10.0 * tolerance;
        // A basis that may grow to all columns ends there, whatever is left of its last block.
        let out_of_room = d + plan.block > plan.most && plan.most < self.v.nrows();
        if !out_of_room && !estimate.as_ref().is_some_and(near) {
            return Ok(Judged::Grow);
        }
        // Without an estimate, everything outside the basis may be missing.
        let estimate = estimate.unwrap_or_else(|| Estimate::of(outside.max(0.0), captured, total));
        Ok(Judged::Enough(Box::new(End { rank, estimate, left, total })))
    }

    /// The left projection and its eigenvalues, if the basis has room for `rank` and the Gram matrix allows it.
    fn left(&self, rank: usize) -> Result<Option<(Left, Vec<f64>)>> {
        if self.size() < rank || self.size() == self.v.nrows() {
            return Ok(None);
        }
        let Some(left) = Left::of(self.by, self.gram.as_ref(), self.link.as_ref()) else { return Ok(None) };
        let values = self.by.eigenvalues(left.square.as_ref())?;
        Ok(Some((left, values)))
    }

    /// The factors, in the delta's own units.
    fn finish(self, operator: &dyn Operator, end: End, scale: f64) -> Result<Factors> {
        let (m, n, d, k) = (self.w.nrows(), self.v.nrows(), self.size(), end.rank);
        drop(self.scratch);
        let known = self.v.as_ref().subcols(0, d);
        let unrounding = Unrounding::of(self.by, known, |v| operator.rounding_error(v));
        let (gram, left) = match &unrounding {
            Some(unrounding) => {
                let gram = unrounding.gram(self.by, self.gram.as_ref());
                let again = end.left.and_then(|_| Left::of(self.by, gram.as_ref(), self.link.as_ref()));
                (gram, again)
            }
            None => (self.gram, end.left),
        };
        let coefficients = match &left {
            Some(left) => left.coefficients(self.by, k)?,
            None => ritz::right(self.by, gram.as_ref(), k)?,
        };
        let Coefficients { squares, on_w, on_v, on_next } = match &unrounding {
            Some(unrounding) => unrounding.apply(self.by, coefficients),
            None => coefficients,
        };
        let unit = scale.sqrt().recip() as f32;
        let mut left = vec![0.0; m * k];
        let out = MatMut::from_row_major_slice_mut(&mut left, m, k);
        self.by.multiply(out, Accum::Replace, self.w.as_ref(), narrow(on_w.as_ref()).as_ref(), unit);
        drop(self.w);
        // Column-major [n, k] is row-major [k, n].
        let mut right = vec![0.0; k * n];
        let mut out = MatMut::from_column_major_slice_mut(&mut right, n, k);
        let next = self.v.as_ref().subcols(d, self.v.ncols() - d);
        self.by.multiply(out.rb_mut(), Accum::Replace, known, narrow(on_v.as_ref()).as_ref(), unit);
        if let Some(c) = on_next {
            self.by.multiply(out, Accum::Add, next, narrow(c.as_ref()).as_ref(), unit);
        }
        let singular_values: Vec<f64> = squares.iter().map(|s| s.max(0.0).sqrt() / scale).collect();
        Ok(Factors {
            left,
            right,
            rank: k,
            method: Method::Krylov,
            precision: Precision::F32,
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

//! The leading left singular vectors of `D·R^T`.

use faer::linalg::matmul::matmul;
use faer::prelude::*;
use faer::{Accum, Par};
use rayon::prelude::*;

use crate::factorize::backend::krylov::iterate;
use crate::factorize::backend::operator::{Norm, Operator, Probe};
use crate::factorize::in_memory::Held;
use crate::factorize::kernel::block_ops::square_sum;
use crate::factorize::kernel::passes::times;
use crate::factorize::kernel::rng::Stream;
use crate::factorize::kernel::tiling::{panel_rows, pieces, split_rows};
use crate::factorize::types::{Factors, Method, Panels, Request};
use crate::factorize::weighted::cost::{PROBES, basis_plan, forms_product};
use crate::factorize::weighted::operator::{ScaledColumns, Weighted};
use crate::factorize::weighted::root::Root;
use crate::{Error, Result, factorize};

/// Scaled left singular vectors of `D·R^T`: the factor `B`, before it is rounded.
#[derive(Clone, Debug)]
pub struct Directions {
    /// `B`, `[m, rank]` row-major: orthogonal columns, of lengths that balance both factors.
    pub left: Vec<f32>,
    /// Its rank: below the request's where less captures the energy asked for, or where the outputs change in fewer
    /// directions.
    pub rank: usize,
    /// How it was found.
    pub method: Method,
    /// Singular values of `D·R^T`, descending; the root mean squares of what the outputs change by in these directions.
    pub singular_values: Vec<f64>,
    /// How many of them have converged.
    pub converged: usize,
    /// `||D·R^T||^2`. An estimate where the product was never formed: see [`directions`].
    pub norm2: f64,
    /// What the directions capture of it.
    pub captured: f64,
    /// Error over optimal error of this rank, minus 1, in the norm of the outputs: an estimate that leans upward.
    pub estimated_excess: f64,
    /// Columns of the Krylov basis, or the side of a Gram matrix.
    pub basis: usize,
    /// How often `D` was visited.
    pub passes: usize,
    /// Floating point operations in products, counted.
    pub flops: u64,
}

/// The directions of the outputs in which `delta` `[m, n]` changes them most, over inputs of which `root` `[c, n]` is
/// a root of the second moments. The bits are the same whatever the threads.
///
/// Where `delta·root^T` is not formed, what of its norm lies outside the Krylov basis is estimated from products with
/// random columns: without bias, and to some 2 % of that rest.
///
/// # Errors
/// As [`factorize`](crate::factorize::factorize()); [`Kind::Unexpected`](crate::Kind::Unexpected) for a root of
/// another width.
pub fn directions(delta: &dyn Panels, root: &Root, module: &str, request: &Request) -> Result<Directions> {
    if root.cols() != delta.cols() {
        let what = format!("second moments of {} inputs for a weight with {}", root.cols(), delta.cols());
        return Err(Error::unexpected(what).tensor(module));
    }
    let (m, n, c) = (delta.rows(), delta.cols(), root.rows());
    let (factors, norm2) = if let Some(factors) = root.diagonal() {
        let scaled = ScaledColumns { delta, factors };
        let norm2 = norm2(&scaled)?;
        (factorize::factorize(&scaled, norm2, module, request)?, norm2)
    } else if forms_product(m, n, c, request) {
        let product = product(delta, root)?;
        let norm2 = square_sum(product.values());
        (factorize::factorize(&product, norm2, module, request)?, norm2)
    } else {
        factorize::check(0.0, module, request)?;
        by_products(&Weighted { delta, root }, module, request).map_err(|e| e.tensor(module))?
    };
    Ok(scaled(factors, norm2, root.rms()))
}

/// `||delta||^2`, in one pass.
fn norm2(delta: &dyn Panels) -> Result<f64> {
    let (m, n) = (delta.rows(), delta.cols());
    let parts: Vec<_> = pieces(0..m, panel_rows(m, n).1).collect();
    let sum = |rows: std::ops::Range<usize>| -> Result<f64> {
        let mut sum = 0.0;
        delta.visit(rows, &mut |panel| {
            let rows = panel.row_iter().filter_map(|row| row.try_as_row_major());
            sum += rows.map(|row| square_sum(row.as_slice())).sum::<f64>();
            Ok(())
        })?;
        Ok(sum)
    };
    let sums = parts.into_par_iter().with_max_len(1).map(sum).collect::<Result<Vec<_>>>()?;
    Ok(sums.into_iter().sum())
}

/// `delta·root^T`, held.
fn product(delta: &dyn Panels, root: &Root) -> Result<Held> {
    let (m, n, c) = (delta.rows(), delta.cols(), root.rows());
    let right = root.transposed();
    let mut values = vec![0f32; m * c];
    let parts: Vec<_> = pieces(0..m, panel_rows(m, n).1).collect();
    let out = MatMut::from_row_major_slice_mut(&mut values, m, c);
    let tasks: Vec<_> = parts.iter().cloned().zip(split_rows(out, &parts)).collect();
    tasks.into_par_iter().with_max_len(1).try_for_each(|(rows, mut out)| {
        delta.visit(rows, &mut |panel| {
            matmul(out.rb_mut(), Accum::Replace, panel, right.as_ref(), 1.0, Par::Seq);
            Ok(())
        })
    })?;
    Held::new(m, c, values)
}

fn by_products(operator: &Weighted<'_>, module: &str, request: &Request) -> Result<(Factors, f64)> {
    let (m, n, c) = (operator.rows(), operator.delta.cols(), operator.cols());
    let probe = probe(operator.delta, operator.root, &format!("{module} norm"), request.seed)?;
    let first = probe.norm2();
    if !first.is_finite() {
        return Err(Error::input("the difference or the calibration holds infinities or NaN"));
    }
    if first == 0.0 {
        return Ok((Factors::zero(Method::Krylov), 0.0));
    }
    let norm = Norm::Probed(probe);
    let (mut factors, norm2) = iterate(operator, &norm, module, request, basis_plan(m, n, c, request))?;
    factors.passes += 1;
    factors.flops += 2 * (operator.multiplications() * PROBES) as u64;
    Ok((factors, norm2))
}

/// Products of `delta·root^T` with random columns of the stream `name`.
pub(crate) fn probe(delta: &dyn Panels, root: &Root, name: &str, seed: u64) -> Result<Probe> {
    let columns = Stream::new(seed, name).gaussian(root.rows(), PROBES);
    let inner = root.transpose_times(columns.as_ref());
    let products = times(delta, inner.as_ref())?;
    Ok(Probe { columns, products })
}

/// Lengths of the columns such that both factors are of one size: singular values of the weight are those of the
/// outputs over the size of an input.
fn scaled(factors: Factors, norm2: f64, rms: f64) -> Directions {
    let rank = factors.rank;
    let mut left = factors.left;
    // Balanced factors have columns of length sqrt(s).
    let unit = if rms > 0.0 { rms.sqrt().recip() as f32 } else { 1.0 };
    left.iter_mut().for_each(|x| *x *= unit);
    Directions {
        left,
        rank,
        method: factors.method,
        singular_values: factors.singular_values,
        converged: factors.converged,
        norm2,
        captured: factors.captured,
        estimated_excess: factors.estimated_excess,
        basis: factors.basis,
        passes: factors.passes,
        flops: factors.flops,
    }
}

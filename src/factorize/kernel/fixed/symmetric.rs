//! Eigenvalues and leading eigenvectors of a symmetric square: Householder's reduction to a tridiagonal one, implicit
//! QL on that, and the way back for as many vectors as are asked for (Golub and Van Loan, *Matrix Computations*, 8.3).

use faer::prelude::*;
use rayon::prelude::*;

use crate::Result;
use crate::factorize::kernel::fixed::tridiagonal::{Sweep, diagonalize};
use crate::simd::{Loop, widest};

/// Partial sums of an inner product.
const LANES: usize = 8;
/// Columns that a task turns together: a few cache lines of each row.
const TOGETHER: usize = 32;

/// Bytes that [`eigen`] needs besides its argument and result, for a square of `side`.
pub(crate) fn eigen_bytes(side: usize) -> usize {
    // The square itself, the rotations (some 1.6 sweeps for each eigenvalue, half as long as a side), all vectors of
    // the tridiagonal square, and those that are asked for.
    8 * side * side * (1 + 2 + 1 + 1)
}

/// The eigenvalues of the symmetric `square`, whose lower triangle is read, in descending order.
///
/// # Errors
/// [`Kind::Input`](crate::Kind::Input) with NaN or infinities.
pub(crate) fn eigenvalues(square: MatRef<'_, f64>) -> Result<Vec<f64>> {
    let Reduced { mut diagonal, mut off, .. } = reduce(square);
    diagonalize(&mut diagonal, &mut off, |_| ())?;
    diagonal.sort_by(|a, b| b.total_cmp(a));
    Ok(diagonal)
}

/// The eigenvalues, descending, and the `count` leading eigenvectors `[side, count]` in the same order.
///
/// # Errors
/// [`Kind::Input`](crate::Kind::Input) with NaN or infinities.
pub(crate) fn eigen(square: MatRef<'_, f64>, count: usize) -> Result<(Vec<f64>, Mat<f64>)> {
    let (side, reduced) = (square.nrows(), reduce(square));
    let (mut values, mut off, mut sweeps) = (reduced.diagonal.clone(), reduced.off.clone(), Vec::new());
    diagonalize(&mut values, &mut off, |sweep| sweeps.push(sweep))?;
    let mut order: Vec<usize> = (0..side).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    let leading = &order[..count.min(side)];
    let turned = turn(side, &sweeps, leading);
    let mut vectors = Mat::zeros(side, leading.len());
    reduced.lift(&turned, vectors.as_mut());
    Ok((order.iter().map(|&at| values[at]).collect(), vectors))
}

/// A symmetric square as `H·T·H^T`, with `T` tridiagonal and `H` a product of reflections.
struct Reduced {
    side: usize,
    diagonal: Vec<f64>,
    off: Vec<f64>,
    /// Row `j` is the vector of reflection `j`, zero up to `j`.
    reflectors: Vec<f64>,
    /// `I - factor·v·v^T` is a reflection.
    factors: Vec<f64>,
}

fn reduce(square: MatRef<'_, f64>) -> Reduced {
    let n = square.nrows();
    let mut rows: Vec<f64> = (0..n).flat_map(|i| (0..n).map(move |j| square[(i, j)])).collect();
    let (mut diagonal, mut off) = (vec![0.0; n], vec![0.0; n.saturating_sub(1)]);
    let mut factors = vec![0.0; n.saturating_sub(1)];
    let (mut v, mut w) = (vec![0.0; n], vec![0.0; n]);
    for j in 0..n {
        // The column below the diagonal, with the last reflection's update, which the other columns get below.
        let update = |i: usize, k: usize| v[i] * w[k] + w[i] * v[k];
        diagonal[j] = rows[j * n + j] - update(j, j);
        let mut next: Vec<f64> =
            (0..n).map(|i| if i > j { rows[i * n + j] - update(i, j) } else { 0.0 }).collect();
        if j + 1 == n {
            break;
        }
        let (factor, below) = reflection(&mut next[j + 1..]);
        (factors[j], off[j]) = (factor, below);
        let mut product = vec![0.0; n];
        let first = j + 1;
        widest(Update { rows: &mut rows, n, first, v: &v, w: &w, next: &next, product: &mut product });
        // w = factor·(p - (factor / 2)·(p·v)·v).
        let overlap: f64 = product[first..].iter().zip(&next[first..]).map(|(p, v)| p * v).sum();
        let half = 0.5 * factor * overlap;
        product.iter_mut().zip(&next).for_each(|(p, v)| *p = factor * (*p - half * v));
        // A reflection's vector takes the place of a row that is not read any more.
        rows[j * n..(j + 1) * n].copy_from_slice(&next);
        (v, w) = (next, product);
    }
    Reduced { side: n, diagonal, off, reflectors: rows, factors }
}

/// Makes `x` the vector `v` of a reflection `I - factor·v·v^T` that leaves only the first element of `x`. Returns the
/// factor and that element.
fn reflection(x: &mut [f64]) -> (f64, f64) {
    let first = x[0];
    let rest: f64 = x[1..].iter().map(|x| x * x).sum();
    if rest == 0.0 {
        return (0.0, first);
    }
    let norm = (first * first + rest).sqrt();
    let kept = if first > 0.0 { -norm } else { norm };
    x[0] = first - kept;
    let size = x[0] * x[0] + rest;
    (2.0 / size, kept)
}

/// Subtracts `v·w^T + w·v^T` from the lower triangle of the rows from `first` on, and multiplies them with `next`, in
/// one pass.
struct Update<'a> {
    rows: &'a mut [f64],
    n: usize,
    first: usize,
    v: &'a [f64],
    w: &'a [f64],
    next: &'a [f64],
    product: &'a mut [f64],
}

impl Loop for Update<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Update { rows, n, first, v, w, next, product } = self;
        for i in first..n {
            let row = &mut rows[i * n..][first..=i];
            let (before, own) = row.split_at_mut(i - first);
            let (a, b, x) = (v[i], w[i], next[i]);
            let (vs, ws, xs) = (&v[first..i], &w[first..i], &next[first..i]);
            let (products, own_product) = product[first..=i].split_at_mut(i - first);
            let mut sums = [0.0; LANES];
            let whole = before.len() / LANES * LANES;
            for at in (0..whole).step_by(LANES) {
                let take = |from: &[f64]| -> [f64; LANES] { std::array::from_fn(|lane| from[at + lane]) };
                let (vs, ws, xs) = (take(vs), take(ws), take(xs));
                let (mut row, mut product) = (take(before), take(products));
                for lane in 0..LANES {
                    row[lane] -= a * ws[lane] + b * vs[lane];
                    sums[lane] += row[lane] * xs[lane];
                    product[lane] += row[lane] * x;
                }
                before[at..at + LANES].copy_from_slice(&row);
                products[at..at + LANES].copy_from_slice(&product);
            }
            let mut sum = 0.0;
            for at in whole..before.len() {
                let value = before[at] - (a * ws[at] + b * vs[at]);
                before[at] = value;
                sum += value * xs[at];
                products[at] += value * x;
            }
            own[0] -= 2.0 * a * b;
            own_product[0] += sums.iter().sum::<f64>() + sum + own[0] * x;
        }
    }
}

/// The eigenvectors of the tridiagonal square that `chosen` numbers, `[side, chosen]` row-major: the identity, with the
/// rotations applied in their order.
fn turn(side: usize, sweeps: &[Sweep], chosen: &[usize]) -> Vec<f64> {
    let starts: Vec<usize> = (0..side).step_by(TOGETHER).collect();
    let parts: Vec<Vec<f64>> = starts
        .par_iter()
        .with_max_len(1)
        .map(|&start| {
            // Row i holds elements of vector i.
            let mut part = vec![0.0; side * TOGETHER];
            (start..(start + TOGETHER).min(side)).for_each(|at| part[at * TOGETHER + at - start] = 1.0);
            widest(Rotate { part: &mut part, sweeps });
            let width = TOGETHER.min(side - start);
            (0..width)
                .flat_map(|lane| chosen.iter().map(move |&i| (i, lane)))
                .map(|(i, lane)| part[i * TOGETHER + lane])
                .collect()
        })
        .collect();
    parts.concat()
}

struct Rotate<'a> {
    part: &'a mut [f64],
    sweeps: &'a [Sweep],
}

impl Loop for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let rows = self.part.as_chunks_mut::<TOGETHER>().0;
        for Sweep { end, rotations } in self.sweeps {
            // The lower row of one rotation is the upper row of the next.
            let mut lower = rows[*end];
            for (step, &(c, s)) in rotations.iter().enumerate() {
                let i = end - 1 - step;
                let (upper, mut mixed) = (rows[i], [0.0; TOGETHER]);
                for lane in 0..TOGETHER {
                    mixed[lane] = s * upper[lane] + c * lower[lane];
                    lower[lane] = c * upper[lane] - s * lower[lane];
                }
                rows[i + 1] = mixed;
            }
            rows[end - rotations.len()] = lower;
        }
    }
}

impl Reduced {
    /// `H·turned`, `[side, count]`, for row-major `turned`.
    fn lift(&self, turned: &[f64], mut out: MatMut<'_, f64>) {
        let (n, count) = (self.side, out.ncols());
        let starts: Vec<usize> = (0..count).step_by(TOGETHER).collect();
        let lift = |&start: &usize| -> Vec<f64> {
            let width = TOGETHER.min(count - start);
            let mut part = vec![0.0; n * TOGETHER];
            for (to, from) in part.chunks_exact_mut(TOGETHER).zip(turned.chunks_exact(count)) {
                to[..width].copy_from_slice(&from[start..start + width]);
            }
            widest(Lift { part: &mut part, reduced: self });
            part
        };
        let parts: Vec<Vec<f64>> = starts.par_iter().with_max_len(1).map(lift).collect();
        for (start, part) in starts.into_iter().zip(parts) {
            for lane in 0..TOGETHER.min(count - start) {
                let from = part[lane..].iter().step_by(TOGETHER);
                out.rb_mut().col_mut(start + lane).iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            }
        }
    }
}

struct Lift<'a> {
    part: &'a mut [f64],
    reduced: &'a Reduced,
}

impl Loop for Lift<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Reduced { side, reflectors, factors, .. } = self.reduced;
        let rows = self.part.as_chunks_mut::<TOGETHER>().0;
        for j in (0..factors.len()).rev() {
            let v = &reflectors[j * side..][..*side];
            let mut overlap = [0.0; TOGETHER];
            for (row, v) in rows[j + 1..].iter().zip(&v[j + 1..]) {
                overlap.iter_mut().zip(row).for_each(|(sum, x)| *sum += v * x);
            }
            let factor = factors[j];
            overlap.iter_mut().for_each(|x| *x *= factor);
            for (row, v) in rows[j + 1..].iter_mut().zip(&v[j + 1..]) {
                row.iter_mut().zip(&overlap).for_each(|(x, overlap)| *x -= v * overlap);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factorize::kernel::block_ops::widen;
    use crate::factorize::kernel::rng::Stream;
    use crate::simd::{SimdLevel, testing::at_level};

    fn square(side: usize, values: impl Fn(usize) -> f64) -> Mat<f64> {
        let q = widen(Stream::new(2, "symmetric").gaussian(side, side).as_ref()).qr().compute_Q();
        Mat::from_fn(side, side, |i, j| q[(i, j)] * values(j)) * q.transpose()
    }

    #[test]
    fn vectors_diagonalize_every_kind_of_spectrum() {
        type Values = fn(usize) -> f64;
        let spectra: [(&str, Values); 6] = [
            ("flat", |i| 1.0 + (i as f64).sin()),
            ("power", |i| (1.0 + i as f64).powi(-4)),
            ("multiple", |i| if i % 3 == 0 { 1.0 } else { 2.0 }),
            ("low rank", |i| if i < 5 { 1.0 } else { 0.0 }),
            ("gap", |i| if i == 0 { 1e12 } else { 1.0 / (1.0 + i as f64) }),
            ("zero", |_| 0.0),
        ];
        for (name, values) in spectra {
            for side in [1, 2, 3, 17, 90, 131] {
                let matrix = square(side, values);
                let (found, vectors) = eigen(matrix.as_ref(), side.min(40)).unwrap();
                let mut expected: Vec<f64> = (0..side).map(values).collect();
                expected.sort_by(|a, b| b.total_cmp(a));
                let size = matrix.norm_max().max(f64::MIN_POSITIVE);
                for (found, expected) in found.iter().zip(&expected) {
                    assert!((found - expected).abs() < 1e-12 * size * side as f64, "{name} {side}: {found}");
                }
                assert_eq!(eigenvalues(matrix.as_ref()).unwrap(), found, "{name} {side}");
                let gram = vectors.transpose() * &vectors;
                let off = (&gram - Mat::<f64>::identity(gram.nrows(), gram.ncols())).norm_max();
                assert!(off < 1e-13 * (side as f64 + 10.0), "{name} {side}: {off}");
                let scaled = Mat::from_fn(side, vectors.ncols(), |i, j| vectors[(i, j)] * found[j]);
                let off = (&matrix * &vectors - scaled).norm_max();
                assert!(off < 1e-13 * size * (side as f64 + 10.0), "{name} {side}: {off}");
            }
        }
        assert!(eigenvalues(Mat::from_fn(9, 9, |_, _| f64::NAN).as_ref()).is_err());
    }

    #[test]
    fn neither_threads_nor_the_level_change_a_bit() {
        let matrix = square(150, |i| 1.0 / (1.0 + i as f64));
        let by = |level| at_level(level, || eigen(matrix.as_ref(), 70).unwrap());
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let (values, vectors) = pool.install(|| eigen(matrix.as_ref(), 70).unwrap());
        for level in [SimdLevel::Widest, SimdLevel::Avx2, SimdLevel::Portable] {
            assert!(by(level) == (values.clone(), vectors.clone()), "{level:?}");
        }
    }
}

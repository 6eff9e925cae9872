//! Eigenvalues and eigenvectors of a symmetric tridiagonal matrix by the implicit QL method (Dubrulle, Martin and
//! Wilkinson, *The implicit QL algorithm*, 1968; `tql2` of EISPACK).

use crate::{Error, Result};

/// Iterations for one eigenvalue: two or three are common.
const MOST: usize = 60;

/// The plane rotations of one sweep: the first mixes rows `end - 1` and `end`, the next those before, and so on.
pub(crate) struct Sweep {
    /// The last row.
    pub(crate) end: usize,
    /// Cosines and sines.
    pub(crate) rotations: Vec<(f64, f64)>,
}

/// Makes `diagonal` the eigenvalues, in no order, and destroys `off`, the elements below the diagonal. `record` takes
/// the rotations, in order.
///
/// # Errors
/// [`Kind::Input`](crate::Kind::Input) with NaN or infinities.
pub(crate) fn diagonalize(
    diagonal: &mut [f64],
    off: &mut [f64],
    mut record: impl FnMut(Sweep),
) -> Result<()> {
    let n = diagonal.len();
    // What is below the rounding of the largest element so far is nothing: graded matrices end in such rows.
    let mut largest = 0f64;
    for l in 0..n {
        largest = largest.max(diagonal[l].abs() + off.get(l).map_or(0.0, |e| e.abs()));
        for iteration in 0.. {
            let negligible = |m: &usize| {
                let size = diagonal[*m].abs() + diagonal[m + 1].abs();
                off[*m].abs() <= f64::EPSILON * size.max(largest)
            };
            let m = (l..n - 1).find(negligible).unwrap_or(n - 1);
            if m == l {
                break;
            }
            if iteration == MOST {
                return Err(Error::input(
                    "the eigenvalues do not converge: the difference may hold infinities or NaN",
                ));
            }
            record(sweep(diagonal, off, l, m));
        }
    }
    Ok(())
}

/// One implicit step on rows `l` to `m`.
fn sweep(diagonal: &mut [f64], off: &mut [f64], l: usize, m: usize) -> Sweep {
    let mut g = (diagonal[l + 1] - diagonal[l]) / (2.0 * off[l]);
    let r = length(g, 1.0);
    g = diagonal[m] - diagonal[l] + off[l] / (g + if g < 0.0 { -r } else { r });
    let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
    let mut rotations = Vec::with_capacity(m - l);
    for i in (l..m).rev() {
        let (f, b) = (s * off[i], c * off[i]);
        let r = length(f, g);
        if i + 1 < m {
            off[i + 1] = r;
        }
        if r == 0.0 {
            // Both vanish: the matrix splits here.
            diagonal[i + 1] -= p;
            if m < off.len() {
                off[m] = 0.0;
            }
            return Sweep { end: m, rotations };
        }
        (s, c) = (f / r, g / r);
        g = diagonal[i + 1] - p;
        let r = (diagonal[i] - g) * s + 2.0 * c * b;
        p = s * r;
        diagonal[i + 1] = g + p;
        g = c * r - b;
        rotations.push((c, s));
    }
    diagonal[l] -= p;
    off[l] = g;
    if m < off.len() {
        off[m] = 0.0;
    }
    Sweep { end: m, rotations }
}

/// `sqrt(a^2 + b^2)` without overflow, by operations that are rounded alike everywhere.
fn length(a: f64, b: f64) -> f64 {
    let (a, b) = (a.abs(), b.abs());
    let (large, small) = if a > b { (a, b) } else { (b, a) };
    if small == 0.0 || large == 0.0 {
        return large;
    }
    let ratio = small / large;
    large * (1.0 + ratio * ratio).sqrt()
}

//! How large the singular values of noise alone are, and from which size on singular values are worth keeping.

/// The largest singular value, in the limit, of a matrix `[m, n]` of independent noise with standard deviation `sigma`:
/// `sigma (sqrt(m) + sqrt(n))`, the square root of the upper edge of Marchenko and Pastur's law (*Distribution of
/// eigenvalues for some sets of random matrices*, 1967).
pub fn edge([m, n]: [usize; 2], sigma: f64) -> f64 {
    sigma * ((m as f64).sqrt() + (n as f64).sqrt())
}

/// The optimal hard threshold for singular values of a matrix `[m, n]` that is a low-rank one plus independent noise of
/// known standard deviation `sigma`: `lambda(beta) sqrt(max(m, n)) sigma` with `beta = min(m, n) / max(m, n)` (Gavish
/// and Donoho, *The optimal hard threshold for singular values is 4/sqrt(3)*, 2014, equation 11). A singular value
/// below it adds more noise than signal to the estimate.
pub fn hard_threshold([m, n]: [usize; 2], sigma: f64) -> f64 {
    let (short, long) = (m.min(n) as f64, m.max(n) as f64);
    lambda(if long > 0.0 { short / long } else { 0.0 }) * long.sqrt() * sigma
}

fn lambda(beta: f64) -> f64 {
    let root = (beta * beta + 14.0 * beta + 1.0).sqrt();
    (2.0 * (beta + 1.0) + 8.0 * beta / (beta + 1.0 + root)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn landmarks() {
        // The title of the paper.
        assert!((lambda(1.0) - 4.0 / 3f64.sqrt()).abs() < 1e-15);
        // A single row: signal can be told from noise from sqrt(2) on.
        assert!((lambda(0.0) - 2f64.sqrt()).abs() < 1e-15);
        // Always above the edge, where the bulk ends.
        for (m, n) in [(100, 100), (5120, 25600), (25600, 5120), (1, 1000)] {
            assert!(hard_threshold([m, n], 0.1) > edge([m, n], 0.1), "{m} x {n}");
            assert_eq!(hard_threshold([m, n], 0.1), hard_threshold([n, m], 0.1));
        }
    }
}

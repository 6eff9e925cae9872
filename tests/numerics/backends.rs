//! The conformance suite of [`Backend`], which every factorization passes, and a toy: the full singular value
//! decomposition.

use faer::prelude::*;
use trephine::Result;
use trephine::factorize::{BACKENDS, Backend, Cost, Factors, Held, Method, Panels, Precision, Request};

use crate::spectra::{SPECTRA, Spectrum, dense, error2, matrix, norm2};

const TOLERANCE: f64 = 0.005;

fn conforms(backend: &dyn Backend) {
    let name = std::any::type_name_of_val(backend);
    let request =
        |rank| Request { rank, energy: None, tolerance: TOLERANCE, method: backend.method(), seed: 3 };
    for spectrum in SPECTRA.into_iter().filter(|spectrum| *spectrum != Spectrum::Zero) {
        for (m, n, rank) in [(150, 90, 8), (90, 150, 8), (64, 64, 64), (1, 40, 4)] {
            let what = format!("{name}, {spectrum:?}, {m} x {n}, rank {rank}");
            let held = Held::new(m, n, matrix(spectrum, m, n)).unwrap();
            let (total, delta) = (norm2(held.values()), dense(held.values(), m, n));
            let by = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| backend.factorize(&held, total, "m", &request(rank)).unwrap())
            };
            let f = by(1);
            assert!(f.rank <= rank.min(m).min(n), "{what}");
            assert_eq!((f.left.len(), f.right.len()), (m * f.rank, f.rank * n), "{what}");
            assert_eq!((f.method == Method::Auto, f.converged >= f.rank), (false, true), "{what}");
            assert!(f.singular_values.is_sorted_by(|a, b| a >= b), "{what}");
            let values = delta.singular_values().unwrap();
            let optimal: f64 = values.iter().skip(rank).map(|s| s * s).sum();
            let bound = (1.0 + TOLERANCE).powi(2) * optimal + 1e-10 * total;
            let error = error2(&delta, &f.left, &f.right);
            assert!(error <= bound, "{what}: {error} above {bound}");
            assert!((total - f.captured - error).abs() <= 1e-4 * total, "{what}: the captured energy");
            let again = by(2);
            assert_eq!((&f.left, &f.right), (&again.left, &again.right), "{what}: threads");
        }
    }
    let cost = |rank| backend.cost([4096, 1024], &request(rank));
    let (low, high) = (cost(16), cost(128));
    assert!(low.flops > 0.0 && low.flops <= high.flops && low.workspace <= high.workspace, "{name}");
}

// The toy.

struct FullSvd;

impl Backend for FullSvd {
    fn method(&self) -> Method {
        Method::Gram
    }

    fn cost(&self, [m, n]: [usize; 2], _: &Request) -> Cost {
        let (long, short) = (m.max(n), m.min(n));
        Cost {
            flops: 20.0 * (long * short * short) as f64,
            workspace: 8 * (3 * m * n + short * short),
            thread: 0,
        }
    }

    fn factorize(&self, delta: &dyn Panels, norm2: f64, _: &str, request: &Request) -> Result<Factors> {
        let (m, n) = (delta.rows(), delta.cols());
        let mut whole = Mat::<f64>::zeros(m, n);
        delta.visit(0..m, &mut |panel| {
            whole = Mat::from_fn(m, n, |i, j| f64::from(panel[(i, j)]) / norm2.sqrt());
            Ok(())
        })?;
        let svd = whole.thin_svd().unwrap();
        let values: Vec<f64> = svd.S().column_vector().iter().map(|s| s * norm2.sqrt()).collect();
        let rank = request.rank.min(values.iter().take_while(|s| **s > 1e-7 * values[0]).count());
        let root = |k: usize| values[k].sqrt();
        let (u, v) = (svd.U(), svd.V());
        let left = Mat::from_fn(rank, m, |k, i| (u[(i, k)] * root(k)) as f32);
        let right = Mat::from_fn(n, rank, |j, k| (v[(j, k)] * root(k)) as f32);
        // The columns of one behind the other are the rows of its transpose.
        let rows = |mat: &Mat<f32>| {
            (0..mat.ncols()).flat_map(|j| mat.col(j).iter().copied().collect::<Vec<_>>()).collect()
        };
        Ok(Factors {
            left: rows(&left),
            right: rows(&right),
            rank,
            precision: Precision::F32,
            method: Method::Gram,
            converged: values.len(),
            captured: values[..rank].iter().map(|s| s * s).sum(),
            singular_values: values.clone(),
            estimated_excess: 0.0,
            basis: m.min(n),
            passes: 1,
            flops: 0,
        })
    }
}

// The trial of all.

#[test]
fn every_backend_conforms() {
    for backend in BACKENDS {
        conforms(backend);
    }
    conforms(&FullSvd);
}

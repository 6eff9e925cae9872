//! Every kind of spectrum, shape, method and stored dtype against the optimum, from a full SVD in f64.
//!
//! `cargo test --release --test numerics spectra -- --nocapture` prints a table of the results.

use std::ops::Range;

use faer::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use trephine::factorize::{Factors, Held, Method, Panels, Request, factorize, residual, stored_error};
use trephine::{Kind, Result};

const TOLERANCE: f64 = 0.005;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Spectrum {
    Flat,
    Semantic,
    Power(f64),
    LowRank,
    Deficient,
    Gap,
    OutlierRow,
    Orthogonal,
    Tiny,
    Zero,
}

pub(crate) const SPECTRA: [Spectrum; 11] = [
    Spectrum::Flat,
    Spectrum::Semantic,
    Spectrum::Power(0.5),
    Spectrum::Power(1.0),
    Spectrum::LowRank,
    Spectrum::Deficient,
    Spectrum::Gap,
    Spectrum::OutlierRow,
    Spectrum::Orthogonal,
    Spectrum::Tiny,
    Spectrum::Zero,
];

/// Name, rows, columns, rank.
const SHAPES: [(&str, usize, usize, usize); 5] = [
    ("tall", 700, 400, 16),
    ("wide", 360, 700, 32),
    ("square", 512, 512, 64),
    ("ragged", 517, 389, 8),
    ("one row", 1, 500, 8),
];

/// `[m, n]` with the given spectrum, row-major.
pub(crate) fn matrix(spectrum: Spectrum, m: usize, n: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64((m * 1000 + n) as u64);
    let side = m.min(n);
    let mut gaussian = |rows: usize, cols: usize, size: f64| -> Mat<f64> {
        let mut draw = || -> f64 { StandardNormal.sample(&mut rng) };
        Mat::from_fn(rows, cols, |_, _| size * draw())
    };
    let mut with = |values: &dyn Fn(usize) -> f64| -> Mat<f64> {
        let u = gaussian(m, side, 1.0).qr().compute_thin_Q();
        let v = gaussian(n, side, 1.0).qr().compute_thin_Q();
        Mat::from_fn(m, side, |i, j| u[(i, j)] * values(j)) * v.transpose()
    };
    let below = |i: usize, limit: usize| if i < limit { 1.0 } else { 0.0 };
    let mat = match spectrum {
        Spectrum::Flat => gaussian(m, n, 1.0),
        Spectrum::Tiny => gaussian(m, n, 1e-25),
        Spectrum::Semantic => {
            let signal = with(&|i| 60.0 * (-(i as f64) / 6.0).exp() * below(i, 40));
            signal + gaussian(m, n, 0.3)
        }
        Spectrum::Power(p) => with(&|i| (i as f64 + 1.0).powf(-p)),
        Spectrum::LowRank => with(&|i| below(i, 5) * (5.0 - i as f64)),
        Spectrum::Deficient => with(&|i| below(i, side.div_ceil(2)) * (1.0 + 1.0 / (i as f64 + 1.0))),
        Spectrum::Gap => with(&|i| if i < 6 { 1.0 } else { 1e-6 }),
        Spectrum::OutlierRow => {
            let mut mat = gaussian(m, n, 1.0);
            mat.row_mut(m / 3).iter_mut().for_each(|x| *x *= 1000.0);
            mat
        }
        Spectrum::Orthogonal => with(&|_| 1.0),
        Spectrum::Zero => Mat::zeros(m, n),
    };
    (0..m).flat_map(|i| mat.row(i).iter().map(|x| *x as f32).collect::<Vec<_>>()).collect()
}

pub(crate) fn norm2(values: &[f32]) -> f64 {
    values.iter().map(|x| f64::from(*x).powi(2)).sum()
}

pub(crate) fn dense(values: &[f32], rows: usize, cols: usize) -> Mat<f64> {
    Mat::from_fn(rows, cols, |i, j| f64::from(values[i * cols + j]))
}

pub(crate) fn error2(delta: &Mat<f64>, left: &[f32], right: &[f32]) -> f64 {
    let (m, n) = delta.shape();
    let k = left.len() / m;
    (delta - dense(left, m, k) * dense(right, k, n)).squared_norm_l2()
}

fn request(rank: usize, method: Method) -> Request {
    Request { rank, energy: None, tolerance: TOLERANCE, method, seed: 7 }
}

fn to_bf16(values: &[f32]) -> Vec<f32> {
    values.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect()
}

/// A delta that is recomputed at each visit, as in the pipeline.
struct Recomputed<'a>(&'a Held);

impl Panels for Recomputed<'_> {
    fn rows(&self) -> usize {
        self.0.rows()
    }

    fn cols(&self) -> usize {
        self.0.cols()
    }

    fn visit(&self, rows: Range<usize>, look: &mut dyn FnMut(MatRef<'_, f32>) -> Result<()>) -> Result<()> {
        let cols = self.cols();
        let panel: Vec<f32> = self.0.values()[rows.start * cols..rows.end * cols].to_vec();
        look(MatRef::from_row_major_slice(&panel, rows.len(), cols))
    }
}

/// A matrix and its SVD.
struct Case<'a> {
    name: &'a str,
    spectrum: Spectrum,
    rank: usize,
    held: Held,
    delta: Mat<f64>,
    total: f64,
    /// The optimal error and captured energy, both squared norms.
    optimal2: f64,
    optimal_captured: f64,
}

impl<'a> Case<'a> {
    fn new(spectrum: Spectrum, (name, m, n, rank): (&'a str, usize, usize, usize)) -> Self {
        Case::of(spectrum, name, rank, Held::new(m, n, matrix(spectrum, m, n)).unwrap())
    }

    fn of(spectrum: Spectrum, name: &'a str, rank: usize, held: Held) -> Self {
        let delta = dense(held.values(), held.rows(), held.cols());
        let squares: Vec<f64> = delta.singular_values().unwrap().iter().map(|s| s * s).collect();
        let (top, rest) = squares.split_at(rank.min(squares.len()));
        let (optimal_captured, optimal2) = (top.iter().sum(), rest.iter().sum());
        let total = norm2(held.values());
        Case { name, spectrum, rank, held, delta, total, optimal2, optimal_captured }
    }

    /// The same for the transpose: everything is known except the matrix itself, which is transposed here in f64 only.
    fn transposed(&self) -> Self {
        Case { delta: self.delta.transpose().to_owned(), held: self.held.clone(), ..*self }
    }

    /// Factorizes, prints a line for each dtype, and returns the errors.
    fn judge(&self, method: Method) -> Vec<String> {
        let f = factorize(&self.held, self.total, self.name, &request(self.rank, method)).unwrap();
        let (m, n) = (self.held.rows(), self.held.cols());
        assert_eq!((f.left.len(), f.right.len()), (m * f.rank, f.rank * n));
        let exact = ("f32", 1e-5, f.left.clone(), f.right.clone());
        let rounded = ("bf16", 2f64.powi(-8), to_bf16(&f.left), to_bf16(&f.right));
        let stored = [exact, rounded].into_iter();
        stored.flat_map(|(dtype, cost, b, a)| self.judge_stored(&f, dtype, cost, &b, &a)).collect()
    }

    fn judge_stored(&self, f: &Factors, dtype: &str, cost: f64, left: &[f32], right: &[f32]) -> Vec<String> {
        let error2 = error2(&self.delta, left, right);
        let over = |whole: f64| if whole > 0.0 { (error2 / whole).sqrt() } else { 0.0 };
        // If the optimum is zero, there is no relative error.
        let (excess, relative) = ((over(self.optimal2) - 1.0).max(0.0), over(self.total));
        let (spectrum, method) = (format!("{:?}", self.spectrum), format!("{:?}", f.method));
        println!(
            "| {spectrum:<10} | {:<7} | {method:<6} | {dtype:<4} | {relative:>9.3e} | {excess:>10.3e} | {:>10.3e} | \
             {:>5} | {:>6} | {:>4} |",
            self.name, f.estimated_excess, f.basis, f.passes, f.rank,
        );
        let mut faults = Vec::new();
        let mut fault =
            |what: String| faults.push(format!("{spectrum} {} {method} {dtype}: {what}", self.name));
        if error2 > (1.0 + TOLERANCE).powi(2) * self.optimal2 + cost * cost * self.total {
            fault(format!("excess {excess:.3e}, relative error {relative:.3e}"));
        }
        let captured = self.total - error2;
        if captured < (1.0 - 10.0 * TOLERANCE) * self.optimal_captured {
            fault(format!("captures {captured} of {}", self.optimal_captured));
        }
        let floor = cost * (self.total / self.optimal2).sqrt();
        if dtype == "f32" && excess > floor && f.estimated_excess < 0.5 * excess {
            fault(format!("excess {excess:.3e}, estimated {:.3e}", f.estimated_excess));
        }
        faults
    }
}

#[test]
fn every_spectrum_meets_the_tolerance() {
    println!(
        "| spectrum | shape | method | stored | relative error | excess | estimated | basis | passes | rank |"
    );
    println!("|{}", "---|".repeat(10));
    let mut faults = Vec::new();
    for spectrum in SPECTRA {
        for shape in SHAPES {
            let case = Case::new(spectrum, shape);
            faults.extend([Method::Krylov, Method::Gram].into_iter().flat_map(|method| case.judge(method)));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Sides that are large enough for block Krylov on the Gram matrix, which is reported as optimal: checked to 1e-5 where
/// the optimal error is not itself rounding.
#[test]
fn large_gram_matrices_give_the_optimum() {
    let (m, n, rank) = (1600, 1800, 48);
    let spectra = [Spectrum::Flat, Spectrum::Semantic, Spectrum::LowRank, Spectrum::Gap, Spectrum::Deficient];
    let mut faults = Vec::new();
    for spectrum in spectra {
        let wide = matrix(spectrum, m, n);
        let tall = (0..n).flat_map(|j| wide.iter().skip(j).step_by(n).copied()).collect();
        let wide = Case::of(spectrum, "wide", rank, Held::new(m, n, wide).unwrap());
        let tall = Case { name: "tall", held: Held::new(n, m, tall).unwrap(), ..wide.transposed() };
        for case in [&wide, &tall] {
            faults.extend(case.judge(Method::Gram));
            let f = factorize(&case.held, case.total, case.name, &request(rank, Method::Gram)).unwrap();
            let excess = (error2(&case.delta, &f.left, &f.right) / case.optimal2).sqrt() - 1.0;
            if case.optimal2 > 1e-2 * case.total && excess > 1e-5 {
                faults.push(format!("{spectrum:?} {}: excess {excess:.3e}", case.name));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn bits(f: &Factors) -> (Vec<u32>, Vec<u32>, Vec<u64>, usize) {
    let of = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect();
    (of(&f.left), of(&f.right), f.singular_values.iter().map(|s| s.to_bits()).collect(), f.basis)
}

#[test]
fn bits_depend_on_neither_threads_nor_where_the_delta_lives() {
    for (m, n) in [(700, 300), (300, 700), (1700, 1600), (1600, 1700)] {
        let held = Held::new(m, n, matrix(Spectrum::Semantic, m, n)).unwrap();
        let total = norm2(held.values());
        for method in [Method::Krylov, Method::Gram] {
            let mut seen = Vec::new();
            for threads in [1, 2, 4] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let sources: [&dyn Panels; 2] = [&held, &Recomputed(&held)];
                for source in sources {
                    let factors = pool.install(|| factorize(source, total, "m", &request(24, method)));
                    seen.push(bits(&factors.unwrap()));
                }
            }
            assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{m} x {n} {method:?}");
        }
    }
}

#[test]
fn the_stored_error_is_the_residual() {
    for spectrum in [Spectrum::Flat, Spectrum::Semantic, Spectrum::Power(1.0)] {
        for (_, m, n, rank) in SHAPES.into_iter().take(4) {
            let held = Held::new(m, n, matrix(spectrum, m, n)).unwrap();
            let total = norm2(held.values());
            let f = factorize(&held, total, "m", &request(rank, Method::Krylov)).unwrap();
            for (left, right) in [(f.left.clone(), f.right.clone()), (to_bf16(&f.left), to_bf16(&f.right))] {
                let measured = residual(&held, &left, &right).unwrap().residual2;
                let known = stored_error(&f, &left, &right, total).unwrap();
                assert!((measured / known - 1.0).abs() < 2e-4, "{spectrum:?} {m} x {n}: {measured} {known}");
            }
        }
    }
}

#[test]
fn energy_asks_for_the_least_rank() {
    let (m, n) = (500, 400);
    let held = Held::new(m, n, matrix(Spectrum::Power(1.0), m, n)).unwrap();
    let total = norm2(held.values());
    for method in [Method::Krylov, Method::Gram] {
        let asked = Request { energy: Some(0.9), ..request(48, method) };
        let f = factorize(&held, total, "m", &asked).unwrap();
        // The sum of 1/i^2 up to 6 is 0.908 of the sum up to 400; up to 5 it is 0.891.
        assert_eq!(f.rank, 6, "{method:?}");
        let asked = Request { energy: Some(1.0), ..asked };
        assert_eq!(factorize(&held, total, "m", &asked).unwrap().rank, 48);
    }
}

#[test]
fn a_zero_delta_has_zero_factors() {
    let held = Held::new(30, 20, vec![0.0; 600]).unwrap();
    for method in [Method::Krylov, Method::Gram, Method::Auto] {
        let f = factorize(&held, 0.0, "m", &request(4, method)).unwrap();
        assert_eq!((f.rank, f.left.len(), f.right.len()), (0, 0, 0));
        assert_eq!(residual(&held, &f.left, &f.right).unwrap().residual2, 0.0);
        assert_eq!(stored_error(&f, &f.left, &f.right, 0.0).unwrap(), 0.0);
    }
}

#[test]
fn nonsense_is_refused() {
    let held = Held::new(2, 2, vec![1.0; 4]).unwrap();
    let ask = |request: Request, norm2: f64| factorize(&held, norm2, "m", &request).unwrap_err().kind();
    let good = request(1, Method::Auto);
    assert_eq!(ask(Request { rank: 0, ..good }, 4.0), Kind::Decide);
    assert_eq!(ask(Request { tolerance: 0.0, ..good }, 4.0), Kind::Decide);
    assert_eq!(ask(Request { energy: Some(1.5), ..good }, 4.0), Kind::Decide);
    assert_eq!(ask(good, f64::NAN), Kind::Input);
    assert!(Held::new(2, 2, vec![1.0; 3]).is_err());
}

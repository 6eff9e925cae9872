//! Passes in bytes: the rule for quality over every spectrum and the matrices that are hard for bytes, and the truth of
//! what is stated. `cargo test --release --test numerics precision -- --nocapture` prints a table.

use faer::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, StudentT};
use trephine::Result;
use trephine::factorize::{
    Codes, Factors, Held, HeldCodes, Method, Panels, Precision, Requantized, Request, factorize,
    factorize_codes, stored_error,
};

use crate::spectra::{SPECTRA, Spectrum, dense, error2, matrix, norm2};

const TOLERANCE: f64 = 0.005;

/// What makes scales coarse, on white noise: rare large elements, columns and rows.
#[derive(Clone, Copy, Debug)]
enum Hard {
    StudentT(f64),
    OneColumn,
    SomeColumns,
    SomeElements,
    OneElement,
    MostlyZero,
    OneRow,
    /// The difference of two weights in bf16: a few multiples of one step.
    Grid,
}

const HARD: [Hard; 9] = [
    Hard::StudentT(3.0),
    Hard::StudentT(2.0),
    Hard::OneColumn,
    Hard::SomeColumns,
    Hard::SomeElements,
    Hard::OneElement,
    Hard::MostlyZero,
    Hard::OneRow,
    Hard::Grid,
];

fn hard(kind: Hard, m: usize, n: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut values: Vec<f64> = (0..m * n).map(|_| StandardNormal.sample(&mut rng)).collect();
    match kind {
        Hard::StudentT(freedom) => {
            let student = StudentT::new(freedom).unwrap();
            values.fill_with(|| student.sample(&mut rng));
        }
        Hard::OneColumn => values.iter_mut().skip(n / 3).step_by(n).for_each(|x| *x *= 30.0),
        Hard::SomeColumns => {
            for j in (0..n).filter(|j| j % 100 == 7) {
                values.iter_mut().skip(j).step_by(n).for_each(|x| *x *= 30.0);
            }
        }
        Hard::SomeElements => {
            values.iter_mut().for_each(|x| *x *= if rng.random_bool(0.001) { 100.0 } else { 1.0 });
        }
        Hard::OneElement => values[m / 2 * n + n / 3] = 1e4,
        Hard::MostlyZero => {
            values.iter_mut().for_each(|x| *x *= if rng.random_bool(0.7) { 0.0 } else { 1.0 });
        }
        Hard::OneRow => values[m / 3 * n..][..n].iter_mut().for_each(|x| *x *= 1000.0),
        Hard::Grid => {
            let change = matrix(Spectrum::Semantic, m, n);
            let unit = (norm2(&change) / (m * n) as f64).sqrt();
            let bf16 = |x: f64| half::bf16::from_f64(x).to_f64();
            for (x, change) in values.iter_mut().zip(&change) {
                let weight = bf16(0.02 * *x);
                *x = bf16(weight + 1e-4 * f64::from(*change) / unit) - weight;
            }
        }
    }
    values.into_iter().map(|x| x as f32).collect()
}

fn request(rank: usize) -> Request {
    Request { rank, energy: None, tolerance: TOLERANCE, method: Method::Krylov, seed: 7 }
}

/// A matrix, and what is known of it from a full decomposition.
struct Case {
    name: String,
    rank: usize,
    held: Held,
    delta: Mat<f64>,
    total: f64,
    optimal2: f64,
}

impl Case {
    fn new(name: String, (m, n, rank): (usize, usize, usize), values: Vec<f32>) -> Case {
        let held = Held::new(m, n, values).unwrap();
        let delta = dense(held.values(), m, n);
        let squares = delta.singular_values().unwrap().into_iter().map(|s| s * s);
        let (total, optimal2) = (norm2(held.values()), squares.skip(rank).sum());
        Case { name, rank, held, delta, total, optimal2 }
    }

    /// As `--precision` does.
    fn factors(&self, precision: Precision) -> Factors {
        let request = request(self.rank);
        let in_bytes = match precision {
            Precision::F32 => None,
            _ => {
                let codes = HeldCodes::of(&self.held).unwrap();
                factorize_codes(&codes, self.total, "m", &request, precision == Precision::Int8).unwrap()
            }
        };
        in_bytes.unwrap_or_else(|| factorize(&self.held, self.total, "m", &request).unwrap())
    }

    /// Prints a line; the faults by the rule for quality, and of what is stated.
    fn judge(&self, precision: Precision) -> Vec<String> {
        let f = self.factors(precision);
        let codes = HeldCodes::of(&self.held).unwrap();
        let round =
            |values: &[f32]| values.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect::<Vec<_>>();
        let (left, right) = (round(&f.left), round(&f.right));
        let error2 = error2(&self.delta, &left, &right);
        let stated2 = stored_error(&f, &left, &right, self.total).unwrap();
        let excess = (error2 / self.optimal2).sqrt() - 1.0;
        let untrue = ((stated2 - error2) / self.total).abs() / (error2 / self.total).sqrt().max(1e-30) / 2.0;
        println!(
            "| {:<22} | {:<4} | {:<4} | {:>9.2e} | {:>9.2e} | {:>9.2e} | {:>9.2e} | {:>9.2e} | {:>3} |",
            self.name,
            precision.name(),
            f.precision.name(),
            codes.error2() / self.optimal2,
            (error2 / self.total).sqrt(),
            excess,
            f.estimated_excess,
            untrue,
            f.basis,
        );
        let mut faults = Vec::new();
        if precision == Precision::Int8 {
            return faults;
        }
        let cost = 2f64.powi(-8);
        let optimal_captured = self.total - self.optimal2;
        if error2 > (1.0 + TOLERANCE).powi(2) * self.optimal2 + cost * cost * self.total {
            faults.push(format!("{} {precision:?}: excess {excess:.2e}", self.name));
        }
        if self.total - error2 < (1.0 - 10.0 * TOLERANCE) * optimal_captured - cost * cost * self.total {
            faults.push(format!("{} {precision:?}: captures too little", self.name));
        }
        if f.precision == Precision::Int8 && untrue > 1e-3 {
            faults.push(format!("{} {precision:?}: the stated error is off by {untrue:.2e}", self.name));
        }
        let floor = cost * cost * self.total / self.optimal2 + 1e-4;
        if f.precision == Precision::Int8 && excess > floor && f.estimated_excess < 0.5 * excess {
            let estimated = f.estimated_excess;
            faults
                .push(format!("{} {precision:?}: excess {excess:.2e}, estimated {estimated:.2e}", self.name));
        }
        faults
    }
}

#[test]
fn the_rule_holds_for_every_matrix_and_what_is_stated_is_true() {
    println!("| matrix | asked | used | E2/opt | relative error | excess | estimated | untrue | basis |");
    println!("|{}", "---|".repeat(9));
    let mut faults = Vec::new();
    for shape in [(330, 180, 12), (170, 530, 16)] {
        let spectra = SPECTRA.into_iter().filter(|spectrum| *spectrum != Spectrum::Zero);
        let spectra = spectra.map(|s| (format!("{s:?} {shape:?}"), matrix(s, shape.0, shape.1)));
        let hard = HARD.into_iter().map(|h| (format!("{h:?} {shape:?}"), hard(h, shape.0, shape.1)));
        for (name, values) in spectra.chain(hard) {
            let case = Case::new(name, shape, values);
            for precision in [Precision::F32, Precision::Int8, Precision::Auto] {
                faults.extend(case.judge(precision));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn bytes_are_left_where_they_would_show() {
    let used = |values: Vec<f32>| {
        let case = Case::new(String::new(), (330, 180, 12), values);
        case.factors(Precision::Auto).precision
    };
    for spectrum in [Spectrum::Flat, Spectrum::Semantic, Spectrum::Orthogonal, Spectrum::Tiny] {
        assert_eq!(used(matrix(spectrum, 330, 180)), Precision::Int8, "{spectrum:?}");
    }
    for spectrum in [Spectrum::LowRank, Spectrum::Gap, Spectrum::Power(1.0), Spectrum::OutlierRow] {
        assert_eq!(used(matrix(spectrum, 330, 180)), Precision::F32, "{spectrum:?}");
    }
}

fn bits(f: &Factors) -> (Vec<u32>, Vec<u32>, Vec<u64>, u64) {
    let of = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect();
    let squares = f.singular_values.iter().map(|s| s.to_bits()).collect();
    (of(&f.left), of(&f.right), squares, f.estimated_excess.to_bits())
}

#[test]
fn bits_depend_on_neither_threads_nor_where_the_codes_live() {
    for (m, n) in [(300, 160), (103, 317)] {
        let held = Held::new(m, n, matrix(Spectrum::Semantic, m, n)).unwrap();
        let total = norm2(held.values());
        let codes = HeldCodes::of(&held).unwrap();
        let anew = Requantized::new(&held, codes.error2());
        let mut seen = Vec::new();
        for threads in [1, 2, 4] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for codes in [&codes as &dyn Codes, &anew] {
                let made: Result<_> = pool.install(|| factorize_codes(codes, total, "m", &request(12), true));
                seen.push(bits(&made.unwrap().unwrap()));
            }
        }
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{m} x {n}");
    }
}

#[test]
fn codes_of_the_wrong_size_are_refused() {
    assert!(HeldCodes::new(8, 40, vec![0f32; 7], 0.0).is_err());
    let held = Held::new(2, 2, vec![0.0; 4]).unwrap();
    let codes = HeldCodes::of(&held).unwrap();
    assert_eq!(factorize_codes(&codes, 0.0, "m", &request(1), false).unwrap().unwrap().rank, 0);
    assert!(factorize_codes(&codes, f64::NAN, "m", &request(1), false).is_err());
    assert_eq!((held.rows(), codes.cols()), (2, 2));
}

//! Where the time of a factorization goes: `cargo bench --bench factorize -- [ROWS COLS RANK [TOLERANCE [THREADS]]]`.
//!
//! Plain clocks and no assertion. Rates are in GFLOP/s of the product that is counted, and beside them the share of the
//! best product on this machine.

use std::time::Instant;

use faer::linalg::matmul::matmul;
use faer::prelude::*;
use faer::{Accum, Par};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use trephine::factorize::kernel::panel_rows;
use trephine::factorize::parts::{Scratch, Stream, cross_gram, eigen, gram_matrix, orthonormalize, sweep};
use trephine::factorize::{Held, Method, Request, choose, factorize, flops, residual, workspace};

/// Side of the square product that all else is compared with.
const SQUARE: usize = 2048;

fn main() {
    // cargo passes --bench to a harness of its own making.
    let given: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let number = |at: usize, default: f64| given.get(at).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (m, n, rank) = (number(0, 6400.0) as usize, number(1, 2560.0) as usize, number(2, 128.0) as usize);
    let (tolerance, threads) = (number(3, 0.005), number(4, 2.0) as usize);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    match pool {
        Ok(pool) => pool.install(|| run(m, n, rank, tolerance)),
        Err(e) => eprintln!("no pool of {threads} threads: {e}"),
    }
}

fn run(m: usize, n: usize, rank: usize, tolerance: f64) {
    println!("{m} x {n}, rank {rank}, tolerance {tolerance}, {} threads", rayon::current_num_threads());
    let best = square();
    let held = delta(m, n);
    let mut fresh = Stream::new(1, "bench");
    for b in [32, 64, 128] {
        pass(&held, b.min(n), best, &mut fresh);
    }
    orthogonalization(n, 2 * rank, (rank / 4).max(16), best, &mut fresh);
    rayleigh_ritz(m, 2 * rank, best, &mut fresh);
    if m.min(n) <= 3000 {
        let seconds = clock(|| drop(gram_matrix(&held)));
        rate("Gram matrix (f64, triangle)", m * n * m.min(n), seconds, best);
    }
    whole(&held, rank, tolerance, best);
}

/// The rate of a large square product in f32, both threads at it, in flop/s.
fn square() -> f64 {
    let mut fresh = Stream::new(0, "square");
    let (a, b) = (fresh.gaussian(SQUARE, SQUARE), fresh.gaussian(SQUARE, SQUARE));
    let mut c = Mat::<f32>::zeros(SQUARE, SQUARE);
    let seconds = clock(|| matmul(c.as_mut(), Accum::Replace, &a, &b, 1.0, Par::rayon(0)));
    let best = 2.0 * (SQUARE as f64).powi(3) / seconds;
    println!("{:<44} {:>8.1} GFLOP/s", "square product", best / 1e9);
    best
}

fn pass(held: &Held, b: usize, best: f64, fresh: &mut Stream) {
    use trephine::factorize::Panels;
    let (m, n) = (held.rows(), held.cols());
    let v = fresh.gaussian(n, b);
    let mut w = Mat::zeros(m, b);
    let mut scratch = Scratch::default();
    let seconds = clock(|| drop(sweep(held, v.as_ref(), w.as_mut(), 1.0, &mut scratch)));
    rate(&format!("pass, {b} columns, panels of {}", panel_rows(m, n).1), 4 * m * n * b, seconds, best);
}

fn orthogonalization(n: usize, d: usize, b: usize, best: f64, fresh: &mut Stream) {
    let (d, b) = (d.min(n / 2), b.min(n / 2));
    let mut basis = fresh.gaussian(n, d);
    let _ = orthonormalize(Mat::zeros(n, 0).as_ref(), 0, &mut basis, fresh);
    let mut block = fresh.gaussian(n, b);
    let seconds = clock(|| drop(orthonormalize(basis.as_ref(), 2 * block.ncols(), &mut block, fresh)));
    rate(&format!("orthogonalization, {b} against {d} columns"), 8 * n * d * b, seconds, best);
}

fn rayleigh_ritz(m: usize, d: usize, best: f64, fresh: &mut Stream) {
    let w = fresh.gaussian(m, d);
    let mut gram = Mat::new();
    let seconds = clock(|| gram = cross_gram(w.as_ref(), w.as_ref()));
    rate(&format!("W^T·W of {d} columns (f64)"), 2 * m * d * d, seconds, best);
    let seconds = clock(|| drop(eigen(gram.as_ref())));
    rate(&format!("eigenvectors of {d} (9 d^3, one thread)"), 9 * d.pow(3), seconds, best);
}

fn whole(held: &Held, rank: usize, tolerance: f64, best: f64) {
    use trephine::factorize::Panels;
    let (m, n) = (held.rows(), held.cols());
    let norm2: f64 = held.values().par_chunks(1 << 16).map(norm2).collect::<Vec<_>>().iter().sum();
    for method in [Method::Krylov, Method::Gram] {
        let request = Request { rank, energy: None, tolerance, method, seed: 0 };
        if method == Method::Gram && m.min(n) > 3000 {
            continue;
        }
        let start = Instant::now();
        let Ok(f) = factorize(held, norm2, "bench", &request) else { return };
        let seconds = start.elapsed().as_secs_f64();
        rate(&format!("whole module, {method:?}"), f.flops as usize, seconds, best);
        let error = residual(held, &f.left, &f.right).map_or(f64::NAN, |r| r.residual2) / norm2;
        println!(
            "  basis {}, {} passes, relative error {:.6} (from Ritz values {:.6}), estimated excess {:.2e}",
            f.basis,
            f.passes,
            error.sqrt(),
            (1.0 - f.captured / norm2).sqrt(),
            f.estimated_excess
        );
        let predicted = flops(m, n, &request) / best;
        println!(
            "  predicted {predicted:.2} s, workspace {:.0} MB",
            workspace(m, n, rayon::current_num_threads(), &request) as f64 / 1e6
        );
    }
    let auto = Request { rank, energy: None, tolerance, method: Method::Auto, seed: 0 };
    println!("auto: {:?}", choose(m, n, &auto));
}

/// A signal of decaying strength under noise, as the delta of a fine-tuned and quantized layer.
fn delta(m: usize, n: usize) -> Held {
    let signal = 256.min(m).min(n);
    let mut fresh = Stream::new(2, "signal");
    let mut left = fresh.gaussian(m, signal);
    let right = fresh.gaussian(n, signal);
    for j in 0..signal {
        let strength = 0.5 / (j as f32 + 1.0);
        left.col_as_slice_mut(j).iter_mut().for_each(|x| *x *= strength);
    }
    let mut values = vec![0f32; m * n];
    let rows = 64;
    values.par_chunks_mut(rows * n).enumerate().for_each(|(i, part)| {
        let mut rng = ChaCha8Rng::seed_from_u64(i as u64);
        part.fill_with(|| StandardNormal.sample(&mut rng));
        let height = part.len() / n;
        let left = left.as_ref().subrows(i * rows, height);
        let part = MatMut::from_row_major_slice_mut(part, height, n);
        matmul(part, Accum::Add, left, right.transpose(), 1.0, Par::Seq);
    });
    Held::new(m, n, values).expect("the shape is that of the buffer")
}

fn norm2(values: &[f32]) -> f64 {
    values.iter().map(|x| f64::from(*x).powi(2)).sum()
}

/// Seconds that `work` takes: the better of two.
fn clock(mut work: impl FnMut()) -> f64 {
    let mut once = || {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    once().min(once())
}

fn rate(what: &str, flops: usize, seconds: f64, best: f64) {
    let rate = flops as f64 / seconds;
    println!("{what:<44} {:>8.1} GFLOP/s {:>5.0}% {seconds:>8.3} s", rate / 1e9, 100.0 * rate / best);
}

//! Where the time of a whole run goes, module by module:
//! `cargo bench --bench stages -- BASE TUNED [RANK [TOLERANCE [THREADS]]]`.
//!
//! Each module is read, hashed and factorized one after the other, with nothing beside it; then the same products
//! are made alone. Times are in seconds. "flops" are those of the factorization as a multiple of `2·m·n·r`, the
//! cost of one product with the rank's columns; "needed" is what the final basis costs, two products a column.
//! "products" is the share of the factorization that its passes over the delta take when they are timed alone.

use std::time::Instant;

use faer::linalg::matmul::matmul;
use faer::prelude::*;
use faer::{Accum, Par};
use rayon::prelude::*;
use trephine::checkpoint::{Checkpoint, Module};
use trephine::factorize::parts::{Scratch, Stream, sweep};
use trephine::factorize::{Held, Method, Panels, Request, factorize};

type AnyResult<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> AnyResult<()> {
    let given: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let [base, tuned, options @ ..] = &given[..] else {
        println!("no pair of checkpoints is given: nothing is measured");
        return Ok(());
    };
    let number = |at: usize, default: f64| options.get(at).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (rank, tolerance, threads) = (number(0, 256.0) as usize, number(1, 0.005), number(2, 2.0) as usize);
    let request = Request { rank, energy: None, tolerance, method: Method::Auto, seed: 0 };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    pool.install(|| run(&Checkpoint::open(base)?, &Checkpoint::open(tuned)?, &request))
}

fn run(base: &Checkpoint, tuned: &Checkpoint, request: &Request) -> AnyResult<()> {
    let best = square();
    println!("square product: {:.0} GFLOP/s on {} threads", best / 1e9, rayon::current_num_threads());
    println!(
        "{:<40} {:>7} {:>7} {:>9} {:>6} {:>7} {:>7} {:>8} {:>8}",
        "module", "read", "hash", "factorize", "basis", "flops", "needed", "GFLOP/s", "products"
    );
    let mut total = [0.0; 4];
    let linear = |module: &&Module| module.name().ends_with("_proj");
    for module in base.modules().filter(linear) {
        let partner = tuned.module(module.name()).ok_or("no partner")?;
        let (delta, read) = clock(|| read(base, module, tuned, partner))?;
        let ((), hash) = clock(|| hash(base, module).and_then(|()| hash(tuned, partner)))?;
        let norm2 = delta.values().par_chunks(1 << 16).map(norm2).collect::<Vec<_>>().iter().sum();
        let (factors, took) = clock(|| Ok(factorize(&delta, norm2, module.name(), request)?))?;
        let passes = alone(&delta, factors.basis, factors.passes, factors.method)?;
        let [m, n] = module.shape();
        let unit = 2.0 * (m * n * request.rank.min(m).min(n)) as f64;
        println!(
            "{:<40} {read:>7.3} {hash:>7.3} {took:>9.3} {:>6} {:>7.2} {:>7.2} {:>8.0} {:>7.0}%",
            module.name(),
            factors.basis,
            factors.flops as f64 / unit,
            4.0 * (m * n * factors.basis) as f64 / unit,
            factors.flops as f64 / took / 1e9,
            100.0 * passes / took
        );
        for (sum, value) in total.iter_mut().zip([read, hash, took, passes]) {
            *sum += value;
        }
    }
    let [read, hash, took, passes] = total;
    println!("all: read {read:.2}, hash {hash:.2}, factorize {took:.2}, passes alone {passes:.2}");
    Ok(())
}

/// The delta, read and subtracted as a run does it: slices of rows, all threads at once.
fn read(base: &Checkpoint, module: &Module, tuned: &Checkpoint, partner: &Module) -> AnyResult<Held> {
    let [m, n] = module.shape();
    let (mut values, rows) = (vec![0f32; m * n], (1 << 18) / n + 1);
    values.par_chunks_mut(rows * n).enumerate().try_for_each(|(i, out)| {
        let rows = i * rows..i * rows + out.len() / n;
        let mut subtracted = vec![0f32; out.len()];
        partner.panel(tuned, rows.clone(), out)?;
        module.panel(base, rows, &mut subtracted)?;
        out.iter_mut().zip(&subtracted).for_each(|(out, b)| *out -= b);
        trephine::Result::Ok(())
    })?;
    Ok(Held::new(m, n, values)?)
}

fn hash(checkpoint: &Checkpoint, module: &Module) -> AnyResult<()> {
    module.tensors().par_iter().try_for_each(|tensor| checkpoint.hash(tensor).map(drop))?;
    Ok(())
}

/// Seconds of the passes that a Krylov basis of so many columns took, with nothing between them.
fn alone(delta: &Held, basis: usize, passes: usize, method: Method) -> AnyResult<f64> {
    if method != Method::Krylov || passes == 0 {
        return Ok(0.0);
    }
    let block = Stream::new(0, "alone").gaussian(delta.cols(), basis.div_ceil(passes));
    let mut w = Mat::zeros(delta.rows(), block.ncols());
    let mut scratch = Scratch::default();
    let mut pass = || {
        let start = Instant::now();
        sweep(delta, block.as_ref(), w.as_mut(), 1.0, &mut scratch)?;
        trephine::Result::Ok(start.elapsed().as_secs_f64())
    };
    Ok(pass()?.min(pass()?) * passes as f64)
}

fn norm2(values: &[f32]) -> f64 {
    values.iter().map(|x| f64::from(*x).powi(2)).sum()
}

/// The rate of a large square product in f32 on all threads, in flop/s.
fn square() -> f64 {
    const SIDE: usize = 2048;
    let mut fresh = Stream::new(0, "square");
    let (a, b) = (fresh.gaussian(SIDE, SIDE), fresh.gaussian(SIDE, SIDE));
    let mut c = Mat::<f32>::zeros(SIDE, SIDE);
    let mut once = || {
        let start = Instant::now();
        matmul(c.as_mut(), Accum::Replace, &a, &b, 1.0, Par::rayon(0));
        start.elapsed().as_secs_f64()
    };
    2.0 * (SIDE as f64).powi(3) / once().min(once())
}

fn clock<T>(work: impl FnOnce() -> AnyResult<T>) -> AnyResult<(T, f64)> {
    let start = Instant::now();
    Ok((work()?, start.elapsed().as_secs_f64()))
}

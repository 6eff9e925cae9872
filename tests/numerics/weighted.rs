//! Factors in the norm of a layer's outputs, against dense decompositions in f64 of the same difference and the same
//! second moments.

use faer::Mat;
use half::bf16;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use trephine::factorize::weighted::{Errors, Root, directions, project};
use trephine::factorize::{Held, Method, Request, factorize};

fn gaussian(seed: u64, rows: usize, columns: usize) -> Mat<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Mat::from_fn(rows, columns, |_, _| StandardNormal.sample(&mut rng))
}

/// A change of low rank in quantization noise, `[m, n]`, as f32 numbers.
fn difference(m: usize, n: usize) -> Mat<f64> {
    let change = gaussian(1, m, 6) * gaussian(2, 6, n) * faer::Scale(0.002);
    let noise = gaussian(3, m, n) * faer::Scale(0.01);
    let sum = change + noise;
    Mat::from_fn(m, n, |i, j| f64::from(sum[(i, j)] as f32))
}

/// What the inputs are like.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Moments {
    /// All alike: the norm of the outputs is that of the weights.
    Identity,
    /// Independent inputs of one size.
    Flat,
    /// A few directions that are far larger than all others, as activations of language models have them.
    Decaying,
    /// Fewer samples than inputs.
    Singular,
    /// The diagonal alone.
    Diagonal,
}

/// A sketch `[rows, n]`, in numbers of bf16.
fn sketch(moments: Moments, rows: usize, n: usize) -> Mat<f64> {
    let values = match moments {
        Moments::Identity => Mat::from_fn(n, n, |i, j| f64::from(u8::from(i == j))),
        Moments::Flat | Moments::Diagonal => gaussian(4, rows, n),
        Moments::Singular => gaussian(4, rows / 8, n),
        Moments::Decaying => {
            let sizes = |j: usize| 30.0 / (1.0 + j as f64).powf(0.9);
            let independent = gaussian(5, rows, n);
            Mat::from_fn(rows, n, |i, j| independent[(i, j)] * sizes(j)) * gaussian(6, n, n)
        }
    };
    Mat::from_fn(values.nrows(), n, |i, j| f64::from(bf16::from_f64(values[(i, j)])))
}

fn row_major(mat: &Mat<f64>) -> Vec<f32> {
    (0..mat.nrows()).flat_map(|i| (0..mat.ncols()).map(move |j| mat[(i, j)] as f32)).collect()
}

fn held(mat: &Mat<f64>) -> Held {
    Held::new(mat.nrows(), mat.ncols(), row_major(mat)).unwrap()
}

fn request(rank: usize, method: Method) -> Request {
    Request { rank, energy: None, tolerance: 0.005, method, seed: 0 }
}

/// `R` as numbers and as a root.
fn root(moments: Moments, sketch: &Mat<f64>) -> (Mat<f64>, Root) {
    let n = sketch.ncols();
    let squares = |j: usize| sketch.col(j).iter().map(|x| x * x).sum::<f64>();
    // Not what the sketch has: it is scaled to it.
    let diagonal: Vec<f32> = (0..n).map(|j| (squares(j) * (1.0 + 0.1 * (j % 3) as f64)) as f32).collect();
    let count = 7.0;
    let size = |j: usize| (f64::from(diagonal[j]) / count).sqrt();
    if moments == Moments::Diagonal {
        let exact = Mat::from_fn(n, n, |i, j| if i == j { size(j) } else { 0.0 });
        return (exact, Root::of_diagonal(&diagonal, count).unwrap());
    }
    let values: Vec<bf16> = row_major(sketch).into_iter().map(bf16::from_f32).collect();
    let exact = Mat::from_fn(sketch.nrows(), n, |i, j| sketch[(i, j)] * size(j) / squares(j).sqrt());
    (exact, Root::of_sketch(values, &diagonal, count).unwrap())
}

/// Factors as they are stored in bf16 or f32, and what was said of them.
struct Found {
    left: Mat<f64>,
    right: Mat<f64>,
    rank: usize,
    norm2: f64,
    errors: Errors,
    excess: f64,
    values: Vec<f64>,
}

fn weighted(delta: &Mat<f64>, root: &Root, request: &Request, rounded: bool) -> Found {
    let (m, n) = (delta.nrows(), delta.ncols());
    let delta_held = held(delta);
    let round = |values: &[f32]| -> Vec<f32> {
        values.iter().map(|x| if rounded { bf16::from_f32(*x).to_f32() } else { *x }).collect()
    };
    let found = directions(&delta_held, root, "module", request).unwrap();
    let left = round(&found.left);
    let projected = project(&delta_held, root, &left, found.rank).unwrap();
    let right = round(&projected.right);
    let norms = Errors { weights2: delta.squared_norm_l2(), outputs2: found.norm2 };
    let errors = projected.errors(&delta_held, root, (&left, &right), norms, ("module", 0)).unwrap();
    let k = found.rank;
    Found {
        left: Mat::from_fn(m, k, |i, j| f64::from(left[i * k + j])),
        right: Mat::from_fn(k, n, |i, j| f64::from(right[i * n + j])),
        rank: k,
        norm2: found.norm2,
        errors,
        excess: found.estimated_excess,
        values: found.singular_values,
    }
}

const SHAPES: [(usize, usize, usize, usize); 4] =
    [(150, 120, 260, 8), (120, 160, 140, 16), (400, 90, 320, 4), (40, 200, 300, 4)];

#[test]
fn factors_are_the_best_of_their_rank_for_the_outputs() {
    for moments in [Moments::Flat, Moments::Decaying, Moments::Singular, Moments::Diagonal] {
        for (m, n, rows, rank) in SHAPES {
            let (delta, sketch) = (difference(m, n), sketch(moments, rows, n));
            let (exact, root) = root(moments, &sketch);
            let product = &delta * exact.transpose();
            let values = product.singular_values().unwrap();
            let norm2: f64 = values.iter().map(|s| s * s).sum();
            let best: f64 = values.iter().skip(rank).map(|s| s * s).sum();
            for (method, rounded) in [(Method::Auto, true), (Method::Krylov, false)] {
                let what = format!("{moments:?} {m} x {n}, {rows} rows, rank {rank}, {method:?}");
                let found = weighted(&delta, &root, &request(rank, method), rounded);
                let off = &delta - &found.left * &found.right;
                let (error2, weights2) =
                    ((&off * exact.transpose()).squared_norm_l2(), off.squared_norm_l2());
                let stored = if rounded { 2f64.powi(-8) } else { 1e-5 };
                let bound = (1.005 * best.sqrt()).powi(2) + stored * stored * norm2;
                assert!(error2 <= bound, "{what}: an error of {error2}, the least is {best}");
                let (kept, optimal) = (norm2 - error2, norm2 - best);
                assert!(kept >= 0.95 * optimal, "{what}: captured {kept} of {optimal}");
                let excess = (error2 / best.max(1e-300)).sqrt() - 1.0;
                let honest = found.excess + 1e-4 + stored * stored * norm2 / best.max(1e-300);
                assert!(excess <= honest, "{what}: excess {excess}, estimated {}", found.excess);
                // What is said of them: norms that were never formed are estimates.
                let near = |a: f64, b: f64, share: f64| (a - b).abs() <= share * b + 1e-9 * norm2;
                assert!(near(found.norm2, norm2, 0.03), "{what}: a norm of {} for {norm2}", found.norm2);
                assert!(near(found.errors.outputs2, error2, 0.06), "{what}: {:?} for {error2}", found.errors);
                assert!(
                    near(found.errors.weights2, weights2, 1e-3),
                    "{what}: {:?} for {weights2}",
                    found.errors
                );
                for (found, exact) in found.values.iter().zip(&values).take(rank) {
                    assert!(near(found * found, exact * exact, 0.05), "{what}: {found} for {exact}");
                }
            }
        }
    }
}

#[test]
fn inputs_that_are_all_alike_give_the_plain_factors() {
    let (m, n, rank) = (160, 120, 6);
    let delta = difference(m, n);
    let sketch = sketch(Moments::Identity, n, n);
    let values: Vec<bf16> = row_major(&sketch).into_iter().map(bf16::from_f32).collect();
    let root = Root::of_sketch(values, &vec![1.0; n], 1.0).unwrap();
    let found = weighted(&delta, &root, &request(rank, Method::Auto), false);
    let plain =
        factorize(&held(&delta), delta.squared_norm_l2(), "module", &request(rank, Method::Auto)).unwrap();
    let left = Mat::from_fn(m, rank, |i, j| f64::from(plain.left[i * rank + j]));
    let right = Mat::from_fn(rank, n, |i, j| f64::from(plain.right[i * n + j]));
    let (ours, theirs) = (&found.left * &found.right, left * right);
    let off = (&ours - &theirs).norm_l2() / theirs.norm_l2();
    assert!(off < 1e-5, "{off}");
    let share = found.errors.weights2 / found.errors.outputs2;
    assert!((share - 1.0).abs() < 1e-5, "both errors are one: {:?}", found.errors);
}

#[test]
fn a_difference_of_low_rank_is_had_whole_and_none_gives_none() {
    let (m, n) = (200, 150);
    let delta = gaussian(1, m, 3) * gaussian(2, 3, n) * faer::Scale(0.01);
    let delta = Mat::from_fn(m, n, |i, j| f64::from(delta[(i, j)] as f32));
    for moments in [Moments::Flat, Moments::Decaying, Moments::Singular, Moments::Diagonal] {
        let (_, root) = root(moments, &sketch(moments, 400, n));
        for method in [Method::Auto, Method::Krylov] {
            let found = weighted(&delta, &root, &request(8, method), false);
            assert!((3..=8).contains(&found.rank), "{moments:?}: rank {}", found.rank);
            let off = (&delta - &found.left * &found.right).norm_l2() / delta.norm_l2();
            assert!(off < 1e-5, "{moments:?} {method:?}: {off}");
            assert!(found.errors.weights2.sqrt() < 1e-5 * delta.norm_l2(), "{moments:?}: {:?}", found.errors);
            assert!(
                found.errors.outputs2.sqrt() < 1e-5 * found.norm2.sqrt(),
                "{moments:?}: {:?}",
                found.errors
            );
        }
        let none = weighted(&Mat::zeros(m, n), &root, &request(8, Method::Auto), false);
        assert_eq!((none.rank, none.norm2, none.errors), (0, 0.0, Errors::default()));
    }
}

#[test]
fn an_energy_is_that_of_the_outputs() {
    let (m, n) = (300, 200);
    let delta = difference(m, n);
    let (exact, root) = root(Moments::Decaying, &sketch(Moments::Decaying, 500, n));
    let values = (&delta * exact.transpose()).singular_values().unwrap();
    let norm2: f64 = values.iter().map(|s| s * s).sum();
    let mut sum = 0.0;
    let least = values.iter().take_while(|s| {
        let before = sum;
        sum += *s * *s;
        before < 0.6 * norm2
    });
    let least = least.count();
    let request = Request { energy: Some(0.6), ..request(64, Method::Auto) };
    let found = weighted(&delta, &root, &request, true);
    assert!(found.rank.abs_diff(least) <= 1, "rank {}, {least} would do", found.rank);
    assert!(least < 40, "the test is of a decaying spectrum: {least}");
}

#[test]
fn threads_change_no_bit() {
    for (m, n, rows, rank) in SHAPES {
        let delta = difference(m, n);
        let (_, root) = root(Moments::Decaying, &sketch(Moments::Decaying, rows, n));
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let found = pool.install(|| weighted(&delta, &root, &request(rank, Method::Auto), false));
            (found.left, found.right, found.norm2, found.errors, found.values)
        };
        assert!(run(1) == run(3), "{m} x {n}");
    }
}

#[test]
fn moments_of_another_width_are_refused() {
    let root = Root::of_diagonal(&[1.0; 9], 1.0).unwrap();
    assert!(directions(&held(&difference(20, 10)), &root, "m", &request(2, Method::Auto)).is_err());
    let right = Root::of_diagonal(&[1.0; 10], 1.0).unwrap();
    assert!(directions(&held(&difference(20, 10)), &right, "m", &request(0, Method::Auto)).is_err());
}

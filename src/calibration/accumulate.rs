//! Accumulates the second moments of one module input: the exact diagonal, and a sketch.

use half::bf16;
use half::slice::HalfFloatSliceExt;
use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::{Error, Result};

/// The number of sketch rows that each input row is added to.
const ENTRIES: usize = 8;

/// Features that one thread works on at a time.
const FEATURES: usize = 16;

/// `XᵀX` for the rows `x` of an input: its diagonal in f64, and S·X, where S has random signs and the mean of `SᵀS` is
/// the identity.
///
/// If there are no more rows than the sketch may have, S is the identity and the sketch is X itself. Otherwise each row
/// of X is added to eight rows of the sketch, one in each eighth of them, with a random sign and the factor 1/√8: an
/// oblivious sparse norm-approximating projection (Nelson and Nguyên 2013, "OSNAP"; its use for sketches of streams:
/// Tropp et al. 2019, section 3.9). Unlike a Gaussian S it preserves the norm of every single row, and needs no matrix
/// product.
#[derive(Debug)]
pub struct Accumulator {
    width: usize,
    count: usize,
    seen: usize,
    rows: usize,
    diagonal: Vec<f64>,
    sketch: Sketch,
}

#[derive(Debug)]
enum Sketch {
    /// `[width, rows]`: X itself.
    Samples(Vec<bf16>),
    /// `[width, rows]`: sums.
    Sums(Vec<f32>, Box<ChaCha8Rng>),
}

impl Accumulator {
    /// An accumulator for the input `name` with `count` rows of `width` values; the sketch has at most `k` rows.
    pub fn new(name: &str, width: usize, count: usize, k: usize, seed: u64) -> Accumulator {
        let rows = count.min(k);
        let sketch = if count <= k {
            Sketch::Samples(vec![bf16::ZERO; width * rows])
        } else {
            let key = blake3::hash(format!("calibration\0{seed}\0{name}").as_bytes());
            Sketch::Sums(vec![0.0; width * rows], Box::new(ChaCha8Rng::from_seed(*key.as_bytes())))
        };
        Accumulator { width, count, seen: 0, rows, diagonal: vec![0.0; width], sketch }
    }

    /// The most bytes that an input holds while it is accumulated and written.
    pub fn bytes(width: usize, count: usize, k: usize) -> u64 {
        let each = if count <= k { size_of::<bf16>() } else { size_of::<f32>() };
        (width * (count.min(k) * each + size_of::<f64>())) as u64
    }

    /// Adds rows of X: columns of `values`, `[width, tokens]` row-major. `spread` runs independent tasks, on any number
    /// of threads.
    ///
    /// # Panics
    /// If `values` has another shape, or if there are more rows than announced.
    pub fn add(&mut self, values: &[f32], tokens: usize, spread: impl FnOnce(Vec<Task<'_>>)) {
        assert_eq!(values.len(), self.width * tokens, "rows of an input");
        assert!(self.seen + tokens <= self.count, "{} + {tokens} rows of {}", self.seen, self.count);
        if tokens == 0 {
            return;
        }
        let (first, rows) = (self.seen, self.rows);
        self.seen += tokens;
        let draws = match &mut self.sketch {
            Sketch::Samples(_) => Vec::new(),
            Sketch::Sums(_, rng) => (0..tokens).flat_map(|_| draw(rng, rows)).collect(),
        };
        let diagonal = self.diagonal.chunks_mut(FEATURES);
        let values = values.chunks(FEATURES * tokens);
        let size = (FEATURES * rows).max(1);
        let draws = &draws;
        let tasks = match &mut self.sketch {
            Sketch::Samples(samples) => {
                let parts = diagonal.zip(values).zip(samples.chunks_mut(size));
                parts
                    .map(|((diagonal, values), samples)| Task {
                        diagonal,
                        values,
                        tokens,
                        rows,
                        to: To::Samples(samples, first),
                    })
                    .collect()
            }
            Sketch::Sums(sums, _) => {
                let parts = diagonal.zip(values).zip(sums.chunks_mut(size));
                parts
                    .map(|((diagonal, values), sums)| Task {
                        diagonal,
                        values,
                        tokens,
                        rows,
                        to: To::Sums(sums, draws),
                    })
                    .collect()
            }
        };
        spread(tasks);
    }

    /// Checks that all rows were added and that they are finite.
    ///
    /// # Errors
    /// Rows are missing; NaN or infinity among them.
    pub fn check(&self, name: &str) -> Result<()> {
        if self.seen != self.count {
            return Err(Error::unexpected(format!("an input received {} of {} rows", self.seen, self.count))
                .tensor(name));
        }
        if self.diagonal.iter().any(|sum| !(*sum as f32).is_finite()) {
            return Err(Error::input("the input of this module is not finite on the calibration text")
                .tensor(name)
                .hint("the model's weights may hold NaN or infinities: check with `trephine probe`"));
        }
        Ok(())
    }

    /// The number of values in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The number of rows of X.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The number of rows of the sketch.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The diagonal of `XᵀX`, rounded once.
    pub fn diagonal(&self) -> Vec<f32> {
        self.diagonal.iter().map(|sum| *sum as f32).collect()
    }

    /// Some rows of the sketch, row-major, in bf16.
    pub fn sketch(&self, rows: std::ops::Range<usize>) -> Vec<bf16> {
        let mut out = vec![bf16::ZERO; rows.len() * self.width];
        let mut line = vec![bf16::ZERO; rows.len()];
        for feature in 0..self.width {
            let start = feature * self.rows;
            let range = start + rows.start..start + rows.end;
            match &self.sketch {
                Sketch::Samples(samples) => line.copy_from_slice(&samples[range]),
                Sketch::Sums(sums, _) => line.convert_from_f32_slice(&sums[range]),
            }
            out[feature..].iter_mut().step_by(self.width).zip(&line).for_each(|(to, from)| *to = *from);
        }
        out
    }
}

/// Some features of some rows of X, and their destination.
pub struct Task<'a> {
    diagonal: &'a mut [f64],
    /// `[features, tokens]`.
    values: &'a [f32],
    tokens: usize,
    rows: usize,
    to: To<'a>,
}

enum To<'a> {
    /// `[features, rows]`, from this row on.
    Samples(&'a mut [bf16], usize),
    /// `[features, rows]`, and for each token its entries.
    Sums(&'a mut [f32], &'a [(u32, f32)]),
}

impl Task<'_> {
    /// Adds the values.
    pub fn run(self) {
        let lines = self.values.chunks(self.tokens);
        for (sum, line) in self.diagonal.iter_mut().zip(lines.clone()) {
            *sum += line.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
        }
        match self.to {
            To::Samples(samples, first) => {
                for (line, row) in lines.zip(samples.chunks_mut(self.rows)) {
                    row[first..first + self.tokens].convert_from_f32_slice(line);
                }
            }
            To::Sums(sums, draws) => {
                let each = draws.len() / self.tokens;
                for (line, row) in lines.zip(sums.chunks_mut(self.rows)) {
                    for (value, draws) in line.iter().zip(draws.chunks(each)) {
                        draws.iter().for_each(|(to, sign)| row[*to as usize] += sign * value);
                    }
                }
            }
        }
    }
}

/// The rows of the sketch that a row of X is added to, each with its factor.
fn draw(rng: &mut ChaCha8Rng, rows: usize) -> Vec<(u32, f32)> {
    let entries = ENTRIES.min(rows);
    let factor = 1.0 / (entries as f32).sqrt();
    let draw_entry = |entry: usize| {
        let (start, end) = (entry * rows / entries, (entry + 1) * rows / entries);
        let word = rng.next_u64();
        // The high half determines the row (the bias is negligible: there are far fewer rows than 2^32), the lowest bit
        // the sign.
        let place = ((word >> 32) * (end - start) as u64) >> 32;
        ((start as u64 + place) as u32, if word & 1 == 0 { factor } else { -factor })
    };
    (0..entries).map(draw_entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(width: usize, tokens: usize, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..width * tokens).map(|_| (rng.next_u32() as f32 / 2f32.powi(31) - 1.0) * 2.0).collect()
    }

    fn now(tasks: Vec<Task<'_>>) {
        tasks.into_iter().for_each(Task::run);
    }

    #[test]
    fn few_rows_are_kept_as_they_are() {
        let x = noise(33, 5, 1);
        let mut moments = Accumulator::new("a", 33, 5, 8, 0);
        moments.add(&x, 5, now);
        moments.check("a").unwrap();
        assert_eq!(moments.rows(), 5);
        let sketch = moments.sketch(0..5);
        for (feature, line) in x.chunks(5).enumerate() {
            let sum: f64 = line.iter().map(|v| f64::from(*v).powi(2)).sum();
            assert_eq!(moments.diagonal()[feature], sum as f32);
            for (token, value) in line.iter().enumerate() {
                assert_eq!(sketch[token * 33 + feature], bf16::from_f32(*value));
            }
        }
    }

    #[test]
    fn a_sketch_keeps_second_moments_in_the_mean() {
        let (width, tokens, k) = (6, 400, 64);
        let x = noise(width, tokens, 2);
        let exact = |a: usize, b: usize| -> f64 {
            (0..tokens).map(|t| f64::from(x[a * tokens + t]) * f64::from(x[b * tokens + t])).sum()
        };
        let mut mean = vec![0f64; width * width];
        let runs = 300;
        for seed in 0..runs {
            let mut moments = Accumulator::new("a", width, tokens, k, seed);
            moments.add(&x, tokens, now);
            let sketch = moments.sketch(0..k);
            for a in 0..width {
                for b in 0..width {
                    let sum: f64 =
                        (0..k).map(|r| sketch[r * width + a].to_f64() * sketch[r * width + b].to_f64()).sum();
                    mean[a * width + b] += sum / runs as f64;
                }
            }
        }
        for a in 0..width {
            for b in 0..width {
                // A single sketch is off by about |x_a||x_b|/√k; the mean over the runs by √runs less.
                let spread = (exact(a, a) * exact(b, b) / k as f64 / runs as f64).sqrt();
                let off = (mean[a * width + b] - exact(a, b)).abs();
                assert!(off < 4.5 * spread + 2e-3 * exact(a, a), "{a} {b}: {off} of {spread}");
            }
        }
    }

    #[test]
    fn how_rows_are_cut_changes_nothing() {
        let (width, tokens) = (40, 90);
        let x = noise(width, tokens, 3);
        let part = |range: std::ops::Range<usize>| -> Vec<f32> {
            x.chunks(tokens).flat_map(|line| line[range.clone()].to_vec()).collect()
        };
        for k in [16, 200] {
            let mut whole = Accumulator::new("a", width, tokens, k, 7);
            whole.add(&part(0..32), 32, now);
            whole.add(&part(32..90), 58, |tasks| tasks.into_iter().rev().for_each(Task::run));
            let mut again = Accumulator::new("a", width, tokens, k, 7);
            again.add(&part(0..32), 32, |tasks| tasks.into_iter().rev().for_each(Task::run));
            assert!(again.check("a").is_err(), "rows are missing");
            again.add(&part(32..90), 58, now);
            assert_eq!(
                (whole.diagonal(), whole.sketch(0..whole.rows())),
                (again.diagonal(), again.sketch(0..whole.rows()))
            );
        }
        let other = |name: &str, seed| {
            let mut moments = Accumulator::new(name, width, tokens, 16, seed);
            moments.add(&x, tokens, now);
            moments.sketch(0..16)
        };
        assert_ne!(other("a", 7), other("b", 7));
        assert_ne!(other("a", 7), other("a", 8));
    }
}

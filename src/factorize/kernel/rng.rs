//! The random numbers of one module.

use faer::Mat;
use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use rand_distr::{Distribution, StandardNormal};

/// Gaussian numbers from ChaCha, seeded by (seed, module name): the same regardless of what was factorized before, or
/// where.
#[derive(Clone, Debug)]
pub struct Stream(ChaCha12Rng);

impl Stream {
    /// The stream of `module` under `seed`.
    pub fn new(seed: u64, module: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("trephine 2026 random stream of a module");
        hasher.update(&seed.to_le_bytes());
        hasher.update(module.as_bytes());
        Stream(ChaCha12Rng::from_seed(*hasher.finalize().as_bytes()))
    }

    /// Fills `column` with independent standard normal numbers.
    pub(crate) fn fill(&mut self, column: &mut [f32]) {
        column.fill_with(|| StandardNormal.sample(&mut self.0));
    }

    /// A Gaussian matrix `[rows, cols]`.
    pub fn gaussian(&mut self, rows: usize, cols: usize) -> Mat<f32> {
        let mut mat = Mat::zeros(rows, cols);
        for j in 0..cols {
            self.fill(mat.col_as_slice_mut(j));
        }
        mat
    }
}

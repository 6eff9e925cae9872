//! Compares quantization noise with the change of a fine-tune, streaming through the weights, and computes how far
//! adapters can reach.
//!
//! # The question
//! An adapter for a quantized base can be made in two ways. Method A factorizes the change `D = T - B` between two
//! unquantized checkpoints and serves it on the quantized base `Q`. Method B factorizes `C = T - dequant(Q) = D - N_b`
//! and so also corrects the base's quantization noise `N_b = dequant(Q) - B`. Method B starts from the smaller
//! residual, but has to spend some of its rank on noise, and the noise spectrum is nearly flat: a few directions hold
//! little of it. Which method is better depends on the sizes of change and noise, on their spectra and on the rank.
//! [`analyze`] measures all of this for every module; [`fidelity`](crate::commands::fidelity) measures what finished
//! adapters really leave.
//!
//! # What each number means
//! **Norms** ([`Norms`]). Signal to noise is `||D|| / ||N_b||`. Below 1, most of the served weights' error is noise,
//! and `||N_b|| / ||C||`, the floor that Method A cannot go below at any rank, is near 1.
//!
//! **Cosines** ([`Cosine`]). `cos(D, N_b)`: is the noise orthogonal to the change? `cos(N_b, N_t)`, with
//! `N_t = dequant(P) - T` the noise of a quantized *tuned* checkpoint: is the noise the same? Both are compared with
//! chance, given the magnitudes: if every sign were a fair coin, the cosine would have the standard error
//! `sqrt(sum a^2 b^2) / (||a|| ||b||)`. That is more than the `1/sqrt(mn)` of independent numbers, since both noises
//! are large where weights are large; with `1/sqrt(mn)`, equal magnitudes alone would count as significant. `p` is
//! two-sided, and a module counts as significant after Benjamini and Hochberg's procedure over all modules.
//! *Significant is not large*: over millions of weights, a cosine of 0.01 is far from chance, and means that a
//! ten-thousandth of the energy is shared. The verdict considers both.
//!
//! **Magnitude correlation.** Pearson's correlation of `|N_b|` and `|N_t|`: the pattern of the noise follows the
//! weights and their blocks, so it is shared even where the signs are not. If it and the cosine are near 1, training
//! moved most weights by less than a quantization step, and both checkpoints have the same codes.
//!
//! **Subspaces** ([`Subspaces`]). The principal angles between the `k` leading left and right singular subspaces of
//! `D` and `N_b`; the mean squared cosine is `k/n` for random ones. For noise, read this with care: its spectrum is
//! flat, vectors of nearly equal values rotate freely into each other, and "the `k` leading directions" are not well
//! defined (the gaps show it). The *captured energies* do not depend on such rotations: how much of `D` is in the
//! noise's leading directions, and how much of `N_b` in the change's, each with the value for random directions.
//! Trust those figures.
//!
//! **What Method B keeps** ([`MethodB`]). Its adapter is the projection of `C = D - N_b` onto `r` directions: a piece
//! of the change minus a piece of the noise. `change_left`, compared with `change_by_method_a`, shows how much of the
//! change it gives up, `spent_on_noise` is the share of its energy that is noise, and `noise_directions` the number of
//! the `r` directions that carry more noise than change.
//!
//! **What remains** ([`Remaining`]). `||C - B·A|| / ||C||` for the best adapter of either method: the distance of
//! the served weights from the tuned ones, relative to no adapter. It is computed from the same factorizations,
//! without making an adapter; [`fidelity`](crate::commands::fidelity) gives the same for adapters on disk,
//! including their rounding.
//!
//! **Rank** ([`SpectrumAboveNoise`]). Noise alone would have singular values up to `sigma (sqrt(m) + sqrt(n))` with
//! `sigma = ||N_b|| / sqrt(mn)`, the edge of Marchenko and Pastur's law. The suggested rank counts the values of `C`
//! above Gavish and Donoho's optimal hard threshold for known noise ([`marchenko_pastur`](stats::marchenko_pastur)),
//! some 10 to 30 % higher; below it, a direction of `C` holds more noise than change. This theory assumes independent
//! noise of one size. Real noise has rows and columns of different size, and its largest value is a little above the
//! edge, so that value is given too. Method B does not waste a rank above the suggested one, but gains only noise
//! correction from it, at the price of a flat spectrum. Only converged singular values are counted; if all of them are
//! above the threshold, the suggestion is marked as a lower bound.
//!
//! # What follows, and what does not
//! A distance of weights is no verdict. A fine-tune lowers the loss to first order, less noise only to second, so
//! where the change is smaller than the noise an adapter that holds the change serves better than one whose weights
//! are nearer. Measured on SmolLM2-135M (change 0.3 % of the weights; noise 2.7 % in block FP8, 9.5 % in NF4): at rank
//! 32 plain Method B leaves the shorter distance and the higher loss, by 0.08 and 0.11 nats. What speaks for a choice
//! is how much of what Method B keeps is noise (`spent_on_noise`), and what decides it is the loss
//! ([`evaluate`](crate::commands::evaluate)). With a calibration, Method B corrects the noise where it matters to the
//! outputs ([`factorize::weighted`](crate::factorize::weighted)).
//!
//! The example is the pair in the repository's `tests/data` (a small fine-tuned Qwen3, with its base in block FP8). `D`
//! is 3.50 times `N_b` in norm (9.3 % and 2.6 % of the weights). Noise and change are orthogonal: the cosine is -0.0003
//! with a standard error of 0.0012. The noises of base and tuned are nearly independent: the cosine is 0.011 with a
//! standard error of 0.0022 (p = 6e-7, significant in 3 of 21 modules: a trace, a ten-thousandth of the energy), though
//! their magnitudes have a correlation of 0.52. The noise's leading 16 directions hold 8.1 % of the change, random ones
//! 8.1 %. Suggested ranks range from 30 to 107, with a median of 53.
//!
//! | rank | Method A leaves | Method B leaves | noise in what B keeps |
//! |---:|---:|---:|---:|
//! | 8 | 80.2 % | 79.8 % | 0.8 % |
//! | 16 | 70.1 % | 69.1 % | 1.2 % |
//! | 32 | 56.4 % | 54.1 % | 1.8 % |
//! | 64 | 40.7 % | 34.7 % | 3.0 % |
//! | any | 27.5 % | | |
//!
//! At low rank the methods hold the same: the leading directions of `C` are those of `D`, and neither method touches
//! the noise, which is orthogonal to them and spread over all directions. Below the suggested rank, while the change
//! itself is not yet exhausted, Method A loses nothing, and gives an adapter that fits any quantization of the same
//! base. Beyond it Method A's distance reaches its floor, 27.5 % here, while Method B's goes on to zero at full rank
//! (`k_proj` and `v_proj`, which have 64 rows, are exact at rank 64). With the same pair in INT4 (groups of 32),
//! signal to noise is 0.98, and at rank 16 the distances are 85.5 % (Method A) and 79.6 % (Method B); the noises then
//! share more (a cosine of 0.17), since more weights keep their codes.

pub(crate) mod job;
mod matrix;
pub(crate) mod module;
pub(crate) mod plan;
pub(crate) mod pooled;
pub(crate) mod quartet;
pub(crate) mod record;
pub(crate) mod single_pass;
pub mod stats;
pub(crate) mod verdict;
pub use self::job::{analyze, analyze_part, assemble};
pub use self::quartet::{AnalysisOptions, Analyzing};
pub use self::record::{
    ANALYSIS, ANALYSIS_VERSION, About, Analysis, Angles, Cosine, Group, LeftAside, MethodB, ModuleAnalysis,
    Norms, Pooled, Remaining, SpectrumAboveNoise, Statement, Subspaces,
};

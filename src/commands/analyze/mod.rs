//! What weights look like, in a stream: quantization noise beside the change of a fine-tune, and how far adapters come.
//!
//! # The question
//! An adapter for a quantized base can be made in two ways. Method A factorizes the change `D = T - B` of two unquantized
//! checkpoints and serves it on the quantized base `Q`; Method B factorizes `C = T - dequant(Q) = D - N_b` and so corrects the
//! base's quantization noise `N_b = dequant(Q) - B` along the way. Method B starts from the smaller residual, but it has to spend
//! some of its rank on noise, and noise is nearly flat: no few directions hold much of it. Which is better depends on the sizes of
//! change and noise, on their spectra and on the rank. [`analyze`] measures all of that for every module; [`fidelity`](crate::commands::fidelity) measures
//! what finished adapters really leave.
//!
//! # What each number means
//! **Norms** ([`Norms`]). Signal to noise is `||D|| / ||N_b||`. Below 1 most of what the served weights are off by is noise, and
//! `||N_b|| / ||C||`, the floor that Method A cannot go below at any rank, is near 1.
//!
//! **Cosines** ([`Cosine`]). `cos(D, N_b)`: is the noise orthogonal to the change? `cos(N_b, N_t)`, with `N_t = dequant(P) - T` the
//! noise of a quantized *tuned* checkpoint: is the noise the same? Both are compared with chance, given the magnitudes: if every
//! sign were a fair coin, the cosine would have the standard error `sqrt(sum a^2 b^2) / (||a|| ||b||)`. That is more than the
//! `1/sqrt(mn)` of independent numbers, since both noises are large where weights are large; with `1/sqrt(mn)` equal magnitudes
//! alone would be called significant. `p` is two-sided, and a module counts as significant after Benjamini and Hochberg's procedure
//! over all modules. *Significant is not large*: over millions of weights a cosine of 0.01 is far from chance, and means that a
//! ten-thousandth of the energy is shared. The verdict goes by both.
//!
//! **Magnitude correlation.** Pearson's, of `|N_b|` and `|N_t|`: the pattern of the noise follows the weights and their blocks, so
//! it is shared even where the signs are not. Near 1 together with a cosine near 1: training moved most weights by less than a
//! step of the quantization, and both checkpoints fall on the same codes.
//!
//! **Subspaces** ([`Subspaces`]). The principal angles between the `k` leading left and right singular subspaces of `D` and `N_b`;
//! the mean squared cosine is `k/n` for random ones. For noise this has to be read with care: its spectrum is flat, vectors of
//! nearly equal values turn freely into each other, and "the `k` leading directions" are not well defined (the gaps say so). The
//! *captured energies* do not depend on such turns: how much of `D` lies in the noise's leading directions, and how much of `N_b`
//! in the change's, each beside what random directions hold. Those are the figures to trust.
//!
//! **What Method B keeps** ([`MethodB`]). Its adapter is the projection of `C = D - N_b` on `r` directions: a piece of the change
//! minus a piece of the noise. `change_left` beside `change_by_method_a` is what it gives up of the change, `spent_on_noise` the
//! share of its energy that is noise, `noise_directions` how many of the `r` carry more noise than change.
//!
//! **What is left** ([`Remaining`]). `||C - B·A|| / ||C||` for the best adapter of either method: how far the served weights stay from
//! the tuned ones, relative to no adapter. It is computed from the same factorizations, without making an adapter; [`fidelity`](crate::commands::fidelity)
//! gives the same for adapters on disk, their rounding included.
//!
//! **Rank** ([`SpectrumAboveNoise`]). Noise alone would fill singular values up to `sigma (sqrt(m) + sqrt(n))` with
//! `sigma = ||N_b|| / sqrt(mn)`, the edge of Marchenko and Pastur's law. The suggested rank counts the values of `C` above Gavish and
//! Donoho's optimal hard threshold for known noise ([`marchenko_pastur`](stats::marchenko_pastur)), some 10 to 30 % higher; below it a direction of `C` holds
//! more noise than change. That theory is of independent noise of one size. Real noise has rows and columns of different size and
//! its largest value is a little above the edge; so that is given too. A rank above the suggested one is not wasted by Method B,
//! but what it buys is noise correction at the flat spectrum's price. Only converged singular values are counted; where all of them
//! are above the threshold, the suggestion is marked as a lower bound.
//!
//! # When Method A is enough, and when B pays
//! The pair of the repository's `tests/data` (a small Qwen3 trained on, its base in block FP8) as example. `D` is 3.50 times `N_b` in
//! norm (9.3 % and 2.6 % of the weights). Noise and change are orthogonal: the cosine is -0.0003 with a standard error of 0.0012. The
//! noises of base and tuned are nearly independent: 0.011 with a standard error of 0.0022 (p = 6e-7, significant in 3 of 21 modules: a
//! trace is there, a ten-thousandth of the energy), though their magnitudes correlate by 0.52. The noise's leading 16 directions hold
//! 8.1 % of the change, random ones 8.1 %. Suggested ranks go from 30 to 107, 53 in the median.
//!
//! | rank | Method A leaves | Method B leaves | of what B keeps, noise |
//! |---:|---:|---:|---:|
//! | 8 | 80.2 % | 79.8 % | 0.8 % |
//! | 16 | 70.1 % | 69.1 % | 1.2 % |
//! | 32 | 56.4 % | 54.1 % | 1.8 % |
//! | 64 | 40.7 % | 34.7 % | 3.0 % |
//! | any | 27.5 % | | |
//!
//! At low rank the methods are equal: the leading directions of `C` are those of `D`, and noise, orthogonal to them and spread over
//! all directions, is touched by neither. **Method A is enough** where the rank is below the suggested one, that is while the change
//! itself is not yet exhausted; it also gives an adapter that fits any quantization of the same base. **Method B pays** where the rank
//! goes beyond that: Method A comes to its floor, 27.5 % here, while Method B goes on, to nothing at full rank (`k_proj` and `v_proj`,
//! which have 64 rows, are exact at rank 64). The same holds at low ranks where the noise is as large as the change. With the
//! same pair in INT4 (groups of 32) signal to noise is 0.98, and at rank 16 Method A leaves 85.5 %, Method B 79.6 %; the noises share
//! more then (a cosine of 0.17), since more weights stay on the codes they were on. That noise and change are orthogonal is what
//! makes the choice one of energies alone: Method B never works against the change.

pub(crate) mod job;
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

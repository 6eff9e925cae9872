//! `analysis.json`: change and noise, by module, by group and in total. The same checkpoints and options give the same
//! bytes: the file records no times, threads or memory limits.
//!
//! With the four checkpoints base `B`, quantized base `Q`, tuned `T` and quantized tuned `P`, the letters below are
//! `D = T - B` (the change), `N_b = dequant(Q) - B` (the base's noise), `N_t = dequant(P) - T` (the noise of the
//! tuned one) and `C = T - dequant(Q) = D - N_b`, which Method B factorizes. Norms are Frobenius norms; an *energy*
//! is the square of a norm.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::checkpoint::identity::Identity;
use crate::delta::record::{Side, Source, TensorRecord};

/// The name of the file.
pub const ANALYSIS: &str = "analysis.json";

/// The version of the file's format. It changes when a number is removed or changes its meaning, but not when one is
/// added.
pub const ANALYSIS_VERSION: u32 = 1;

/// The whole of `analysis.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Analysis {
    /// [`ANALYSIS_VERSION`] of the program that wrote it.
    pub version: u32,
    /// Version of the program.
    pub trephine: String,
    /// The options that determine the result: `rank`, `include`, `exclude`, `seed`.
    pub options: Map<String, Value>,
    /// The instruction set that the products used; a different one may round differently.
    pub simd: String,
    /// The files that were read from, by checkpoint (`base`, `base_quantized`, `tuned`, `tuned_quantized`): names,
    /// sizes, digests of their headers.
    pub inputs: BTreeMap<Side, Identity>,
    /// `B`.
    pub base: Source,
    /// `Q`.
    pub base_quantized: Source,
    /// `T`.
    pub tuned: Source,
    /// `P`; absent if this program quantized `T`.
    pub tuned_quantized: Option<Source>,
    /// The origin of `P`, in words: `a checkpoint`, or the scheme with which `T` was quantized.
    pub tuned_noise: String,
    /// Share of false discoveries that [`Cosine::significant`] allows.
    pub false_discovery_rate: f64,
    /// Remarks, for example that names were paired by a prefix.
    pub notes: Vec<String>,
    /// The conclusions in words, the most important first.
    pub verdict: Vec<Statement>,
    /// All modules together.
    pub total: Pooled,
    /// By kind of module, for example `q_proj`, in order of the kinds' names.
    pub kinds: Vec<Group>,
    /// By layer, in order of the layers' numbers; without modules outside all layers.
    pub layers: Vec<Group>,
    /// Every module, by name.
    pub modules: Vec<ModuleAnalysis>,
    /// Modules of the base that were selected but not analyzed, with the reason, by name.
    pub left_out: Vec<LeftAside>,
    /// Every tensor that was read, by checkpoint and name.
    #[serde(default)]
    pub tensors: Vec<TensorRecord>,
}

/// One sentence of the verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Statement {
    /// Its subject.
    pub about: About,
    /// The sentence, with its numbers.
    pub text: String,
    /// The numbers that it is based on, by name.
    pub figures: BTreeMap<String, f64>,
}

/// The subject of a sentence of the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum About {
    /// Whether Method A is enough or Method B pays.
    Method,
    /// How large the change is compared with the noise.
    Size,
    /// Whether base and tuned checkpoint carry the same noise.
    SameNoise,
    /// Whether the noise is orthogonal to the change.
    Orthogonality,
    /// Whether the leading directions of change and noise are the same.
    Subspaces,
    /// The rank that the noise leaves room for.
    Rank,
}

/// A module that was selected but not analyzed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftAside {
    /// Its name in the base.
    pub name: String,
    /// Why, in words.
    pub reason: String,
}

/// One module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModuleAnalysis {
    /// Its name in the base, without `.weight`.
    pub name: String,
    /// Its kind, for example `q_proj`.
    pub kind: String,
    /// The number of its layer, if its name has one.
    pub layer: Option<u32>,
    /// `[out, in]`: `m` and `n` below.
    pub shape: [usize; 2],
    /// Whether `Q` stores it quantized. If not, `N_b` is whatever else differs, usually zero.
    pub quantized: bool,
    /// Norms.
    pub norms: Norms,
    /// Share of elements that are exactly zero in `D`: weights that training did not move, or by less than a step of
    /// their type.
    pub unchanged: f64,
    /// `cos(D, N_b)`: is the noise orthogonal to the change?
    pub change_and_noise: Cosine,
    /// `cos(N_b, N_t)`: is the noise the same in both?
    pub noise_and_noise: Cosine,
    /// Pearson's correlation of `|N_b|` and `|N_t|` over all elements: is the noise's pattern shared, whatever its
    /// signs? Absent if either is constant.
    pub magnitude_correlation: Option<f64>,
    /// Subspaces of leading singular vectors, for k = 8, 64 and the rank, limited to what the module has; by k.
    pub subspaces: Vec<Subspaces>,
    /// What Method B keeps at the rank; absent if `C` is zero.
    pub method_b: Option<MethodB>,
    /// What remains of `C` with a LoRA of the rank: the error of the served weights.
    pub remaining: Remaining,
    /// Singular values compared with the noise.
    pub spectrum: SpectrumAboveNoise,
}

/// The norms of one module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Norms {
    /// `||B||`.
    pub base: f64,
    /// `||D||`.
    pub change: f64,
    /// `||N_b||`.
    pub base_noise: f64,
    /// `||N_t||`.
    pub tuned_noise: f64,
    /// `||C||`, `C = T - dequant(Q)`: how far the served base is from the tuned weights without an adapter.
    pub corrective: f64,
    /// `||D|| / ||N_b||`; absent if there is no noise.
    pub signal_to_noise: Option<f64>,
}

/// The cosine of two matrices seen as vectors, and what chance alone would give.
///
/// Under the null hypothesis, each element keeps its magnitudes, and the sign of the product is a fair coin,
/// independently for every element. The cosine then has the mean 0 and the standard error
/// `sqrt(sum a^2 b^2) / (||a|| ||b||)`, larger than `1/sqrt(m n)` if both are large at the same places, as quantization
/// noise is where weights are large.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cosine {
    /// `<a, b> / (||a|| ||b||)`; 0 if either is zero.
    pub value: f64,
    /// Its standard error under the null hypothesis; 0 if no element is non-zero in both.
    pub standard_error: f64,
    /// `value / standard_error`; 0 if the error is 0.
    pub z: f64,
    /// Two-sided p-value of `z` as a standard normal: `erfc(|z| / sqrt(2))`; 0 below 1e-308.
    pub p_value: f64,
    /// Whether the null hypothesis is rejected by Benjamini and Hochberg's procedure over all modules. For the pooled
    /// cosine of a group: whether its own p is below [`Analysis::false_discovery_rate`].
    pub significant: bool,
}

/// The relation between the spans of the `k` leading singular vectors of `D` and of `N_b`.
///
/// For a flat spectrum, like that of noise, the leading subspace is not well defined: vectors of nearly equal singular
/// values rotate freely into each other. The captured energies do not suffer from that, and are the figures to trust.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subspaces {
    /// Number of vectors on each side.
    pub k: usize,
    /// The left singular vectors, in a space of `m` dimensions.
    pub left: Angles,
    /// The right singular vectors, in a space of `n` dimensions.
    pub right: Angles,
    /// `1 - s(k+1) / s(k)` of `D`: near 0, its subspace is not well defined. Absent if the next value was not computed.
    pub change_gap: Option<f64>,
    /// The same for `N_b`.
    pub noise_gap: Option<f64>,
    /// Share of `D`'s energy that its own `k` leading directions hold, the most that any `k` directions can.
    pub change_in_change: f64,
    /// Share of `N_b`'s energy that its own `k` leading directions hold.
    pub noise_in_noise: f64,
}

/// Two subspaces of `k` dimensions in a space of `dimension`, one of `D` and one of `N_b`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Angles {
    /// Dimensions of the space.
    pub dimension: usize,
    /// Cosines of the principal angles, the largest first; at most 8.
    pub largest_cosines: Vec<f64>,
    /// Mean of the squares of all `k` cosines: 1 for identical subspaces.
    pub mean_squared_cosine: f64,
    /// Its expected value for two random subspaces, `k / dimension`.
    pub expected: f64,
    /// Share of `D`'s energy in the span of `N_b`'s vectors; `expected` if the two are unrelated.
    pub change_in_noise: f64,
    /// Share of `N_b`'s energy in the span of `D`'s vectors; `expected` if the two are unrelated.
    pub noise_in_change: f64,
}

/// What Method B keeps: `C`'s `k` leading singular triplets `(u, s, v)`. With `P` the projection onto the span of the
/// `u`, its adapter is `P·C = P·D - P·N_b`, a piece of the change and a piece of the noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MethodB {
    /// Number of directions: the rank, or all that `C` has.
    pub k: usize,
    /// Share of `D`'s energy in the span of the `u`: `||P·D||^2 / ||D||^2`.
    pub change_left: f64,
    /// Share of `D`'s energy in the span of the `v`.
    pub change_right: f64,
    /// Share of `D`'s energy that Method A keeps at this rank, in `D`'s own leading directions: the maximum possible.
    pub change_by_method_a: f64,
    /// Share of `N_b`'s energy in the span of the `u`: the noise that the adapter corrects.
    pub noise_left: f64,
    /// Share of `N_b`'s energy in the span of the `v`.
    pub noise_right: f64,
    /// How much of the rank is spent on noise, in [0, 1]: `||P·N_b||^2 / (||P·N_b||^2 + ||P·D||^2)`.
    pub spent_on_noise: f64,
    /// Number of the `k` directions that carry more noise than change: those with `|u^T·N_b·v| > |u^T·D·v|`.
    pub noise_directions: usize,
}

/// What remains of `C` with a LoRA of the rank, relative to `||C||`: 1 is the same as no adapter. Computed before
/// factors are rounded for storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Remaining {
    /// With Method A's adapter, the best approximation of `D` at the rank, on the quantized base.
    pub method_a: f64,
    /// With Method B's adapter, the best approximation of `C` at the rank.
    pub method_b: f64,
    /// With an adapter that holds all of `D`: `||N_b|| / ||C||`, which Method A cannot go below.
    pub noise: f64,
}

/// The singular values of `C` compared with those of noise alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SpectrumAboveNoise {
    /// Noise per element, `sigma = ||N_b|| / sqrt(m n)`.
    pub sigma: f64,
    /// The largest singular value of independent noise of this size: `sigma (sqrt(m) + sqrt(n))`, the square root of
    /// Marchenko and Pastur's upper edge.
    pub edge: f64,
    /// Gavish and Donoho's optimal hard threshold for known noise.
    pub threshold: f64,
    /// The actual largest singular value of `N_b`; above `edge` if the noise is not independent or not of one size.
    pub noise_largest: f64,
    /// Number of singular values of `C` that were computed and have converged. Those beyond are unknown.
    pub known: usize,
    /// Number of those above `edge`.
    pub above_edge: usize,
    /// Number of those above `noise_largest`.
    pub above_noise_largest: usize,
    /// Number of those above `threshold`: the suggested rank.
    pub suggested_rank: usize,
    /// Whether all known values are above `threshold`, so that the true count may be larger.
    pub suggested_is_at_least: bool,
    /// The known singular values of `C`, descending; at most 64.
    pub leading: Vec<f64>,
    /// The singular values of `D`, descending; at most 64.
    pub change_leading: Vec<f64>,
    /// The singular values of `N_b`, descending; at most 64.
    pub noise_leading: Vec<f64>,
}

/// Modules of one kind or one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// A kind, for example `q_proj`, or the number of a layer.
    pub name: String,
    /// Their pooled statistics.
    #[serde(flatten)]
    pub pooled: Pooled,
}

/// Several modules pooled: sums over all their elements, not means of ratios.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pooled {
    /// Number of modules.
    pub modules: usize,
    /// Number of their elements.
    pub elements: u64,
    /// Norms over all of them.
    pub norms: Norms,
    /// `cos(D, N_b)` over all elements.
    pub change_and_noise: Cosine,
    /// `cos(N_b, N_t)` over all elements.
    pub noise_and_noise: Cosine,
    /// Number of modules in which `cos(D, N_b)` is significant.
    pub change_and_noise_significant: usize,
    /// Number of modules in which `cos(N_b, N_t)` is significant.
    pub noise_and_noise_significant: usize,
    /// Mean over the modules that have one, weighted by their number of elements.
    pub magnitude_correlation: Option<f64>,
    /// What remains of `C`, from all energies together.
    pub remaining: Remaining,
    /// Share of the energy of all `D` that Method A keeps at the rank.
    pub change_by_method_a: f64,
    /// Share of the energy of all `D` in the subspaces (left) that Method B keeps at the rank.
    pub change_by_method_b: f64,
    /// How much of Method B's rank is spent on noise, from all energies together.
    pub spent_on_noise: f64,
    /// Suggested ranks: smallest, median, largest. Zeros if there is no module.
    pub suggested_rank: [usize; 3],
    /// Number of modules in which the suggested rank is only a lower bound.
    pub suggested_is_at_least: usize,
}

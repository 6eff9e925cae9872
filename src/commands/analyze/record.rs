//! `analysis.json`: what change and noise look like, module by module, in groups and in all. The same checkpoints and
//! options give the same bytes: no times, threads or budgets stand here.
//!
//! With the four checkpoints base `B`, quantized base `Q`, tuned `T` and quantized tuned `P`, the letters below are
//! `D = T - B` (the change), `N_b = dequant(Q) - B` (the base's noise), `N_t = dequant(P) - T` (the tuned one's noise) and
//! `C = T - dequant(Q) = D - N_b`, what Method B factorizes. Norms are Frobenius norms, an *energy* is the square of one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::checkpoint::identity::Identity;
use crate::delta::record::{Side, Source, TensorRecord};

/// The name of the file.
pub const ANALYSIS: &str = "analysis.json";

/// The version of what follows. A number that is removed or changes its meaning takes another; one that is added does not.
pub const ANALYSIS_VERSION: u32 = 1;

/// The whole of `analysis.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Analysis {
    /// [`ANALYSIS_VERSION`] of the program that wrote it.
    pub version: u32,
    /// Version of the program.
    pub trephine: String,
    /// The options that decide the result: `rank`, `include`, `exclude`, `seed`.
    pub options: Map<String, Value>,
    /// Instruction set that the products ran on: another one may round differently.
    pub simd: String,
    /// The files that were read from, by checkpoint (`base`, `base_quantized`, `tuned`, `tuned_quantized`): names, sizes,
    /// digests of their headers.
    pub inputs: BTreeMap<Side, Identity>,
    /// `B`.
    pub base: Source,
    /// `Q`.
    pub base_quantized: Source,
    /// `T`.
    pub tuned: Source,
    /// `P`; absent where `T` was quantized by this program.
    pub tuned_quantized: Option<Source>,
    /// How `P` came to be, in words: `a checkpoint`, or the scheme by which `T` was quantized.
    pub tuned_noise: String,
    /// Share of false discoveries that the decisions of [`Cosine::significant`] allow for.
    pub false_discovery_rate: f64,
    /// Remarks, as on names that were paired by a prefix.
    pub notes: Vec<String>,
    /// What it comes to, in words, the most important first.
    pub verdict: Vec<Statement>,
    /// All modules together.
    pub total: Pooled,
    /// By kind of module, as `q_proj`, in the order of the kinds' names.
    pub kinds: Vec<Group>,
    /// By layer, in the order of the layers' numbers; modules outside any layer are in none.
    pub layers: Vec<Group>,
    /// Every module, by name.
    pub modules: Vec<ModuleAnalysis>,
    /// Modules of the base that were selected and not analyzed, with the reason, by name.
    pub left_out: Vec<LeftAside>,
    /// Every tensor that was read, by checkpoint and name.
    #[serde(default)]
    pub tensors: Vec<TensorRecord>,
}

/// One sentence of the verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Statement {
    /// What it is about.
    pub about: About,
    /// The sentence, with its numbers.
    pub text: String,
    /// The numbers that it rests on, by name.
    pub figures: BTreeMap<String, f64>,
}

/// What a sentence of the verdict is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum About {
    /// Whether Method A is enough or Method B pays.
    Method,
    /// How large the change is beside the noise.
    Size,
    /// Whether base and tuned checkpoint carry the same noise.
    SameNoise,
    /// Whether the noise is orthogonal to the change.
    Orthogonality,
    /// Whether the leading directions of change and noise are the same.
    Subspaces,
    /// Which rank the noise leaves room for.
    Rank,
}

/// A module that was selected and not analyzed.
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
    /// As the base names it, without `.weight`.
    pub name: String,
    /// As `q_proj`.
    pub kind: String,
    /// The number of its layer, where its name has one.
    pub layer: Option<u32>,
    /// `[out, in]`: `m` and `n` below.
    pub shape: [usize; 2],
    /// Whether `Q` stores it quantized. Where it does not, `N_b` is what else differs, mostly zero.
    pub quantized: bool,
    /// Norms.
    pub norms: Norms,
    /// Elements that are exactly zero in `D`, as a share: weights that training did not move, or not by a step of their type.
    pub unchanged: f64,
    /// `cos(D, N_b)`: is the noise orthogonal to the change?
    pub change_and_noise: Cosine,
    /// `cos(N_b, N_t)`: is the noise the same in both?
    pub noise_and_noise: Cosine,
    /// Pearson's correlation of `|N_b|` and `|N_t|` over all elements: is the noise's pattern shared, whatever its signs?
    /// Absent where either is constant.
    pub magnitude_correlation: Option<f64>,
    /// Subspaces of leading singular vectors, for k = 8, 64 and the rank, as far as the module has that many; by k.
    pub subspaces: Vec<Subspaces>,
    /// What Method B keeps at the rank; absent where `C` is zero.
    pub method_b: Option<MethodB>,
    /// What is left of `C` after a LoRA of the rank: what the served weights would be off by.
    pub remaining: Remaining,
    /// Singular values beside the noise.
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
    /// `||D|| / ||N_b||`; absent where there is no noise.
    pub signal_to_noise: Option<f64>,
}

/// The cosine of two matrices seen as vectors, and what chance alone would give.
///
/// Under the null hypothesis each element keeps its magnitudes and the sign of the product is a fair coin, independently for
/// every element. The cosine then has the mean 0 and the standard error `sqrt(sum a^2 b^2) / (||a|| ||b||)`, larger than
/// `1/sqrt(m n)` wherever both are large at the same places, as quantization noise is where weights are large.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cosine {
    /// `<a, b> / (||a|| ||b||)`; 0 where either is zero.
    pub value: f64,
    /// Its standard error under the null hypothesis; 0 where no element is non-zero in both.
    pub standard_error: f64,
    /// `value / standard_error`; 0 where the error is 0.
    pub z: f64,
    /// Two-sided, of `z` as a standard normal: `erfc(|z| / sqrt(2))`. Below 1e-308 it is 0.
    pub p_value: f64,
    /// Whether the null hypothesis is rejected after Benjamini and Hochberg's procedure over all modules. Of the pooled
    /// cosine of a group: whether its own p is below [`Analysis::false_discovery_rate`].
    pub significant: bool,
}

/// How the spans of the `k` leading singular vectors of `D` and of `N_b` lie to each other.
///
/// For a flat spectrum, as noise has, the leading subspace is not well defined: vectors of nearly equal singular values turn
/// freely into each other. The captured energies do not suffer from that, and are the figures to trust.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subspaces {
    /// Number of vectors on each side.
    pub k: usize,
    /// Among the columns: left singular vectors, in a space of `m` dimensions.
    pub left: Angles,
    /// Among the rows: right singular vectors, in a space of `n` dimensions.
    pub right: Angles,
    /// `1 - s(k+1) / s(k)` of `D`: near 0 its subspace is not well defined. Absent where the next one was not computed.
    pub change_gap: Option<f64>,
    /// The same of `N_b`.
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
    /// Cosines of the principal angles, the largest first; of more than 8 the first 8.
    pub largest_cosines: Vec<f64>,
    /// Mean of the squares of all `k` cosines: 1 for one and the same subspace.
    pub mean_squared_cosine: f64,
    /// What two random subspaces give in the mean, `k / dimension`.
    pub expected: f64,
    /// Share of `D`'s energy in the span of `N_b`'s vectors; `expected` where the two have nothing to do with each other.
    pub change_in_noise: f64,
    /// Share of `N_b`'s energy in the span of `D`'s vectors; `expected` where the two have nothing to do with each other.
    pub noise_in_change: f64,
}

/// What Method B keeps: `C`'s `k` leading singular triplets `(u, s, v)`. With `P` the projection on the span of the `u`, its
/// adapter is `P·C = P·D - P·N_b`, a piece of the change and a piece of the noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MethodB {
    /// Number of directions: the rank, or all that `C` has.
    pub k: usize,
    /// Share of `D`'s energy in the span of the `u`: `||P·D||^2 / ||D||^2`.
    pub change_left: f64,
    /// Share of `D`'s energy in the span of the `v`.
    pub change_right: f64,
    /// Share of `D`'s energy that Method A keeps at this rank, the most that can be: its own leading directions'.
    pub change_by_method_a: f64,
    /// Share of `N_b`'s energy in the span of the `u`: the noise that the adapter takes back.
    pub noise_left: f64,
    /// Share of `N_b`'s energy in the span of the `v`.
    pub noise_right: f64,
    /// How much of the rank is spent on noise, in [0, 1]: `||P·N_b||^2 / (||P·N_b||^2 + ||P·D||^2)`.
    pub spent_on_noise: f64,
    /// How many of the `k` directions carry more noise than change: those with `|u^T·N_b·v| > |u^T·D·v|`.
    pub noise_directions: usize,
}

/// What a LoRA of the rank leaves of `C`, relative to `||C||`: 1 is as far as no adapter. Before factors are rounded for
/// storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Remaining {
    /// With Method A's adapter, the best of the rank for `D`, on the quantized base.
    pub method_a: f64,
    /// With Method B's, the best of the rank for `C`.
    pub method_b: f64,
    /// With any adapter that holds all of `D`: `||N_b|| / ||C||`, which Method A cannot go below.
    pub noise: f64,
}

/// The singular values of `C` beside what noise alone would have.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SpectrumAboveNoise {
    /// Noise of an element, `sigma = ||N_b|| / sqrt(m n)`.
    pub sigma: f64,
    /// Where a matrix of independent noise of this size would end: `sigma (sqrt(m) + sqrt(n))`, the square root of Marchenko
    /// and Pastur's upper edge.
    pub edge: f64,
    /// Gavish and Donoho's optimal hard threshold for known noise.
    pub threshold: f64,
    /// The largest singular value of `N_b` as it is: above `edge` where the noise is not independent and of one size.
    pub noise_largest: f64,
    /// How many singular values of `C` were computed and have converged. Those beyond are not known.
    pub known: usize,
    /// How many of those are above `edge`.
    pub above_edge: usize,
    /// How many are above `noise_largest`.
    pub above_noise_largest: usize,
    /// How many are above `threshold`: the suggested rank.
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
    /// As `q_proj`, or the number of a layer.
    pub name: String,
    /// Their statistics together.
    #[serde(flatten)]
    pub pooled: Pooled,
}

/// Some modules taken as one: sums over all their elements, not means of ratios.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pooled {
    /// How many.
    pub modules: usize,
    /// Their elements together.
    pub elements: u64,
    /// Norms of all of them together.
    pub norms: Norms,
    /// As of a module, over all elements.
    pub change_and_noise: Cosine,
    /// As of a module, over all elements.
    pub noise_and_noise: Cosine,
    /// In how many modules `cos(D, N_b)` is significant.
    pub change_and_noise_significant: usize,
    /// In how many modules `cos(N_b, N_t)` is significant.
    pub noise_and_noise_significant: usize,
    /// Mean over the modules that have one, each by its number of elements.
    pub magnitude_correlation: Option<f64>,
    /// As of a module, of all energies together.
    pub remaining: Remaining,
    /// Share of all `D`'s energy that Method A keeps at the rank.
    pub change_by_method_a: f64,
    /// Share of all `D`'s energy in the subspaces (left) that Method B keeps at the rank.
    pub change_by_method_b: f64,
    /// How much of Method B's rank is spent on noise, of all energies together.
    pub spent_on_noise: f64,
    /// Suggested ranks: least, median, greatest. Zeros where there is no module.
    pub suggested_rank: [usize; 3],
    /// In how many modules the suggested rank is a lower bound only.
    pub suggested_is_at_least: usize,
}

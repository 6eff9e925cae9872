//! Mixtures of experts end to end: however either side stores its experts, the adapter is the same, its factors are
//! near the best approximation by an exact SVD, and it contains every expert of a layer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::common::pair::{Tensor, changed, dense, noise, read_file, write, write_file};
use crate::common::runs::{Reference, killed_at};
use crate::common::{copy, extract_with, manifest, measure, run, running, trephine};
use faer::Mat;
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};
use trephine::commands::extract::{Content, verify};
use trephine::run::Silent;

pub(crate) const EXPERTS: usize = 3;
pub(crate) const HIDDEN: usize = 64;
const INNER: usize = 32;
const RANK: usize = 2;
/// The expert that training did not change.
const IDLE: usize = 1;

/// gate, up `[INNER, HIDDEN]` and down `[HIDDEN, INNER]` of one expert.
pub(crate) type Expert = [Vec<f32>; 3];

const SHAPES: [[usize; 2]; 3] = [[INNER, HIDDEN], [INNER, HIDDEN], [HIDDEN, INNER]];

/// How a checkpoint stores its experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ExpertLayout {
    /// `experts.0.gate_proj.weight`, or Mixtral's names.
    Singly,
    /// `[E, 2I, H]` and `[E, H, I]`.
    Stacked,
    /// `[E, H, 2I]` and `[E, I, H]`.
    Turned,
    /// The same with gate and up interleaved.
    TurnedByTurns,
}

/// Two layers of a model in which the experts and one projection change.
pub(crate) struct Model {
    kind: &'static str,
    base: Vec<Vec<Expert>>,
    pub(crate) tuned: Vec<Vec<Expert>>,
}

impl Model {
    pub(crate) fn new(kind: &'static str) -> Model {
        let bf16 =
            |values: Vec<f32>| values.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect::<Vec<f32>>();
        let seed = |layer: usize, expert: usize, part: usize| (100 * layer + 10 * expert + part) as u64;
        let weight = |layer, expert, part: usize| bf16(noise(seed(layer, expert, part), INNER * HIDDEN));
        let expert = |layer, expert| [0, 1, 2].map(|part| weight(layer, expert, part));
        let base: Vec<Vec<Expert>> = (0..2).map(|l| (0..EXPERTS).map(|e| expert(l, e)).collect()).collect();
        let mut tuned = base.clone();
        for (l, layer) in tuned.iter_mut().enumerate() {
            for (e, expert) in layer.iter_mut().enumerate().filter(|(e, _)| *e != IDLE) {
                for (p, values) in expert.iter_mut().enumerate() {
                    *values = bf16(changed(values, SHAPES[p], 4, 0.05, 9000 + 2 * seed(l, e, p)));
                }
            }
        }
        Model { kind, base, tuned }
    }

    fn path(&self, layer: usize, stored: ExpertLayout) -> String {
        let inner =
            if self.kind == "mixtral" && stored == ExpertLayout::Singly { "block_sparse_moe" } else { "mlp" };
        format!("model.layers.{layer}.{inner}.experts")
    }

    fn names(&self) -> [&'static str; 3] {
        if self.kind == "mixtral" { ["w1", "w3", "w2"] } else { ["gate_proj", "up_proj", "down_proj"] }
    }

    pub(crate) fn tensors(&self, layers: &[Vec<Expert>], stored: ExpertLayout, scale: f32) -> Vec<Tensor> {
        let mut tensors = Vec::new();
        for (l, experts) in layers.iter().enumerate() {
            let path = self.path(l, stored);
            match stored {
                ExpertLayout::Singly => {
                    for (e, expert) in experts.iter().enumerate() {
                        for (p, name) in self.names().iter().enumerate() {
                            let name = format!("{path}.{e}.{name}.weight");
                            tensors.push(Tensor::bf16(&name, &SHAPES[p], &expert[p]));
                        }
                    }
                }
                _ => tensors.extend(stacks(&path, experts, stored)),
            }
            let router = format!("model.layers.{l}.mlp.gate.weight");
            let values: Vec<f32> = noise(77 + l as u64, EXPERTS * HIDDEN).iter().map(|v| v * scale).collect();
            tensors.push(Tensor::bf16(&router, &[EXPERTS, HIDDEN], &values));
        }
        tensors
    }

    /// Writes both sides, the base first.
    pub(crate) fn write(&self, home: &Path, base: ExpertLayout, tuned: ExpertLayout) -> [String; 2] {
        let config = json!({"model_type": self.kind, "hidden_size": HIDDEN, "tie_word_embeddings": false});
        let folder = home.join(format!("{base:?}-{tuned:?}"));
        let mut sides = [self.tensors(&self.base, base, 1.0), self.tensors(&self.tuned, tuned, 1.5)];
        for (side, tensors) in sides.iter_mut().enumerate() {
            let values = noise(5 + side as u64, 16 * HIDDEN);
            tensors.push(Tensor::bf16("model.layers.0.self_attn.o_proj.weight", &[16, HIDDEN], &values));
        }
        let [base, tuned] = sides;
        [("base", base), ("tuned", tuned)]
            .map(|(side, tensors)| text(&write(&folder.join(side), &tensors, &config)))
    }

    /// The change by training of part `p` of an expert, row-major.
    fn delta(&self, layer: usize, expert: usize, p: usize) -> Vec<f64> {
        let (base, tuned) = (&self.base[layer][expert][p], &self.tuned[layer][expert][p]);
        base.iter().zip(tuned).map(|(b, t)| f64::from(*t) - f64::from(*b)).collect()
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn stacks(path: &str, experts: &[Expert], stored: ExpertLayout) -> Vec<Tensor> {
    let rows = |e: &Expert| -> Vec<f32> {
        let lines = |part: usize| e[part].chunks_exact(HIDDEN);
        match stored {
            ExpertLayout::TurnedByTurns => {
                lines(0).zip(lines(1)).flat_map(|(gate, up)| [gate, up].concat()).collect()
            }
            _ => [&*e[0], &*e[1]].concat(),
        }
    };
    let turned = stored != ExpertLayout::Stacked;
    let lay = |values: Vec<f32>, [m, n]: [usize; 2]| if turned { transpose(&values, m, n) } else { values };
    let shape = |[m, n]: [usize; 2]| if turned { [EXPERTS, n, m] } else { [EXPERTS, m, n] };
    let (wide, down) = ([2 * INNER, HIDDEN], SHAPES[2]);
    let gate_up: Vec<f32> = experts.iter().flat_map(|e| lay(rows(e), wide)).collect();
    let downs: Vec<f32> = experts.iter().flat_map(|e| lay(e[2].clone(), down)).collect();
    vec![
        Tensor::bf16(&format!("{path}.gate_up_proj"), &shape(wide), &gate_up),
        Tensor::bf16(&format!("{path}.down_proj"), &shape(down), &downs),
    ]
}

fn transpose<T: Copy>(values: &[T], rows: usize, cols: usize) -> Vec<T> {
    (0..rows * cols).map(|at| values[at % rows * cols + at / rows]).collect()
}

fn extracted(home: &Path, [base, tuned]: &[String; 2], more: &[&str]) -> PathBuf {
    let out = home.join(format!("out-{}", base.replace('/', "_")));
    let rank = RANK.to_string();
    extract_with(base, tuned, &out, &[&["--rank", &rank], more].concat()).code(0);
    out
}

/// The product of one expert's factors, `[out, in]`, from the keys that a loader reads: those of a single expert, or
/// its part of a stack's in PEFT's layout.
fn product(
    factors: &BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    stem: &str,
    expert: Option<usize>,
) -> Vec<f64> {
    let ((a_shape, a), (b_shape, b)) =
        (&factors[&format!("{stem}.lora_A.weight")], &factors[&format!("{stem}.lora_B.weight")]);
    let count = if expert.is_some() { EXPERTS } else { 1 };
    let (inner, out, e) = (a_shape[1], b_shape[0], expert.unwrap_or(0));
    assert_eq!((a_shape[0], b_shape[1]), (RANK * count, RANK * count), "{stem}");
    let mut product = vec![0.0; out * inner];
    for o in 0..out {
        for k in 0..RANK {
            for i in 0..inner {
                product[o * inner + i] += b[o * RANK * count + k * count + e] * a[(e * RANK + k) * inner + i];
            }
        }
    }
    product
}

/// Checks a product against the best approximation of `delta` with that rank; an unchanged expert must be zero.
fn near_the_optimum(delta: &[f64], product: &[f64], [rows, cols]: [usize; 2], what: &str) {
    let norm2: f64 = delta.iter().map(|v| v * v).sum();
    if norm2 == 0.0 {
        assert!(product.iter().all(|v| *v == 0.0), "{what}");
        return;
    }
    let error2: f64 = delta.iter().zip(product).map(|(d, p)| (d - p).powi(2)).sum();
    let singular = Mat::from_fn(rows, cols, |i, j| delta[i * cols + j]).singular_values().unwrap();
    let optimal2: f64 = singular[RANK..].iter().map(|v| v * v).sum();
    assert!(optimal2 > 1e-3 * norm2, "{what}: a test that rank {RANK} holds whole shows nothing");
    let allowed = (1.005 * optimal2.sqrt()).powi(2) + norm2 / 65536.0;
    assert!(error2 <= allowed, "{what}: {error2} and not {allowed}, the optimum is {optimal2}");
}

/// Checks that what did not fit is reported, including the router's change.
fn leaves_out_the_router(out: &Path) {
    let manifest = manifest(out);
    let left = manifest["not_represented"].as_array().unwrap();
    let router = left.iter().find(|left| left["name"] == "model.layers.0.mlp.gate").unwrap();
    assert_eq!(router["reason"], "not_selected");
    let change = router["relative_change"].as_f64().unwrap();
    assert!((change - 0.5).abs() < 0.01, "{change}");
    assert!(!left.iter().any(|left| left["name"].as_str().unwrap().contains("experts")), "{left:?}");
}

fn config(out: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(out.join("adapter_config.json")).unwrap()).unwrap()
}

fn weights(out: &Path) -> Vec<u8> {
    std::fs::read(out.join("adapter_model.safetensors")).unwrap()
}

fn checked(out: &Path, [base, tuned]: &[String; 2]) {
    let content = Content { base: base.clone(), tuned: tuned.clone() };
    let found = verify(out, Some(&content), &running(), &Silent).unwrap();
    assert!(found.failures() == 0 && found.modules > 10, "{found}");
}

/// Extracts from every pair of layouts, checks that the adapters are equal, and returns the first one's folder.
fn same_from_all(model: &Model, home: &TempDir, layouts: &[(ExpertLayout, ExpertLayout)]) -> PathBuf {
    let mut first: Option<(PathBuf, Vec<u8>)> = None;
    for &(base, tuned) in layouts {
        let pair = model.write(home.path(), base, tuned);
        let out = extracted(home.path(), &pair, &[]);
        checked(&out, &pair);
        leaves_out_the_router(&out);
        measure::check_rules(&out);
        let (_, bytes) = first.get_or_insert_with(|| (out.clone(), weights(&out)));
        assert!(*bytes == weights(&out), "{base:?} and {tuned:?} give another adapter");
    }
    first.unwrap().0
}

#[test]
fn single_experts_for_models_whose_loaders_take_those() {
    use ExpertLayout::{Singly, Stacked, Turned};
    for kind in ["qwen3_moe", "mixtral"] {
        let (model, home) = (Model::new(kind), tempdir().unwrap());
        let layouts =
            [(Singly, Singly), (Stacked, Singly), (Singly, Stacked), (Stacked, Stacked), (Turned, Singly)];
        let out = same_from_all(&model, &home, &layouts[..if kind == "mixtral" { 3 } else { 5 }]);
        let factors = dense(&out.join("adapter_model.safetensors"));
        assert_eq!(factors.len(), 2 * (2 * EXPERTS * 3 + 1), "{kind}");
        for (l, e, p) in parts() {
            let stem = format!("base_model.model.{}.{e}.{}", model.path(l, Singly), model.names()[p]);
            near_the_optimum(&model.delta(l, e, p), &product(&factors, &stem, None), SHAPES[p], &stem);
        }
        let mut targets = model.names().to_vec();
        targets.push("o_proj");
        targets.sort_unstable();
        assert_eq!(config(&out)["target_modules"], json!(targets));
        assert_eq!(config(&out).get("target_parameters"), None);
    }
}

fn parts() -> impl Iterator<Item = (usize, usize, usize)> {
    (0..2).flat_map(|l| (0..EXPERTS).flat_map(move |e| (0..3).map(move |p| (l, e, p))))
}

/// Checks a stack's adapter against the model; `by_turns` says whether gate and up are interleaved in `lora_B`.
fn check_stacks(model: &Model, out: &Path, by_turns: bool) {
    let factors = dense(&out.join("adapter_model.safetensors"));
    assert_eq!(factors.len(), 2 * (2 * 2 + 1));
    for (l, e) in parts().filter(|(_, _, p)| *p == 0).map(|(l, e, _)| (l, e)) {
        let stem = format!("base_model.model.model.layers.{l}.mlp.experts");
        let down = product(&factors, &stem, Some(e));
        near_the_optimum(&model.delta(l, e, 2), &down, SHAPES[2], &format!("{stem} {e}"));
        let [gate, up] = [0, 1].map(|p| model.delta(l, e, p));
        let delta: Vec<f64> = if by_turns {
            let lines = gate.chunks_exact(HIDDEN).zip(up.chunks_exact(HIDDEN));
            lines.flat_map(|(gate, up)| [gate, up].concat()).collect()
        } else {
            [gate, up].concat()
        };
        let inner = product(&factors, &format!("{stem}.base_layer"), Some(e));
        near_the_optimum(&delta, &inner, [2 * INNER, HIDDEN], &format!("{stem}.base_layer {e}"));
    }
    let config = config(out);
    assert_eq!(config["target_modules"], json!(["o_proj"]));
    assert_eq!(config["target_parameters"], json!(["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]));
}

#[test]
fn whole_stacks_for_models_whose_loaders_take_those() {
    use ExpertLayout::{Singly, Stacked, Turned, TurnedByTurns};
    let (model, home) = (Model::new("qwen3_vl_moe"), tempdir().unwrap());
    let layouts = [(Turned, Stacked), (Stacked, Turned), (Singly, Turned), (Stacked, Singly)];
    let out = same_from_all(&model, &home, &layouts);
    check_stacks(&model, &out, false);
    let kinds: Vec<String> = summary(&out);
    assert_eq!(kinds, ["experts.down_proj", "experts.gate_up_proj", "o_proj"]);

    let (model, home) = (Model::new("gpt_oss"), tempdir().unwrap());
    let layouts = [(TurnedByTurns, TurnedByTurns), (TurnedByTurns, Singly), (Singly, TurnedByTurns)];
    check_stacks(&model, &same_from_all(&model, &home, &layouts), true);
}

#[test]
fn a_stack_has_its_first_directions_in_a_lower_rank() {
    use ExpertLayout::{Singly, Stacked};
    for (kind, layout) in [("qwen3_vl_moe", Stacked), ("qwen3_moe", Singly)] {
        let (model, home) = (Model::new(kind), tempdir().unwrap());
        let [base, tuned] = &model.write(home.path(), layout, layout);
        let out = home.path().join("ranks");
        extract_with(base, tuned, &out, &["--ranks", &format!("1,{RANK}")]).code(0);
        checked(&out, &[base.clone(), tuned.clone()]);
        checked(&out.join("rank-1"), &[base.clone(), tuned.clone()]);
    }
}

/// The kinds of modules that the summary's table shows.
fn summary(out: &Path) -> Vec<String> {
    let manifest: trephine::commands::extract::output::Manifest =
        serde_json::from_slice(&std::fs::read(out.join("extraction.json")).unwrap()).unwrap();
    let outcome = trephine::commands::extract::output::ExtractionOutcome::new(out.to_owned(), manifest, None);
    outcome.kinds.into_iter().map(|kind| kind.kind).collect()
}

/// A gpt-oss as it is published: 4-bit codes with shared exponents. The base has the decoded values.
fn quantize(experts: &mut [Expert], path: &str) -> Vec<Tensor> {
    const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let mut tensors: BTreeMap<&str, [Vec<u8>; 2]> = BTreeMap::new();
    let mut code = |name, row: &mut [f32]| {
        let [blocks, scales] = tensors.entry(name).or_default();
        for block in row.chunks_exact_mut(32) {
            // 2^-3 holds numbers below 0.75.
            scales.push(124);
            for pair in block.chunks_exact_mut(2) {
                let nibble = |value: f32| {
                    let near = |code: &usize| (E2M1[*code] - value.abs() * 8.0).abs();
                    let code = (0..8).min_by(|a, b| near(a).total_cmp(&near(b))).unwrap();
                    code | if value < 0.0 { 8 } else { 0 }
                };
                let codes = [nibble(pair[0]), nibble(pair[1])];
                blocks.push((codes[0] | codes[1] << 4) as u8);
                for (value, code) in pair.iter_mut().zip(codes) {
                    *value = E2M1[code & 7] / if code > 7 { -8.0 } else { 8.0 };
                }
            }
        }
    };
    for expert in experts {
        let [gate, up, down] = expert;
        for (gate, up) in gate.chunks_exact_mut(HIDDEN).zip(up.chunks_exact_mut(HIDDEN)) {
            code("gate_up_proj", gate);
            code("gate_up_proj", up);
        }
        down.chunks_exact_mut(INNER).for_each(|row| code("down_proj", row));
    }
    let stored = |(name, [blocks, scales]): (&str, [Vec<u8>; 2])| {
        let [rows, groups] =
            if name == "down_proj" { [HIDDEN, INNER / 32] } else { [2 * INNER, HIDDEN / 32] };
        let tensor = |end, shape: &[usize], bytes| Tensor {
            name: format!("{path}.{name}_{end}"),
            shape: shape.to_vec(),
            dtype: Dtype::U8,
            bytes,
        };
        let blocks = tensor("blocks", &[EXPERTS, rows, groups, 16], blocks);
        [blocks, tensor("scales", &[EXPERTS, rows, groups], scales)]
    };
    tensors.into_iter().flat_map(stored).collect()
}

#[test]
fn a_tuned_gpt_oss_against_its_quantized_base() {
    let (mut model, home) = (Model::new("gpt_oss"), tempdir().unwrap());
    let path = |l: usize| format!("model.layers.{l}.mlp.experts");
    let mut base: Vec<Tensor> = Vec::new();
    for (l, experts) in model.base.iter_mut().enumerate() {
        base.extend(quantize(experts, &path(l)));
    }
    let tuned = model.tensors(&model.tuned, ExpertLayout::TurnedByTurns, 1.0);
    let projection =
        Tensor::bf16("model.layers.0.self_attn.o_proj.weight", &[16, HIDDEN], &noise(5, 16 * HIDDEN));
    let bias = |scale: f32| {
        let values: Vec<f32> = noise(3, EXPERTS * HIDDEN).iter().map(|v| v * scale).collect();
        Tensor::bf16(&format!("{}.down_proj_bias", path(0)), &[EXPERTS, HIDDEN], &values)
    };
    let config = json!({"model_type": "gpt_oss", "hidden_size": HIDDEN, "tie_word_embeddings": false});
    let mut quantized = config.clone();
    quantized["quantization_config"] = json!({"quant_method": "mxfp4"});
    let base = [base, vec![projection.clone(), bias(1.0)]].concat();
    let tuned = [tuned, vec![projection, bias(2.0)]].concat();
    let pair = [
        write(&home.path().join("base"), &base, &quantized),
        write(&home.path().join("tuned"), &tuned, &config),
    ];
    let pair = pair.map(|path| text(&path));
    let out = extracted(home.path(), &pair, &[]);
    checked(&out, &pair);
    measure::check_rules(&out);
    // With a quantized base even an expert that training did not change gets a correction.
    check_stacks(&model, &out, true);
    let manifest = manifest(&out);
    let bias = manifest["not_represented"]
        .as_array()
        .unwrap()
        .iter()
        .find(|l| l["name"] == "model.layers.0.mlp.experts.down_proj_bias");
    assert!((bias.unwrap()["relative_change"].as_f64().unwrap() - 1.0).abs() < 1e-3);
    // For a stack, the record has each expert's own bytes.
    let parts: Vec<&Value> = manifest["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|t| t["name"] == "model.layers.0.mlp.experts.down_proj_blocks")
        .collect();
    assert_eq!(parts.len(), EXPERTS);
    assert_eq!(parts[1]["part"], json!([HIDDEN * INNER / 2, HIDDEN * INNER]));
}

#[test]
fn experts_that_are_not_selected_come_as_zeros() {
    let (model, home) = (Model::new("qwen3_moe"), tempdir().unwrap());
    let pair = model.write(home.path(), ExpertLayout::Singly, ExpertLayout::Stacked);
    let out = extracted(home.path(), &pair, &["--include", "*.layers.0.mlp.experts.2.up_proj"]);
    measure::check_rules(&out);
    let factors = dense(&out.join("adapter_model.safetensors"));
    assert_eq!(factors.len(), 2 * EXPERTS * 3, "all of layer 0, nothing of layer 1");
    let changed: Vec<&String> =
        factors.iter().filter(|(_, (_, v))| v.iter().any(|v| *v != 0.0)).map(|(name, _)| name).collect();
    let stem = "base_model.model.model.layers.0.mlp.experts.2.up_proj";
    assert_eq!(changed, [&format!("{stem}.lora_A.weight"), &format!("{stem}.lora_B.weight")]);

    let model = Model::new("qwen3_vl_moe");
    let pair = model.write(home.path(), ExpertLayout::Turned, ExpertLayout::Turned);
    let out = extracted(home.path(), &pair, &["--include", "re:layers\\.1\\..*down_proj\\.2$"]);
    measure::check_rules(&out);
    let factors = dense(&out.join("adapter_model.safetensors"));
    assert_eq!(factors.len(), 4);
    let stem = "base_model.model.model.layers.1.mlp.experts";
    for (expert, zero) in [(0, true), (1, true), (2, false)] {
        assert_eq!(product(&factors, stem, Some(expert)).iter().all(|v| *v == 0.0), zero, "{expert}");
    }
    assert!(factors[&format!("{stem}.base_layer.lora_B.weight")].1.iter().all(|v| *v == 0.0));
    assert_eq!(config(&out)["target_modules"], json!([]));
}

#[test]
fn a_run_that_was_killed_goes_on() {
    for (kind, base, tuned) in [
        ("qwen3_vl_moe", ExpertLayout::Turned, ExpertLayout::Stacked),
        ("mixtral", ExpertLayout::Stacked, ExpertLayout::Singly),
    ] {
        let (model, home) = (Model::new(kind), tempdir().unwrap());
        let [base, tuned] = model.write(home.path(), base, tuned);
        let reference = Reference::of(&base, &tuned);
        for point in ["record 1", "record 7", "assembling"] {
            let out = home.path().join(point);
            assert!(killed_at(&reference.job, &out, point), "{kind} {point}");
            reference.goes_on(&out, &format!("{kind} {point}"));
        }
    }
}

#[test]
fn a_changed_factor_of_one_expert_is_found() {
    let (model, home) = (Model::new("qwen3_vl_moe"), tempdir().unwrap());
    let pair = model.write(home.path(), ExpertLayout::Turned, ExpertLayout::Stacked);
    let out = extracted(home.path(), &pair, &[]);
    let spoilt = home.path().join("spoilt");
    copy(&out, &spoilt);
    let path = spoilt.join("adapter_model.safetensors");
    let mut tensors = read_file(&path);
    let stem = "base_model.model.model.layers.1.mlp.experts.lora_B.weight";
    let factor = tensors.iter_mut().find(|tensor| tensor.name == stem).unwrap();
    // Row 5, direction 1, expert 2.
    let at = (5 * RANK * EXPERTS + EXPERTS + 2) * 2 + 1;
    factor.bytes[at] ^= 0x80;
    write_file(&path, &tensors);
    let mut command = trephine();
    command.args(["verify", "--quiet"]).arg(&spoilt).args(["--base", &pair[0], "--tuned", &pair[1]]);
    let ended = run(&mut command).code(4);
    let told =
        "error: model.layers.1.mlp.experts.down_proj.2 has factors whose digest differs from the manifest's";
    assert!(ended.stdout.contains(told), "{}", ended.stdout);
    assert!(!ended.stdout.contains("down_proj.1 has"), "{}", ended.stdout);
}

#[test]
fn a_layer_of_many_experts_is_planned_in_no_time() {
    let home = tempdir().unwrap();
    let config = json!({"model_type": "qwen3_moe", "hidden_size": 4});
    let names = (0..48).flat_map(|l| (0..128).map(move |e| format!("model.layers.{l}.mlp.experts.{e}")));
    let names = names
        .flat_map(|path| ["gate_proj", "up_proj", "down_proj"].map(|kind| format!("{path}.{kind}.weight")));
    let tensors: Vec<Tensor> = names.map(|name| Tensor::bf16(&name, &[4, 4], &[1.0; 16])).collect();
    let [base, tuned] =
        ["base", "tuned"].map(|side| text(&write(&home.path().join(side), &tensors, &config)));
    let job = crate::common::job(&base, &tuned, &home.path().join("out"));
    let plan = trephine::commands::extract::plan(&job).unwrap();
    assert_eq!((plan.modules.len(), plan.zeros.len()), (48 * 128 * 3, 0));
    assert!(plan.least_memory > 2 * 48 * 128 * 3 * 1024, "the catalogues count: {}", plan.least_memory);
    let only = trephine::commands::extract::ResultOptions {
        include: vec!["*.layers.7.mlp.experts.5.up_proj".into()],
        ..job.deciding.clone()
    };
    let plan =
        trephine::commands::extract::plan(&trephine::commands::extract::Extraction { deciding: only, ..job })
            .unwrap();
    assert_eq!((plan.modules.len(), plan.zeros.len()), (1, 128 * 3 - 1));
}

//! compressed-tensors, as llm-compressor writes it: groups of modules, each with its own weight scheme.
//!
//! - `float-quantized`, `naive-quantized`: `X.weight` F8_E4M3 `[out, in]`; `X.weight_scale`, one per tensor, row or
//!   block.
//! - `int-quantized`, `naive-quantized`: `X.weight` I8 `[out, in]`; `X.weight_scale`, one per tensor, row, block or
//!   group; `X.weight_zero_point` I8.
//! - `int-quantized` of 4 bits (W4A8, W4AFP8): the same, with the codes -8 to 7.
//! - `pack-quantized`, 2 to 8 bits: `X.weight_packed` I32 `[out, ceil(in * bits / 32)]`; `X.weight_scale`
//!   `[out, in / group]`; `X.weight_shape`; packed `X.weight_zero_point`; `X.weight_g_idx`. Codes of 3, 5, 6 and 7 bits
//!   are one stream of bits, as the library packs since 0.17; before, words held whole codes.
//! - `nvfp4-pack-quantized`: `X.weight_packed` U8 `[out, in / 2]` of E2M1; `X.weight_scale` F8_E4M3 `[out, in / 16]`;
//!   `X.weight_global_scale` F32 `[1]`.
//! - `mxfp4-pack-quantized`, `mxfp8-quantized`: the same `X.weight_packed`, or `X.weight` F8_E4M3; `X.weight_scale` U8
//!   `[out, in / 32]`, exponents.
//!
//! An NVFP4 value is `rbf(q * r32(scale / global))`: this library divides, modelopt multiplies. An exponent of 0xFF is
//! NaN here, as in the standard, and infinite in the library.
//!
//! Other values have the dtype of the scale, as in the library's own `decompress`. There are two differences. The block
//! size is the config's, where the library divides rows by rows of scales (576 rows in blocks of 128 have 5). And
//! columns follow `weight_g_idx` itself, where the library sorts by it and cuts the result into groups, which is the
//! same for full groups.

use std::sync::Arc;

use safetensors::Dtype;
use serde_json::Value;

use crate::quant::declared::Declared;
use crate::quant::declared::{missing, unsupported};
use crate::quant::format::targets::{Fit, Targets};
use crate::quant::number::code_type::Codes;
use crate::quant::packing::scaled_codes::ScaledGrid;
use crate::quant::packing::scaled_codes::{Parts, Scales, Zeros, disagree};
use crate::quant::weight::{Dequantize, Format, FoundWeight, SchemeKind, TensorInfo, Tensors};
use crate::{Error, Result};

/// What one scale covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strategy {
    Tensor,
    Channel,
    Group(usize),
    Block([usize; 2]),
}

impl Strategy {
    /// Rows and columns that share a scale.
    fn cell(self, shape: [usize; 2]) -> [usize; 2] {
        match self {
            Strategy::Tensor => shape,
            Strategy::Channel => [1, shape[1]],
            Strategy::Group(size) => [1, size],
            Strategy::Block(cell) => cell,
        }
    }
}

/// How the weights of one group of modules are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Weights {
    codes: Codes,
    scales: Scales,
    symmetric: bool,
    strategy: Strategy,
}

#[derive(Debug)]
struct Group {
    targets: Targets,
    weights: Weights,
}

#[derive(Debug)]
struct Compressed {
    label: String,
    groups: Vec<Group>,
    ignore: Targets,
}

/// The most groups of weights; models of mixed precision have a handful.
const MOST_GROUPS: usize = 64;

/// The format of `quant_method: "compressed-tensors"`.
///
/// # Errors
/// Transforms, sparse weights and formats that are not listed above are refused by name; a config whose parts
/// contradict each other is bad input.
pub(crate) fn from_config(declared: &Declared) -> Result<Box<dyn Format>> {
    let filled = |key: &str| {
        let value = declared.raw.get(key).filter(|value| !value.is_null());
        value.filter(|value| value.as_object().is_none_or(|object| !object.is_empty()))
    };
    if filled("transform_config").is_some() {
        return Err(unsupported("a transform_config (weights in a rotated basis)"));
    }
    if let Some(sparse) = filled("sparsity_config").and_then(|s| s.get("format")).filter(|f| *f != "dense") {
        return Err(unsupported(&format!("compressed-tensors ({})", sparse.as_str().unwrap_or("sparse"))));
    }
    let top = declared.text("format");
    let mut groups = Vec::new();
    let named = declared.raw.get("config_groups").and_then(Value::as_object);
    if let Some(count) = named.map(serde_json::Map::len).filter(|count| *count > MOST_GROUPS) {
        return Err(Error::input(format!(
            "{}: {count} config_groups; at most {MOST_GROUPS} are read",
            declared.origin
        )));
    }
    for (name, group) in named.into_iter().flatten() {
        let origin = format!("{}: config_groups.{name}", declared.origin);
        // A group of activations or of a cache alone does not concern weights.
        let Some(weights) = group.get("weights").filter(|weights| !weights.is_null()) else { continue };
        let format = group.get("format").and_then(Value::as_str).or(top);
        groups.push(Group {
            targets: Targets::parse(&origin, group.get("targets"))?,
            weights: weights_of(&origin, format, weights)?,
        });
    }
    let label = format!("compressed-tensors ({})", top.unwrap_or("mixed-precision"));
    if groups.is_empty() && top != Some("dense") {
        return Err(Error::input(format!("{}: {label} without config_groups", declared.origin))
            .hint("put the model's own config.json beside the weights"));
    }
    let ignore = Targets::parse(&declared.origin, declared.raw.get("ignore"))?;
    Ok(Box::new(Compressed { label, groups, ignore }))
}

/// The same layouts where another library declares them for every module, with one scale for `group` columns.
pub(crate) fn everywhere(label: &str, codes: Codes, scales: Scales, group: usize) -> Box<dyn Format> {
    let weights = Weights { codes, scales, symmetric: true, strategy: Strategy::Group(group) };
    let groups = vec![Group { targets: Targets::everything(), weights }];
    Box::new(Compressed { label: label.to_owned(), groups, ignore: Targets::default() })
}

/// Parses a group's `weights`.
fn weights_of(origin: &str, format: Option<&str>, raw: &Value) -> Result<Weights> {
    let bad =
        |what: String| Error::input(format!("{origin}: {what}")).hint("correct the quantization_config");
    let format = format.ok_or_else(|| bad("the format is missing".to_owned()))?;
    let bits = raw.get("num_bits").map_or(Some(8), Value::as_u64).unwrap_or(0);
    let kind = raw.get("type").and_then(Value::as_str).unwrap_or("int").to_lowercase();
    let symmetric = match raw.get("symmetric") {
        None | Some(Value::Null) => true,
        Some(Value::Bool(symmetric)) => *symmetric,
        Some(other) => {
            return Err(Error::input(format!("{origin}: symmetric is {other}, neither true nor false")));
        }
    };
    let (codes, scales) = match (format, kind.as_str(), bits) {
        ("float-quantized" | "naive-quantized", "float", 8) => (Codes::E4m3, Scales::Float),
        ("int-quantized" | "naive-quantized", "int", 4 | 8) => (Codes::Int8, Scales::Float),
        ("pack-quantized", "int", 2 | 3 | 5 | 6 | 7) => (Codes::Stream(bits as u8), Scales::Float),
        ("pack-quantized", "int", 4) => (Codes::Packed4, Scales::Float),
        ("pack-quantized", "int", 8) => (Codes::Packed8, Scales::Float),
        ("nvfp4-pack-quantized", "float", 4) => (Codes::E2m1, Scales::Over),
        ("mxfp4-pack-quantized", "float", 4) => (Codes::E2m1, Scales::E8m0),
        ("mxfp8-quantized", "float", 8) => (Codes::E4m3, Scales::E8m0),
        _ => return Err(unsupported(&format!("compressed-tensors ({format}, {kind} of {bits} bits)"))),
    };
    if matches!(codes, Codes::E4m3 | Codes::E2m1) && !symmetric {
        return Err(unsupported("asymmetric FP8 or FP4"));
    }
    let size = raw.get("group_size").and_then(Value::as_i64);
    let named = raw.get("strategy").and_then(Value::as_str).map(str::to_lowercase);
    // Without a strategy, compressed-tensors goes by the group size (`QuantizationArgs`).
    let strategy = named.as_deref().unwrap_or(match size {
        None => "tensor",
        Some(-1) => "channel",
        Some(_) => "group",
    });
    let strategy = match strategy {
        "tensor" => Strategy::Tensor,
        "channel" => Strategy::Channel,
        "group" | "tensor_group" => {
            let size = size.and_then(|size| usize::try_from(size).ok()).filter(|&size| size > 0);
            Strategy::Group(size.ok_or_else(|| bad("groups need a positive group_size".to_owned()))?)
        }
        "block" => Strategy::Block(
            block(raw.get("block_structure"))
                .ok_or_else(|| bad("blocks need a block_structure of two positive numbers".to_owned()))?,
        ),
        other => return Err(unsupported(&format!("compressed-tensors (weights by {other})"))),
    };
    Ok(Weights { codes, scales, symmetric, strategy })
}

/// `[128, 128]`, or `"128x128"` in older files.
fn block(raw: Option<&Value>) -> Option<[usize; 2]> {
    let sides: Vec<usize> = match raw? {
        Value::String(text) => text.split('x').map(|side| side.trim().parse().ok()).collect::<Option<_>>()?,
        raw => {
            let side = |side: &Value| side.as_u64().and_then(|side| usize::try_from(side).ok());
            raw.as_array()?.iter().map(side).collect::<Option<_>>()?
        }
    };
    <[usize; 2]>::try_from(sides).ok().filter(|sides| !sides.contains(&0))
}

impl Format for Compressed {
    fn kind(&self) -> SchemeKind {
        SchemeKind::Quantized
    }

    fn label(&self) -> String {
        self.label.clone()
    }

    fn weights(&self, lead: &TensorInfo, tensors: &dyn Tensors) -> Result<Vec<FoundWeight>> {
        let packed = lead.name.strip_suffix(".weight_packed");
        let coded =
            matches!(lead.dtype, Dtype::F8_E4M3 | Dtype::I8).then(|| lead.name.strip_suffix(".weight"));
        let Some(module) = packed.or(coded.flatten()).filter(|_| lead.shape.len() == 2) else {
            return Ok(Vec::new());
        };
        let weights = self.weights_for(lead, module)?;
        let matches = match weights.codes {
            Codes::E4m3 => lead.dtype == Dtype::F8_E4M3,
            Codes::E5m2 => lead.dtype == Dtype::F8_E5M2,
            Codes::Int8 => lead.dtype == Dtype::I8,
            Codes::Packed4 | Codes::Packed8 | Codes::Stream(_) => {
                packed.is_some() && lead.dtype == Dtype::I32
            }
            Codes::E2m1 | Codes::Quarters => packed.is_some() && lead.dtype == Dtype::U8,
        };
        if !matches {
            let what =
                format!("a weight is stored as {}, which does not match its config group", lead.describe());
            return Err(Error::input(what)
                .tensor(&lead.name)
                .hint("check that the config belongs to this checkpoint"));
        }
        let weight: Arc<dyn Dequantize> = Arc::new(weight(weights, lead, module, tensors)?);
        Ok(vec![FoundWeight { module: module.to_owned(), weight, quantized: true }])
    }
}

impl Compressed {
    /// The scheme of the group that matches `module` best.
    fn weights_for(&self, lead: &TensorInfo, module: &str) -> Result<Weights> {
        let error = |what: String| {
            Error::input(format!("a weight is stored as {}, but {what}", lead.describe()))
                .tensor(&lead.name)
                .hint(
                    "the model's own config.json says how each module is quantized: check that this one belongs \
                     to the checkpoint",
                )
        };
        if self.ignore.fit(module).is_some() {
            return Err(error("the config's `ignore` says that it is not quantized".to_owned()));
        }
        let fits = self.groups.iter().filter_map(|group| Some((group.targets.fit(module)?, group.weights)));
        let fits: Vec<(Fit, Weights)> = fits.collect();
        let best = fits.iter().map(|(fit, _)| *fit).max();
        let mut best = fits.iter().filter(|(fit, _)| Some(*fit) == best).map(|(_, weights)| *weights);
        let first = best.next().ok_or_else(|| error("no config group matches it".to_owned()))?;
        match best.find(|other| *other != first) {
            None => Ok(first),
            Some(_) => Err(error("two different config groups match it equally well".to_owned())),
        }
    }
}

/// The decoder of `lead` with its companions.
fn weight(weights: Weights, lead: &TensorInfo, module: &str, tensors: &dyn Tensors) -> Result<ScaledGrid> {
    let part = |name: &str| tensors.stored(&format!("{module}.{name}"));
    let missing = |name: &str| missing(lead, &format!("{module}.{name}"));
    let shape = match weights.codes {
        Codes::E4m3 | Codes::E5m2 | Codes::Int8 => [lead.shape[0], lead.shape[1]],
        Codes::E2m1 | Codes::Quarters => [lead.shape[0], lead.shape[1] * 2],
        Codes::Packed4 | Codes::Packed8 | Codes::Stream(_) => {
            let stored = part("weight_shape").ok_or_else(|| missing("weight_shape"))?;
            packed_shape(weights.codes, lead, stored, &tensors.content(&stored.name)?)?
        }
    };
    if let Strategy::Group(size) = weights.strategy
        && shape[1] > size
        && shape[1] % size != 0
    {
        let what = format!("{} columns is not a whole number of groups of {size}", shape[1]);
        return Err(Error::input(what)
            .tensor(&lead.name)
            .hint("check that the config belongs to this checkpoint"));
    }
    let scale = part("weight_scale").ok_or_else(|| missing("weight_scale"))?;
    let zeros = if weights.symmetric {
        None // Older files store zeros anyway.
    } else {
        let stored = part("weight_zero_point").ok_or_else(|| missing("weight_zero_point"))?;
        // Zero points that lie unpacked, one I8 for each scale, are read as they are.
        let packed = is_packed(weights.codes)
            && stored.dtype == Dtype::I32
            && matches!(weights.strategy, Strategy::Channel | Strategy::Group(_));
        let bits = weights.codes.bits() as usize;
        let kind = match packed {
            false => Zeros::Int8,
            true if 32 % bits == 0 => Zeros::Packed(bits),
            true => Zeros::Stream(bits),
        };
        Some((kind, stored.clone()))
    };
    let global = match weights.scales {
        Scales::Over | Scales::Inverse => {
            Some(part("weight_global_scale").ok_or_else(|| missing("weight_global_scale"))?.clone())
        }
        _ => None,
    };
    let grouped = matches!(weights.strategy, Strategy::Group(_));
    let g_idx = part("weight_g_idx").filter(|_| grouped).cloned();
    let note = part("weight_shape").filter(|_| is_packed(weights.codes)).cloned();
    let parts =
        Parts { weight: lead.clone(), scale: (weights.scales, scale.clone()), global, zeros, note, g_idx };
    ScaledGrid::new(shape, weights.strategy.cell(shape), weights.codes, parts)
}

/// Whether codes lie in I32 words, so that the shape of the words is not that of the weight.
fn is_packed(codes: Codes) -> bool {
    matches!(codes, Codes::Packed4 | Codes::Packed8 | Codes::Stream(_))
}

/// The logical shape of a packed weight, from `X.weight_shape`; it must agree with the packed shape.
fn packed_shape(codes: Codes, lead: &TensorInfo, stored: &TensorInfo, bytes: &[u8]) -> Result<[usize; 2]> {
    let sides: Option<Vec<usize>> = match stored.dtype {
        Dtype::I64 => {
            bytes.as_chunks().0.iter().map(|&b| usize::try_from(i64::from_le_bytes(b)).ok()).collect()
        }
        Dtype::I32 => {
            bytes.as_chunks().0.iter().map(|&b| usize::try_from(i32::from_le_bytes(b)).ok()).collect()
        }
        _ => None,
    };
    let Some(Ok(shape)) = sides.map(<[usize; 2]>::try_from) else {
        let what = format!("'{}' is {}, not a shape of two numbers", stored.name, stored.describe());
        return Err(Error::input(what).tensor(&lead.name).hint("export the checkpoint again"));
    };
    let packed = [shape[0], codes.row_bytes(shape[1]) / 4];
    if let Codes::Stream(bits @ (3 | 5 | 6 | 7)) = codes {
        let before = [shape[0], shape[1].div_ceil(32 / usize::from(bits))];
        // Both packings of a row that fits into one word are the same.
        if lead.shape == before && before[1] > 1 {
            return Err(unsupported(
                "the packing of compressed-tensors before 0.17, whole codes in each word,",
            ));
        }
    }
    if lead.shape != packed || shape.contains(&0) {
        return Err(disagree(stored, shape, lead, packed, "I32"));
    }
    Ok(shape)
}

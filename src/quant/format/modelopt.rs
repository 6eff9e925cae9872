//! modelopt: one algorithm for all modules, or `MIXED_PRECISION` with one for each.
//!
//! | `quant_algo` | tensors | value |
//! |---|---|---|
//! | `FP8`, `FP8_PER_CHANNEL_PER_TOKEN` | F8_E4M3, `weight_scale` of the whole or `[out]` | see `fp8.rs` |
//! | `NVFP4`, `W4A16_NVFP4`, `NVFP4_AWQ`, `W4A8_NVFP4_FP8` | U8 `[out, in / 2]`, `weight_scale` F8_E4M3 for 16 (the last: 32) columns, `weight_scale_2` F32 | `rbf(r32(q * r32(s * s2)))` |
//! | `MXFP8` | F8_E4M3, `weight_scale` U8 `[out, in / 32]` | `q * 2^(s - 127)` |
//! | `MXFP4`, `W4A8_MXFP4_FP8` | U8 `[out, in / 2]`, `weight_scale` U8 `[out, in / 32]` | `q * 2^(s - 127)` |
//! | `W4A16_AWQ`, `W4A8_AWQ`, `INT4_AWQ` | U8 `[out / 2, in]`, `weight_scale` `[out, in / group]` | `r32(q * s)` |
//! | `W8A16`, `W8A8_SQ_PER_CHANNEL` | I8, `weight_scale` `[out]` | `r32(q * s)` |
//!
//! NVFP4 is `qtensor/nvfp4_tensor.py:dequantize` for a bf16 model: the scale of the whole weight is multiplied, where
//! compressed-tensors divides by its own, and code 8 is zero, not minus zero. A `pre_quant_scale` `[in]` multiplies the
//! inputs of a module first, so it multiplies the columns of the weight here.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;
use serde_json::Value;

use crate::quant::declared::{Declared, missing, refuse_extra_terms, unsupported};
use crate::quant::format::dense::widen;
use crate::quant::format::fp8;
use crate::quant::number::code_type::Codes;
use crate::quant::packing::row_pairs::RowPairs;
use crate::quant::packing::scaled_codes::{Parts, ScaledGrid, Scales};
use crate::quant::weight::{Capabilities, Dequantize, Format, FoundWeight, SchemeKind, TensorInfo, Tensors};
use crate::{Error, Result};

/// How the weights of an algorithm are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Fp8 { by_row: bool },
    Nvfp4 { group: usize },
    Mxfp4,
    Mxfp8,
    Int4 { group: usize },
    Int8,
}

/// The columns under one scale of four-bit integers, where the config does not say.
const INT4_GROUP: usize = 128;

/// The most modules with an algorithm of their own.
const MOST_LAYERS: usize = 1_000_000;

#[derive(Debug)]
struct Modelopt {
    algorithm: String,
    /// Of every module that has none of its own.
    layout: Option<Layout>,
    layers: BTreeMap<String, Layout>,
}

/// The format of modelopt, from `hf_quant_config.json` or a `quantization_config`.
///
/// # Errors
/// Any other `quant_algo` is refused by name.
pub(crate) fn from_config(declared: &Declared) -> Result<Box<dyn Format>> {
    let nested = declared.raw.get("quantization").filter(|raw| raw.get("quant_algo").is_some());
    let raw = nested.unwrap_or(&declared.raw);
    let algorithm = raw.get("quant_algo").and_then(Value::as_str).unwrap_or("no quant_algo").to_owned();
    if !algorithm.eq_ignore_ascii_case("MIXED_PRECISION") {
        let layout = Some(Layout::of(&algorithm, raw)?);
        return Ok(Box::new(Modelopt { algorithm, layout, layers: BTreeMap::new() }));
    }
    let layers = raw.get("quantized_layers").and_then(Value::as_object).ok_or_else(|| {
        Error::input(format!("{}: MIXED_PRECISION without quantized_layers", declared.origin))
            .hint("put the model's own hf_quant_config.json beside the weights")
    })?;
    if layers.len() > MOST_LAYERS {
        return Err(Error::input(format!(
            "{}: {} quantized_layers are too many",
            declared.origin,
            layers.len()
        )));
    }
    let layer = |(name, raw): (&String, &Value)| {
        let algorithm = raw.get("quant_algo").and_then(Value::as_str).unwrap_or("no quant_algo");
        Ok((name.clone(), Layout::of(algorithm, raw)?))
    };
    let layers = layers.iter().map(layer).collect::<Result<_>>()?;
    Ok(Box::new(Modelopt { algorithm, layout: None, layers }))
}

impl Layout {
    fn of(algorithm: &str, raw: &Value) -> Result<Layout> {
        let group = raw.get("group_size").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let group = group.filter(|group| *group > 0);
        Ok(match algorithm.to_uppercase().as_str() {
            "FP8" => Layout::Fp8 { by_row: false },
            "FP8_PER_CHANNEL_PER_TOKEN" => Layout::Fp8 { by_row: true },
            "NVFP4" | "W4A16_NVFP4" | "NVFP4_AWQ" => Layout::Nvfp4 { group: 16 },
            "W4A8_NVFP4_FP8" => Layout::Nvfp4 { group: 32 },
            "MXFP4" | "W4A8_MXFP4_FP8" => Layout::Mxfp4,
            "MXFP8" => Layout::Mxfp8,
            "W4A16_AWQ" | "W4A8_AWQ" | "INT4_AWQ" => Layout::Int4 { group: group.unwrap_or(INT4_GROUP) },
            "W8A16" | "W8A8_SQ_PER_CHANNEL" => Layout::Int8,
            _ => return Err(unsupported(&format!("modelopt ({algorithm})"))),
        })
    }

    /// The dtype of the codes.
    fn dtype(self) -> Dtype {
        match self {
            Layout::Fp8 { .. } | Layout::Mxfp8 => Dtype::F8_E4M3,
            Layout::Nvfp4 { .. } | Layout::Mxfp4 | Layout::Int4 { .. } => Dtype::U8,
            Layout::Int8 => Dtype::I8,
        }
    }

    /// The weight of `module` whose codes are `lead`.
    fn weight(self, lead: &TensorInfo, module: &str, tensors: &dyn Tensors) -> Result<Arc<dyn Dequantize>> {
        let [rows, bytes] = [lead.shape[0], lead.shape[1]];
        let part = |name: &str| {
            let name = format!("{module}.{name}");
            tensors.stored(&name).cloned().ok_or_else(|| missing(lead, &name))
        };
        let scale = part("weight_scale")?;
        let parts = |kind, global| Parts {
            weight: lead.clone(),
            scale: (kind, scale.clone()),
            global,
            zeros: None,
            note: None,
            g_idx: None,
        };
        let grid: ScaledGrid = match self {
            Layout::Fp8 { by_row } => {
                let found = fp8::of_modelopt("modelopt", by_row)?.weights(lead, tensors)?;
                return found
                    .into_iter()
                    .next()
                    .map(|found| found.weight)
                    .ok_or_else(|| unsupported("this FP8"));
            }
            Layout::Nvfp4 { group } => {
                let parts = parts(Scales::Times, Some(part("weight_scale_2")?));
                ScaledGrid::new([rows, bytes * 2], [1, group], Codes::E2m1, parts)?
            }
            Layout::Mxfp4 => {
                ScaledGrid::new([rows, bytes * 2], [1, 32], Codes::E2m1, parts(Scales::E8m0, None))?
            }
            Layout::Mxfp8 => ScaledGrid::new([rows, bytes], [1, 32], Codes::E4m3, parts(Scales::E8m0, None))?,
            Layout::Int8 => {
                ScaledGrid::new([rows, bytes], [1, bytes], Codes::Int8, parts(Scales::Float, None))?.in_f32()
            }
            Layout::Int4 { group } => return Ok(Arc::new(RowPairs::new(lead, &scale, group)?)),
        };
        Ok(Arc::new(grid))
    }
}

impl Format for Modelopt {
    fn kind(&self) -> SchemeKind {
        SchemeKind::Quantized
    }

    fn label(&self) -> String {
        format!("modelopt ({})", self.algorithm)
    }

    fn weights(&self, lead: &TensorInfo, tensors: &dyn Tensors) -> Result<Vec<FoundWeight>> {
        let Some(module) = lead.name.strip_suffix(".weight").filter(|_| lead.shape.len() == 2) else {
            return Ok(Vec::new());
        };
        let Some(layout) = self.layers.get(module).copied().or(self.layout) else { return Ok(Vec::new()) };
        let fits = match layout {
            Layout::Fp8 { .. } => Codes::of_fp8(lead.dtype).is_some(),
            other => lead.dtype == other.dtype(),
        };
        if !fits {
            return Ok(Vec::new());
        }
        refuse_extra_terms(module, tensors)?;
        let weight = layout.weight(lead, module, tensors)?;
        let scale = tensors.stored(&format!("{module}.pre_quant_scale"));
        let weight = scale.map_or(Ok(Arc::clone(&weight)), |scale| {
            ColumnScaled::new(Arc::clone(&weight), scale)
                .map(|scaled| Arc::new(scaled) as Arc<dyn Dequantize>)
        })?;
        Ok(vec![FoundWeight { module: module.to_owned(), weight, quantized: true }])
    }
}

/// A weight whose inputs are multiplied by a vector first.
#[derive(Debug)]
struct ColumnScaled {
    weight: Arc<dyn Dequantize>,
    tensors: Vec<TensorInfo>,
}

impl ColumnScaled {
    fn new(weight: Arc<dyn Dequantize>, scale: &TensorInfo) -> Result<ColumnScaled> {
        let columns = weight.shape()[1];
        let numeric = matches!(scale.dtype, Dtype::BF16 | Dtype::F16 | Dtype::F32);
        if !numeric || scale.shape != [columns] {
            let what = format!(
                "a weight of {columns} columns needs a scale for each of them; '{}' is {}",
                scale.name,
                scale.describe()
            );
            return Err(Error::input(what)
                .tensor(&weight.tensors()[0].name)
                .hint("export the checkpoint again"));
        }
        let tensors = weight.tensors().iter().chain([scale]).cloned().collect();
        Ok(ColumnScaled { weight, tensors })
    }
}

impl Dequantize for ColumnScaled {
    fn shape(&self) -> [usize; 2] {
        self.weight.shape()
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn spans(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        let scale = self.tensors.last().map_or(0, |scale| scale.shape[0] * scale.dtype.bitsize() / 8);
        let mut spans = self.weight.spans(rows);
        spans.push(0..scale);
        spans
    }

    fn capabilities(&self) -> Capabilities<'_> {
        let inner = self.weight.capabilities();
        Capabilities {
            needs_all_bytes: inner.needs_all_bytes,
            block: inner.block,
            saturation: inner.saturation,
            ..Capabilities::DECODING_ONLY
        }
    }

    fn dequantize(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f32]) -> Result<()> {
        let (columns, own) = (self.shape()[1], self.tensors.len() - 1);
        self.weight.dequantize(rows, &parts[..own], out)?;
        let mut scale = vec![0f32; columns];
        widen(self.tensors[own].dtype, parts[own], &mut scale);
        for line in out.chunks_exact_mut(columns.max(1)) {
            line.iter_mut().zip(&scale).for_each(|(value, scale)| *value *= scale);
        }
        Ok(())
    }
}

//! MLX: `quantization: {group_size, bits, mode}` in the config, with settings of single modules by their names.
//!
//! - `affine`, 2, 3, 4, 5, 6 and 8 bits: `X.weight` U32 `[out, in * bits / 32]`, a stream of codes with the lowest bits
//!   first; `X.scales` and `X.biases` `[out, in / group]`.
//! - `mxfp4`, `mxfp8`: codes of E2M1 or E4M3 in U32 words, `X.scales` U8 `[out, in / 32]`, exponents.
//! - `nvfp4`: codes of E2M1, `X.scales` U8 `[out, in / 16]`, E4M3.
//!
//! An affine value is `rT(rT(s * q) + b)` with T the dtype of the scales, as `mlx.core.dequantize` gives on a CPU.
//! Metal's kernels may fuse the product and the sum into one rounding.
//!
//! The files say which modules are quantized: those whose `X.scales` are stored. Embeddings, heads and routers are too.

use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;
use serde_json::Value;

use crate::quant::declared::{Declared, missing, unsupported};
use crate::quant::format::dense::widen;
use crate::quant::number::code_type::{Codes, stream_code};
use crate::quant::number::rounding::round;
use crate::quant::packing::scaled_codes::{Parts, ScaledGrid, Scales};
use crate::quant::weight::{
    Capabilities, Dequantize, Format, FoundWeight, Saturation, SchemeKind, TensorInfo, Tensors,
};
use crate::{Error, Result};

/// How a module is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Settings {
    mode: Mode,
    group: usize,
    bits: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Affine,
    Mxfp4,
    Mxfp8,
    Nvfp4,
}

#[derive(Debug)]
struct Mlx {
    settings: Settings,
    declared: Declared,
}

/// The format of a config's `quantization` without a `quant_method`.
///
/// # Errors
/// An unknown mode, or bits or a group size that the mode does not have.
pub(crate) fn from_config(declared: &Declared) -> Result<Box<dyn Format>> {
    let settings = Settings::parse(&declared.raw, &declared.origin)?;
    Ok(Box::new(Mlx { settings, declared: declared.clone() }))
}

impl Settings {
    fn parse(raw: &Value, origin: &str) -> Result<Settings> {
        let mode = match raw.get("mode").and_then(Value::as_str).unwrap_or("affine") {
            "affine" => Mode::Affine,
            "mxfp4" => Mode::Mxfp4,
            "mxfp8" => Mode::Mxfp8,
            "nvfp4" => Mode::Nvfp4,
            other => return Err(unsupported(&format!("MLX ({other})"))),
        };
        let number = |key: &str, default: usize| match raw.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => {
                value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0).ok_or_else(|| {
                    Error::input(format!("{origin}: `{key}` is {value}, not a positive number"))
                        .hint("correct the quantization in the config")
                })
            }
        };
        let (group, bits) = match mode {
            Mode::Affine => (64, 4),
            Mode::Mxfp4 => (32, 4),
            Mode::Mxfp8 => (32, 8),
            Mode::Nvfp4 => (16, 4),
        };
        let settings = Settings { mode, group: number("group_size", group)?, bits: number("bits", bits)? };
        let known = match mode {
            Mode::Affine => [2, 3, 4, 5, 6, 8].contains(&settings.bits) && settings.group <= 1 << 16,
            _ => (settings.group, settings.bits) == (group, bits),
        };
        if known {
            return Ok(settings);
        }
        let Settings { group, bits, .. } = settings;
        Err(unsupported(&format!("MLX ({mode:?} of {bits} bits in groups of {group})")))
    }
}

impl Mlx {
    /// The settings of one module: its own, or those of all.
    fn settings_of(&self, module: &str, lead: &TensorInfo) -> Result<Settings> {
        match self.declared.raw.get(module) {
            Some(Value::Object(own)) => {
                let own = Value::Object(own.clone());
                Settings::parse(&own, &format!("{}: {module}", self.declared.origin))
            }
            Some(Value::Bool(false)) => {
                Err(Error::input("a weight is stored quantized, which the config says it is not")
                    .tensor(&lead.name)
                    .hint("check that the config belongs to this checkpoint"))
            }
            _ => Ok(self.settings),
        }
    }
}

impl Format for Mlx {
    fn kind(&self) -> SchemeKind {
        SchemeKind::Quantized
    }

    fn label(&self) -> String {
        let Settings { mode, group, bits } = self.settings;
        let own = self.declared.raw.as_object().is_some_and(|raw| raw.values().any(Value::is_object));
        let more = if own { ", some modules otherwise" } else { "" };
        match mode {
            Mode::Affine => format!("MLX (affine, {bits} bits, groups of {group}{more})"),
            other => format!("MLX ({}{more})", format!("{other:?}").to_lowercase()),
        }
    }

    fn weights(&self, lead: &TensorInfo, tensors: &dyn Tensors) -> Result<Vec<FoundWeight>> {
        let (Some(module), Dtype::U32) = (lead.name.strip_suffix(".weight"), lead.dtype) else {
            return Ok(Vec::new());
        };
        let &[rows, words] = lead.shape.as_slice() else { return Ok(Vec::new()) };
        let settings = self.settings_of(module, lead)?;
        let part = |name: &str| {
            let name = format!("{module}.{name}");
            tensors.stored(&name).cloned().ok_or_else(|| missing(lead, &name))
        };
        let columns = words * 32 / settings.bits;
        let scales = part("scales")?;
        let weight: Arc<dyn Dequantize> = if settings.mode == Mode::Affine {
            Arc::new(Affine::new([rows, columns], settings, [lead.clone(), scales, part("biases")?])?)
        } else {
            let (codes, kind) = match settings.mode {
                Mode::Mxfp8 => (Codes::E4m3, Scales::E8m0),
                Mode::Nvfp4 => (Codes::E2m1, Scales::E4m3),
                _ => (Codes::E2m1, Scales::E8m0),
            };
            let parts = Parts::of(lead.clone(), (kind, scales));
            Arc::new(ScaledGrid::new([rows, columns], [1, settings.group], codes, parts)?)
        };
        Ok(vec![FoundWeight { module: module.to_owned(), weight, quantized: true }])
    }
}

/// A weight of codes with a scale and a bias for each group.
#[derive(Debug)]
struct Affine {
    shape: [usize; 2],
    settings: Settings,
    tensors: [TensorInfo; 3],
}

impl Affine {
    fn new(shape: [usize; 2], settings: Settings, tensors: [TensorInfo; 3]) -> Result<Affine> {
        let [lead, scales, biases] = &tensors;
        let asked = [shape[0], shape[1].div_ceil(settings.group)];
        let numeric = matches!(scales.dtype, Dtype::BF16 | Dtype::F16 | Dtype::F32);
        let exact = lead.shape[1] * 32 == shape[1] * settings.bits && shape[1].is_multiple_of(settings.group);
        if exact && numeric && scales.shape == asked && biases.shape == asked && biases.dtype == scales.dtype
        {
            return Ok(Affine { shape, settings, tensors });
        }
        let what = format!(
            "words {:?} of {} bits in groups of {} need scales and biases {asked:?}; they are {} and {}",
            lead.shape,
            settings.bits,
            settings.group,
            scales.describe(),
            biases.describe()
        );
        Err(Error::input(what).tensor(&lead.name).hint(
            "the config and the stored tensors must agree: check that the config belongs to this checkpoint",
        ))
    }

    fn groups(&self) -> usize {
        self.tensors[1].shape[1]
    }
}

impl Saturation for Affine {
    fn count(&self, _: Range<usize>, parts: &[&[u8]]) -> Option<(u64, u32)> {
        let (bits, columns) = (self.settings.bits, self.shape[1]);
        let most = (1u32 << bits) - 1;
        let line = |line: &[u8]| {
            (0..columns)
                .map(|i| stream_code(line, bits, i))
                .filter(|code| *code == 0 || *code == most)
                .count() as u64
        };
        let row = (columns * bits / 8).max(1);
        Some((parts[0].chunks_exact(row).map(line).sum(), bits as u32))
    }
}

impl Dequantize for Affine {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn spans(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        let row = self.tensors[0].shape[1] * 4;
        let scale = self.groups() * self.tensors[1].dtype.bitsize() / 8;
        let scales = rows.start * scale..rows.end * scale;
        vec![rows.start * row..rows.end * row, scales.clone(), scales]
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            block: Some([1, self.settings.group]),
            saturation: Some(self),
            ..Capabilities::DECODING_ONLY
        }
    }

    fn dequantize(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f32]) -> Result<()> {
        let (columns, groups, dtype) = (self.shape[1], self.groups(), self.tensors[1].dtype);
        assert_eq!(out.len(), rows.len() * columns, "the panel's values");
        let mut pairs = [vec![0f32; rows.len() * groups], vec![0f32; rows.len() * groups]];
        widen(dtype, parts[1], &mut pairs[0]);
        widen(dtype, parts[2], &mut pairs[1]);
        let (words, codes) = (self.tensors[0].shape[1] * 4, Codes::Stream(self.settings.bits as u8));
        // The stream's own offset is added again: both are exact.
        let offset = (1u32 << (self.settings.bits - 1)) as f32;
        for (row, out) in out.chunks_exact_mut(columns.max(1)).enumerate() {
            codes.decode(&parts[0][row * words..(row + 1) * words], out);
            let [scales, biases] = [0, 1].map(|i| &pairs[i][row * groups..(row + 1) * groups]);
            for (out, scale) in out.chunks_mut(self.settings.group).zip(scales) {
                out.iter_mut().for_each(|q| *q = (*q + offset) * scale);
            }
            round(dtype, out);
            for (out, bias) in out.chunks_mut(self.settings.group).zip(biases) {
                out.iter_mut().for_each(|value| *value += bias);
            }
            round(dtype, out);
        }
        Ok(())
    }
}

//! bitsandbytes: NF4, FP4 and LLM.int8.
//!
//! 4 bits: `X.weight` holds the codes of the whole weight, flattened row by row, two per byte with the **high nibble
//! first**, as U8 `[ceil(n / 2), 1]` or as the same bytes under a float dtype (`bnb_4bit_quant_storage`). Its
//! companions are `.absmax`, one per `blocksize` codes (blocks continue across rows, the last may be short),
//! `.quant_map` F32 `[16]`, and `.quant_state.bitsandbytes__nf4` or `fp4`, the U8 bytes of a JSON with shape, dtype and
//! block sizes. With double quantization `.absmax` is U8, with `.nested_absmax` and `.nested_quant_map`.
//!
//! The value is `rT(r32(map[code] * absmax))`, with T the JSON's dtype; a nested absmax is
//! `r32(r32(map[a] * nested) + offset)`. This is `functional.py:dequantize_4bit` with
//! `backends/default/ops.py:_dequantize_4bit_compute`. 8 bits are in `llm_int8.rs`.

use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;
use serde_json::Value;

use crate::quant::declared::Declared;
use crate::quant::declared::missing;
use crate::quant::format::dense::widen;
use crate::quant::format::llm_int8::LlmInt8;
use crate::quant::number::rounding::round;
use crate::quant::weight::{
    Capabilities, Dequantize, Format, FoundWeight, Saturation, SchemeKind, TensorInfo, Tensors,
};
use crate::{Error, Result};

/// What the config declares.
#[derive(Debug)]
struct BitsAndBytes {
    four: bool,
    eight: bool,
    /// `nf4` or `fp4`, if declared.
    kind: Option<String>,
}

/// The format of `quant_method: "bitsandbytes"`.
///
/// # Errors
/// None so far: each weight's own companions describe it.
pub(crate) fn from_config(declared: &Declared) -> Result<Box<dyn Format>> {
    let flag = |keys: [&str; 2]| keys.iter().any(|key| declared.raw.get(key).is_some_and(|v| *v == true));
    Ok(Box::new(BitsAndBytes {
        four: flag(["load_in_4bit", "_load_in_4bit"]),
        eight: flag(["load_in_8bit", "_load_in_8bit"]),
        kind: declared.text("bnb_4bit_quant_type").map(str::to_lowercase),
    }))
}

impl Format for BitsAndBytes {
    fn kind(&self) -> SchemeKind {
        SchemeKind::Quantized
    }

    fn label(&self) -> String {
        let kind = if self.four { self.kind.as_deref().unwrap_or("4 bits") } else { "LLM.int8" };
        format!("bitsandbytes ({kind})")
    }

    fn weights(&self, lead: &TensorInfo, tensors: &dyn Tensors) -> Result<Vec<FoundWeight>> {
        let Some(module) = lead.name.strip_suffix(".weight").filter(|_| lead.shape.len() == 2) else {
            return Ok(Vec::new());
        };
        let states =
            ["nf4", "fp4"].map(|kind| (kind, format!("{}.quant_state.bitsandbytes__{kind}", lead.name)));
        let state = states.iter().find(|(_, name)| tensors.stored(name).is_some());
        let declared = if lead.dtype == Dtype::I8 { self.eight } else { self.four };
        let weight: Arc<dyn Dequantize> = match (lead.dtype, state) {
            (Dtype::I8, None) if declared => Arc::new(LlmInt8::new(lead, module, tensors)?),
            (_, Some((kind, name))) if declared && self.kind.as_deref().is_none_or(|said| said == *kind) => {
                Arc::new(FourBits::new(lead, tensors, name)?)
            }
            (_, Some((kind, _))) => {
                let what = format!("a weight is stored as {kind}, but the config declares {}", self.label());
                return Err(Error::input(what)
                    .tensor(&lead.name)
                    .hint("check that the config belongs to this checkpoint"));
            }
            (Dtype::U8, None) if declared => return Err(missing(lead, &states[0].1)),
            _ => return Ok(Vec::new()),
        };
        Ok(vec![FoundWeight { module: module.to_owned(), weight, quantized: true }])
    }
}

/// The second quantization, applied to the absmax.
#[derive(Clone, Copy, Debug)]
struct Nested {
    block: usize,
    offset: f32,
}

/// An NF4 or FP4 weight. Its tensors: codes, absmax, map, with double quantization the nested absmax and map, and the
/// quant_state.
#[derive(Clone, Debug)]
pub(crate) struct FourBits {
    shape: [usize; 2],
    /// The dtype that values are rounded to.
    dtype: Dtype,
    block: usize,
    nested: Option<Nested>,
    tensors: Vec<TensorInfo>,
}

impl FourBits {
    /// The weight with the codes `lead`, described by the JSON in the tensor `state`.
    fn new(lead: &TensorInfo, tensors: &dyn Tensors, state: &str) -> Result<FourBits> {
        let bad = |what: &str| {
            Error::input(format!("'{state}' is not usable: {what}"))
                .tensor(&lead.name)
                .hint("export the checkpoint again")
        };
        let json: Value = serde_json::from_slice(&tensors.content(state)?)
            .map_err(|e| Error::input("this quant_state is not valid JSON").tensor(state).because(e))?;
        let number = |key: &str| json.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let shape: Option<Vec<usize>> = json.get("shape").and_then(Value::as_array).and_then(|sides| {
            sides.iter().map(|side| side.as_u64().and_then(|n| usize::try_from(n).ok())).collect()
        });
        let shape = shape.and_then(|shape| <[usize; 2]>::try_from(shape).ok());
        let shape = shape.ok_or_else(|| bad("its shape is not 2-D"))?;
        let dtype = match json.get("dtype").and_then(Value::as_str) {
            Some("bfloat16") => Dtype::BF16,
            Some("float16") => Dtype::F16,
            Some("float32") => Dtype::F32,
            _ => return Err(bad("its dtype is not bfloat16, float16 or float32")),
        };
        let block = number("blocksize").filter(|&n| n > 0).ok_or_else(|| bad("it has no blocksize"))?;
        let count = shape[0]
            .checked_mul(shape[1])
            .filter(|&n| n > 0)
            .ok_or_else(|| bad("its shape is empty or too large"))?;
        let stored = lead.shape.iter().product::<usize>() * lead.dtype.bitsize() / 8;
        // Under a wider storage dtype the last element may be padded.
        if stored < count.div_ceil(2) || stored >= count.div_ceil(2) + lead.dtype.bitsize().div_ceil(8) {
            return Err(bad(&format!("it describes {count} values, but the weight is {}", lead.describe())));
        }
        let nested = match number("nested_blocksize").filter(|&n| n > 0) {
            None => None,
            Some(block) => {
                let offset = json.get("nested_offset").and_then(Value::as_f64);
                Some(Nested { block, offset: offset.ok_or_else(|| bad("it has no nested_offset"))? as f32 })
            }
        };
        let blocks = count.div_ceil(block);
        let mut parts = vec![
            ("absmax", if nested.is_some() { Dtype::U8 } else { Dtype::F32 }, blocks),
            ("quant_map", Dtype::F32, 16),
        ];
        if let Some(Nested { block, .. }) = nested {
            parts.extend([
                ("nested_absmax", Dtype::F32, blocks.div_ceil(block)),
                ("nested_quant_map", Dtype::F32, 256),
            ]);
        }
        let mut stored = vec![lead.clone()];
        for (name, dtype, length) in parts {
            let name = format!("{}.{name}", lead.name);
            let part = tensors.stored(&name).ok_or_else(|| missing(lead, &name))?;
            if part.dtype != dtype || part.shape.iter().product::<usize>() != length {
                let asked = format!("'{name}' should be {dtype} [{length}], but it is {}", part.describe());
                return Err(bad(&asked));
            }
            stored.push(part.clone());
        }
        // Read only once, here, but still a part of the weight.
        stored.extend(tensors.stored(state).cloned());
        Ok(FourBits { shape, dtype, block, nested, tensors: stored })
    }

    /// The flat positions of the values in `rows`.
    fn values(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.shape[1]..rows.end * self.shape[1]
    }

    /// The absmax values of the blocks in `parts`, which begin with block `first`.
    fn absmax(&self, first: usize, parts: &[&[u8]]) -> Vec<f32> {
        let Some(Nested { block, offset }) = self.nested else {
            return floats(parts[1]);
        };
        let (outer, map) = (floats(parts[3]), floats(parts[4]));
        // Two roundings, as in the library: no fused multiply-add.
        let value = |(i, &code): (usize, &u8)| {
            map[usize::from(code)] * outer[(first + i) / block - first / block] + offset
        };
        parts[1].iter().enumerate().map(value).collect()
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0f32; bytes.len() / 4];
    widen(Dtype::F32, bytes, &mut values);
    values
}

/// The blocks of `size` values that a range of positions overlaps.
fn blocks(values: &Range<usize>, size: usize) -> Range<usize> {
    if values.is_empty() { 0..0 } else { values.start / size..values.end.div_ceil(size) }
}

impl Saturation for FourBits {
    fn count(&self, rows: Range<usize>, parts: &[&[u8]]) -> Option<(u64, u32)> {
        let values = self.values(&rows);
        let map = floats(parts[2]);
        let largest = map.iter().fold(0f32, |most, code| most.max(code.abs()));
        // Ones for the codes that stand for the largest magnitudes, so that looking them up counts them.
        let mut ends = [0f32; 16];
        ends.iter_mut().zip(&map).for_each(|(end, code)| *end = f32::from(u8::from(code.abs() == largest)));
        let mut found = vec![0f32; values.len()];
        look_up(parts[0], values.start % 2 == 1, &ends, &mut found);
        Some((found.iter().filter(|end| **end > 0.0).count() as u64, 4))
    }
}

impl Dequantize for FourBits {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn spans(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        let values = self.values(&rows);
        let absmax = blocks(&values, self.block);
        let codes = values.start / 2..values.end.div_ceil(2);
        let mut spans = vec![codes];
        match self.nested {
            None => spans.extend([absmax.start * 4..absmax.end * 4, 0..64]),
            Some(Nested { block, .. }) => {
                let outer = blocks(&absmax, block);
                spans.extend([absmax, 0..64, outer.start * 4..outer.end * 4, 0..1024]);
            }
        }
        let state = 0..0;
        spans.push(state);
        spans
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            needs_all_bytes: false,
            block: None,
            round_to_nearest: None,
            columns: None,
            double: None,
            saturation: Some(self),
            slice: None,
        }
    }

    fn dequantize(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f32]) -> Result<()> {
        let values = self.values(&rows);
        assert_eq!(out.len(), values.len(), "the panel's values");
        let map = floats(parts[2]);
        let under = blocks(&values, self.block);
        let absmax = self.absmax(under.start, parts);
        let byte = values.start / 2;
        let mut rest = out;
        for (index, absmax) in under.zip(absmax) {
            let start = values.start.max(index * self.block);
            let end = values.end.min((index + 1) * self.block);
            // The 16 values of a block, computed once: the same products and roundings as one by one.
            let mut table = [0f32; 16];
            table.iter_mut().zip(&map).for_each(|(out, code)| *out = code * absmax);
            round(self.dtype, &mut table);
            let (now, later) = rest.split_at_mut(end - start);
            look_up(&parts[0][start / 2 - byte..], start % 2 == 1, &table, now);
            rest = later;
        }
        Ok(())
    }
}

/// The values of consecutive codes; `odd` means that they start at the low nibble of the first byte.
fn look_up(bytes: &[u8], odd: bool, table: &[f32; 16], out: &mut [f32]) {
    let low = |byte: u8| table[usize::from(byte & 15)];
    let high = |byte: u8| table[usize::from(byte >> 4)];
    let (bytes, out) = match (odd, out) {
        (true, [first, out @ ..]) => {
            *first = low(bytes[0]);
            (&bytes[1..], out)
        }
        (_, out) => (bytes, out),
    };
    let (pairs, last) = out.as_chunks_mut::<2>();
    if let [last] = last {
        *last = high(bytes[pairs.len()]);
    }
    for (pair, &byte) in pairs.iter_mut().zip(bytes) {
        *pair = [high(byte), low(byte)];
    }
}

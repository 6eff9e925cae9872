//! GPTQ with 2, 3, 4 and 8 bits, formats `gptq` (v1) and `gptq_v2`, with and without act-order.
//!
//! `X.qweight` I32 `[in * bits / 32, out]`, `X.qzeros` I32 `[ceil(in / group), out * bits / 32]`, `X.scales`
//! `[ceil(in / group), out]` and usually `X.g_idx` I32 `[in]`, the group of each input, which is always followed. The
//! value is `r16(s * (q - z))` as in AutoGPTQ's `nn_modules/qlinear/qlinear_cuda.py` (its torch branch). z is the
//! stored zero point in v2, and one more in v1. A stored zero point of all ones is 2^bits in v1 here and in AutoGPTQ
//! 0.7.1; loaders that mask the sum take it as 0. No symmetric weight has one.

use std::sync::Arc;

use safetensors::Dtype;
use serde_json::Value;

use crate::quant::declared::Declared;
use crate::quant::declared::unsupported;
use crate::quant::packing::column_packed::{ColumnPacked, Layout};
use crate::quant::weight::{Format, FoundWeight, SchemeKind, TensorInfo, Tensors};
use crate::{Error, Result};

#[derive(Debug)]
struct Columns {
    label: String,
    layout: Layout,
    /// Inputs per scale; `None` means all of them.
    group: Option<usize>,
}

/// The format of `quant_method: "gptq"` or of a `quantize_config.json`.
///
/// # Errors
/// Other layouts (marlin, gptq_p and any other `checkpoint_format`), other bit widths and schemes that vary from module
/// to module are refused by name.
pub(crate) fn gptq(declared: &Declared) -> Result<Box<dyn Format>> {
    let format = declared.text("checkpoint_format").or(declared.text("format")).unwrap_or("gptq");
    let marlin = declared.raw.get("is_marlin_format").is_some_and(|flag| *flag == true);
    let offset = match format.to_lowercase().as_str() {
        _ if marlin => return Err(unsupported("gptq (marlin)")),
        "gptq" => 1,
        "gptq_v2" => 0,
        other => return Err(unsupported(&format!("gptq ({other})"))),
    };
    let filled = |key: &&&str| match declared.raw.get(**key) {
        None | Some(Value::Null) => false,
        Some(Value::Object(entries)) => !entries.is_empty(),
        Some(_) => true,
    };
    if let Some(key) = ["dynamic", "rotation"].iter().find(filled) {
        return Err(unsupported(&format!("gptq with `{key}`")));
    }
    if let Some(pack) = declared.text("pack_dtype").filter(|dtype| *dtype != "int32") {
        return Err(unsupported(&format!("gptq packed as {pack}")));
    }
    let bits = number(declared, &["bits"])?.ok_or_else(|| undeclared(declared, "bits"))?;
    let bits = match bits {
        2 | 3 | 4 | 8 => bits as usize,
        other => return Err(unsupported(&format!("gptq of {other} bits"))),
    };
    let group = group(declared, &["group_size"])?;
    let version = if offset == 1 { "v1" } else { "v2" };
    let label = format!("GPTQ {version} ({bits} bits)");
    Ok(Box::new(Columns { label, layout: Layout::Gptq { bits, offset }, group }))
}

/// The format of `quant_method: "awq"`: `X.qweight` I32 `[in, out / 8]`, `X.qzeros` I32 `[in / group, out / 8]`,
/// `X.scales` `[in / group, out]`. The value is `r16((q - z) * s)` as in AutoAWQ's
/// `awq/utils/packing_utils.py:dequantize_gemm`.
///
/// # Errors
/// Layouts other than `gemm` (`gemv`, `gemv_fast`, llm-awq's, marlin's ...) and bit widths other than four are refused
/// by name.
pub(crate) fn awq(declared: &Declared) -> Result<Box<dyn Format>> {
    if let Some(backend) = declared.text("backend").filter(|b| b.eq_ignore_ascii_case("llm-awq")) {
        return Err(unsupported(&format!("awq ({backend})")));
    }
    let version = declared.text("version").or(declared.text("format")).unwrap_or("gemm");
    if !version.eq_ignore_ascii_case("gemm") {
        return Err(unsupported(&format!("awq ({version})")));
    }
    match number(declared, &["bits", "w_bit"])? {
        None | Some(4) => {}
        Some(other) => return Err(unsupported(&format!("awq of {other} bits"))),
    }
    let group = group(declared, &["group_size", "q_group_size"])?;
    Ok(Box::new(Columns { label: "AWQ (gemm)".to_owned(), layout: Layout::Awq, group }))
}

/// The first of `keys` that is present, which must be a whole number.
fn number(declared: &Declared, keys: &[&str]) -> Result<Option<i64>> {
    let Some(value) = keys.iter().find_map(|key| declared.raw.get(key)).filter(|v| !v.is_null()) else {
        return Ok(None);
    };
    value.as_i64().map(Some).ok_or_else(|| {
        Error::input(format!("{}: `{}` is {value}, not a number", declared.origin, keys[0]))
            .hint("correct the quantization_config")
    })
}

fn undeclared(declared: &Declared, key: &str) -> Error {
    Error::input(format!("{}: `{key}` is missing", declared.origin))
        .hint("put the model's own config.json, or its quantize_config.json, beside the weights")
}

/// The group size; -1 means one group of all inputs.
fn group(declared: &Declared, keys: &[&str]) -> Result<Option<usize>> {
    let size = number(declared, keys)?.ok_or_else(|| undeclared(declared, keys[0]))?;
    match usize::try_from(size) {
        Ok(size) if size > 0 => Ok(Some(size)),
        _ if size == -1 => Ok(None),
        _ => Err(Error::input(format!("{}: `{}` is {size}", declared.origin, keys[0]))
            .hint("correct the quantization_config: it must be a positive number or -1")),
    }
}

impl Format for Columns {
    fn kind(&self) -> SchemeKind {
        SchemeKind::Quantized
    }

    fn label(&self) -> String {
        self.label.clone()
    }

    fn weights(&self, lead: &TensorInfo, tensors: &dyn Tensors) -> Result<Vec<FoundWeight>> {
        let Some(module) = lead.name.strip_suffix(".qweight") else { return Ok(Vec::new()) };
        if lead.dtype != Dtype::I32 || lead.shape.len() != 2 {
            return Ok(Vec::new());
        }
        let weight = ColumnPacked::new(self.layout, self.group, lead, module, tensors)?;
        Ok(vec![FoundWeight { module: module.to_owned(), weight: Arc::new(weight), quantized: true }])
    }
}

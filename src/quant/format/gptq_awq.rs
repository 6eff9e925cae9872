//! GPTQ with 2, 3, 4 and 8 bits, formats `gptq` (v1) and `gptq_v2`, with and without act-order.
//!
//! `X.qweight` I32 `[in * bits / 32, out]`, `X.qzeros` I32 `[ceil(in / group), out * bits / 32]`, `X.scales`
//! `[ceil(in / group), out]` and usually `X.g_idx` I32 `[in]`, the group of each input, which is always followed. The
//! value is `r16(s * (q - z))` as in AutoGPTQ's `nn_modules/qlinear/qlinear_cuda.py` (its torch branch). z is the
//! stored zero point in v2, and one more in v1. A stored zero point of all ones is 2^bits in v1 here and in AutoGPTQ
//! 0.7.1; loaders that mask the sum take it as 0. No symmetric weight has one.
//!
//! GPTQModel's `dynamic` and auto-round's `extra_config` give single modules other bits and group sizes, or leave them
//! dense. The files say which: a module is quantized where its `.qweight` is stored, and the shapes of words and zero
//! points determine its bits, which must be among those that the config names.

use std::collections::BTreeSet;
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
    /// What single modules may have instead.
    varied: Option<Varied>,
}

/// The bits and group sizes of all modules, where they differ.
#[derive(Debug)]
struct Varied {
    bits: BTreeSet<usize>,
    groups: BTreeSet<Option<usize>>,
}

/// The format of `quant_method: "gptq"` or of a `quantize_config.json`.
///
/// # Errors
/// Other layouts (marlin, gptq_p and any other `checkpoint_format`) and other bit widths are refused by name.
pub(crate) fn gptq(declared: &Declared) -> Result<Box<dyn Format>> {
    let format = declared.text("checkpoint_format").or(declared.text("format")).unwrap_or("gptq");
    let marlin = declared.raw.get("is_marlin_format").is_some_and(|flag| *flag == true);
    let offset = match format.to_lowercase().as_str() {
        _ if marlin => return Err(unsupported("gptq (marlin)")),
        "gptq" => 1,
        "gptq_v2" => 0,
        other => return Err(unsupported(&format!("gptq ({other})"))),
    };
    if declared.raw.get("rotation").is_some_and(|rotation| !rotation.is_null()) {
        return Err(unsupported("gptq with `rotation`"));
    }
    if let Some(pack) = declared.text("pack_dtype").filter(|dtype| *dtype != "int32") {
        return Err(unsupported(&format!("gptq packed as {pack}")));
    }
    let version = if offset == 1 { "v1" } else { "v2" };
    packed(declared, &format!("GPTQ {version}"), offset, &[2, 3, 4, 8], "dynamic")
}

/// The layout of GPTQ whose zero points have `offset` added and whose codes have one of the widths `known`; `overrides`
/// is the key that gives single modules other settings.
///
/// # Errors
/// Bits or a group size that is missing or is not known.
pub(crate) fn packed(
    declared: &Declared,
    name: &str,
    offset: u8,
    known: &[i64],
    overrides: &str,
) -> Result<Box<dyn Format>> {
    let bits = number(declared, &["bits"])?.ok_or_else(|| undeclared(declared, "bits"))?;
    if !known.contains(&bits) {
        return Err(unsupported(&format!("gptq of {bits} bits")));
    }
    let (bits, group) = (bits as usize, group(declared, &["group_size"])?);
    let varied = varied(declared, overrides, (bits, group), known)?;
    let others = varied.as_ref().filter(|varied| varied.bits.len() > 1);
    let label = match others {
        None => format!("{name} ({bits} bits)"),
        Some(varied) => {
            let all: Vec<String> = varied.bits.iter().map(ToString::to_string).collect();
            format!("{name} ({bits} bits, by module {})", all.join(", "))
        }
    };
    Ok(Box::new(Columns { label, layout: Layout::Gptq { bits, offset }, group, varied }))
}

/// What the config gives to single modules, together with what all others have.
fn varied(
    declared: &Declared,
    key: &str,
    (bits, group): (usize, Option<usize>),
    known: &[i64],
) -> Result<Option<Varied>> {
    let overrides = match declared.raw.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(overrides)) if overrides.is_empty() => return Ok(None),
        Some(Value::Object(overrides)) => overrides,
        Some(other) => {
            let what = format!("{}: `{key}` is {other}, not an object", declared.origin);
            return Err(Error::input(what).hint("correct the quantization_config"));
        }
    };
    let mut all = Varied { bits: BTreeSet::from([bits]), groups: BTreeSet::from([group]) };
    for (pattern, settings) in overrides {
        let origin = format!("{}: {key}.{pattern}", declared.origin);
        let one = Declared { origin, raw: settings.clone() };
        // Sixteen bits and more stand for a dense module, and so do no settings at all.
        if let Some(bits) = number(&one, &["bits"])?.filter(|bits| *bits < 16) {
            if !known.contains(&bits) {
                return Err(unsupported(&format!("gptq of {bits} bits ({pattern})")));
            }
            all.bits.insert(bits as usize);
        }
        if settings.get("group_size").is_some_and(|size| !size.is_null()) {
            all.groups.insert(self::group(&one, &["group_size"])?);
        }
    }
    Ok(Some(all))
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
    gemm(declared, "AWQ (gemm)", "dynamic")
}

/// AWQ's GEMM layout; `overrides` is the key that gives single modules other group sizes.
///
/// # Errors
/// A group size that is missing or makes no sense.
pub(crate) fn gemm(declared: &Declared, label: &str, overrides: &str) -> Result<Box<dyn Format>> {
    let group = group(declared, &["group_size", "q_group_size"])?;
    let varied = varied(declared, overrides, (4, group), &[4])?;
    Ok(Box::new(Columns { label: label.to_owned(), layout: Layout::Awq, group, varied }))
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
        let (layout, group) = self.settings(lead, module, tensors)?;
        let weight = ColumnPacked::new(layout, group, lead, module, tensors)?;
        Ok(vec![FoundWeight { module: module.to_owned(), weight: Arc::new(weight), quantized: true }])
    }
}

impl Columns {
    /// The layout and group size of one module.
    fn settings(
        &self,
        lead: &TensorInfo,
        module: &str,
        tensors: &dyn Tensors,
    ) -> Result<(Layout, Option<usize>)> {
        let same = (self.layout, self.group);
        // What is missing is reported where the companions are looked up.
        let zeros = tensors.stored(&format!("{module}.qzeros")).filter(|zeros| zeros.shape.len() == 2);
        let (Some(varied), Some(zeros)) = (&self.varied, zeros) else { return Ok(same) };
        let [groups, words] = [zeros.shape[0], zeros.shape[1]];
        let disagree = |what: String| {
            Error::input(what).tensor(&lead.name).hint(
                "the config and the stored tensors must agree: check that the config belongs to this checkpoint",
            )
        };
        let (layout, inputs) = match self.layout {
            Layout::Awq => (Layout::Awq, lead.shape[0]),
            Layout::Gptq { offset, .. } => {
                let bits = words * 32 / lead.shape[1].max(1);
                if !varied.bits.contains(&bits) || words * 32 != bits * lead.shape[1] {
                    return Err(disagree(format!(
                        "words {:?} with zero points {:?} have {bits} bits, which the config gives to no module",
                        lead.shape, zeros.shape
                    )));
                }
                (Layout::Gptq { bits, offset }, lead.shape[0] * 32 / bits)
            }
        };
        // The module's own index of groups makes their size irrelevant.
        let size = |group: &Option<usize>| group.unwrap_or(inputs).min(inputs.max(1));
        let all = std::iter::once(&self.group).chain(&varied.groups);
        let fitting: BTreeSet<usize> =
            all.map(size).filter(|size| inputs.div_ceil(*size) == groups).collect();
        let ordered = tensors.stored(&format!("{module}.g_idx")).is_some();
        match (fitting.first(), fitting.len()) {
            (Some(size), 1) => Ok((layout, Some(*size))),
            (Some(size), _) if ordered => Ok((layout, Some(*size))),
            (None, _) => Ok((layout, self.group)),
            _ => Err(disagree(format!("groups of {fitting:?} inputs all give {groups} for {inputs} inputs"))),
        }
    }
}

//! auto-round: `packing_format` names one of the layouts of other libraries, `data_type` and `bits` what it holds.
//!
//! | packing_format | data_type, bits | layout |
//! |---|---|---|
//! | `auto_round:auto_gptq` | int, 2 to 8 | GPTQ, stored zero points plus one |
//! | `auto_round`, `auto_round:gptqmodel` | int, 2 to 8 | GPTQ, zero points as stored |
//! | `auto_round:auto_awq` | int, 4 | AWQ (gemm) |
//! | `auto_round:llm_compressor` | mx_fp, 4 and 8; nv_fp, 4 | MXFP4, MXFP8, NVFP4 of compressed-tensors |
//! | `auto_round:llm_compressor_nvfp4_e5m3` | nvfp4_v2, 4 | NVFP4 with unsigned E5M3 scales and none for the whole |
//! | none | mx_int, 4 | MXINT4: sign and magnitude in quarters, exponents for 32 |
//! | `auto_round:fp8_static`, `auto_round:fp8`, none | fp, 8 | FP8 with one scale, one for each row or block |
//! | `auto_round:fake` | any | dense |
//!
//! Values are those of its own layers: NVFP4's codes are multiplied by the inverse of the global scale, then by their
//! own. Codes of 5, 6 and 7 bits are one stream of bits (`utils/bit_packing.py`). `extra_config` gives single modules
//! other settings or leaves them dense: the stored tensors say which, as with GPTQ's `dynamic`.

use safetensors::Dtype;

use crate::Result;
use crate::quant::declared::{Declared, unsupported};
use crate::quant::format::{block_fp8, compressed, fp8, gptq_awq};
use crate::quant::number::code_type::{Codes, Kind};
use crate::quant::packing::scaled_codes::Scales;
use crate::quant::weight::{Format, FoundWeight, SchemeKind, TensorInfo, Tensors};

/// The widths of integer codes.
const BITS: [i64; 7] = [2, 3, 4, 5, 6, 7, 8];

/// The format of `quant_method: "auto-round"`.
///
/// # Errors
/// A packing, data type or width that is not in the table above is refused by name.
pub(crate) fn from_config(declared: &Declared) -> Result<Box<dyn Format>> {
    let packing = declared.text("packing_format").unwrap_or("").to_lowercase();
    let data = declared.text("data_type").unwrap_or("int").to_lowercase();
    let has_blocks = declared.raw.get("weight_block_size").is_some_and(|size| !size.is_null());
    let packed = |name: &str, offset| gptq_awq::packed(declared, name, offset, &BITS, "extra_config");
    let rest = packing.strip_prefix("auto_round").unwrap_or(&packing).trim_start_matches(':');
    match rest {
        "fake" => Ok(Box::new(Fake)),
        _ if rest.starts_with("llm_compressor") || data.starts_with("mx_") || data.starts_with("nv") => {
            microscaled(rest, &data)
        }
        _ if data.starts_with("fp") && has_blocks => block_fp8::from_config(declared),
        _ if data.starts_with("fp") => {
            let kind = Kind::parse(declared.text("fmt"))?;
            Ok(fp8::in_dtype_of_scale("auto-round (FP8)", kind))
        }
        _ if !data.starts_with("int") => Err(unsupported(&format!("auto-round ({data})"))),
        _ if rest.contains("auto_gptq") => packed("auto-round, GPTQ v1", 1),
        "" | "gptqmodel" => packed("auto-round, GPTQ v2", 0),
        _ if rest.contains("awq") => gptq_awq::gemm(declared, "auto-round, AWQ (gemm)", "extra_config"),
        _ => Err(unsupported(&format!("auto-round ({packing})"))),
    }
}

/// The formats with one scale for 16 or 32 columns.
fn microscaled(packing: &str, data: &str) -> Result<Box<dyn Format>> {
    let one = |codes, scales, group| compressed::everywhere("auto-round", codes, scales, group);
    let (label, four, eight) = match data {
        _ if packing == "llm_compressor_nvfp4_e5m3" || data == "nvfp4_v2" => {
            ("NVFP4 with E5M3 scales", one(Codes::E2m1, Scales::UnsignedE5m3, 16), None)
        }
        _ if data.starts_with("nv_fp") => ("NVFP4", one(Codes::E2m1, Scales::Inverse, 16), None),
        _ if data.starts_with("mx_int") => ("MXINT4", one(Codes::Quarters, Scales::E8m0, 32), None),
        _ if data.starts_with("mx_fp") => {
            let eight = one(Codes::E4m3, Scales::E8m0, 32);
            ("MXFP4 or MXFP8", one(Codes::E2m1, Scales::E8m0, 32), Some(eight))
        }
        other => return Err(unsupported(&format!("auto-round ({other})"))),
    };
    Ok(Box::new(Microscaled { label, four, eight }))
}

/// Modules of four and of eight bits, told apart by the names of their tensors.
#[derive(Debug)]
struct Microscaled {
    label: &'static str,
    four: Box<dyn Format>,
    eight: Option<Box<dyn Format>>,
}

impl Format for Microscaled {
    fn kind(&self) -> SchemeKind {
        SchemeKind::Quantized
    }

    fn label(&self) -> String {
        format!("auto-round ({})", self.label)
    }

    fn weights(&self, lead: &TensorInfo, tensors: &dyn Tensors) -> Result<Vec<FoundWeight>> {
        if lead.name.ends_with(".weight_packed") {
            return self.four.weights(lead, tensors);
        }
        match &self.eight {
            Some(eight) if lead.dtype == Dtype::F8_E4M3 => eight.weights(lead, tensors),
            _ => Ok(Vec::new()),
        }
    }
}

/// Weights that were rounded to the grid of a format and stored dense.
#[derive(Debug)]
struct Fake;

impl Format for Fake {
    fn kind(&self) -> SchemeKind {
        SchemeKind::Dense
    }

    fn label(&self) -> String {
        "auto-round (fake: dense weights)".to_owned()
    }

    fn weights(&self, _: &TensorInfo, _: &dyn Tensors) -> Result<Vec<FoundWeight>> {
        Ok(Vec::new())
    }
}

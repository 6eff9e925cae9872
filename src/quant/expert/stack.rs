//! Stacks of experts that a format stores as it stores single weights, with one dimension more: dense ones, and FP8
//! with its scales. One expert's slice is shown to the format as if it were a tensor `X.weight` with companions of its
//! own.

use std::sync::Arc;

use crate::quant::declared::missing;
use crate::quant::expert::layout::Experts;
use crate::quant::expert::slice::ExpertSlice;
use crate::quant::format::dense::Dense;
use crate::quant::number::code_type::Codes;
use crate::quant::weight::{Dequantize, Format, FoundWeight, TensorInfo, Tensors};
use crate::{Error, Result};

/// What stands behind the name of a stack for its scales, and behind `.weight` for those of a single weight.
const SCALES: [&str; 2] = ["_scale_inv", "_scale"];

/// One expert's tensors by the names that a format looks for, with the stored ones that they are slices of.
struct Slices(Vec<Companion>);

struct Companion {
    sought: String,
    one: TensorInfo,
    stored: TensorInfo,
}

impl Slices {
    /// Of the stack `lead`, whose name without `.weight` is `stem`.
    ///
    /// # Errors
    /// Scales of another number of experts.
    fn new(lead: &TensorInfo, stem: &str, tensors: &dyn Tensors) -> Result<Slices> {
        let slice = |stored: &TensorInfo, sought: String| {
            let shape = stored.shape.get(1..).unwrap_or_default().to_vec();
            Companion { sought, one: TensorInfo { shape, ..stored.clone() }, stored: stored.clone() }
        };
        let mut found = vec![slice(lead, format!("{stem}.weight"))];
        // By this name the lead is known as a weight.
        found[0].one.name = found[0].sought.clone();
        for end in SCALES {
            let Some(scales) = tensors.stored(&format!("{}{end}", lead.name)) else { continue };
            if scales.shape.first() != lead.shape.first() {
                let what = format!(
                    "a stack of {} experts has scales '{}' of shape {:?}",
                    lead.shape[0], scales.name, scales.shape
                );
                return Err(Error::input(what).tensor(&lead.name).hint("export the checkpoint again"));
            }
            found.push(slice(scales, format!("{stem}.weight{end}")));
        }
        Ok(Slices(found))
    }

    /// The stored tensors behind those of a decoder.
    fn stored(&self, decoder: &dyn Dequantize) -> Vec<TensorInfo> {
        let behind = |one: &TensorInfo| self.0.iter().find(|slice| slice.one.name == one.name);
        decoder.tensors().iter().filter_map(behind).map(|slice| slice.stored.clone()).collect()
    }
}

impl Tensors for Slices {
    fn stored(&self, name: &str) -> Option<&TensorInfo> {
        self.0.iter().find(|slice| slice.sought == name).map(|slice| &slice.one)
    }

    fn content(&self, name: &str) -> Result<Vec<u8>> {
        Err(Error::input("a stack of experts has no such description").tensor(name))
    }
}

/// The modules of `lead`, if it is a stack of experts that `format`, or none, can decode.
///
/// # Errors
/// Codes without their scales, or scales that do not go with them.
pub(crate) fn weights(
    experts: &Experts,
    format: Option<&dyn Format>,
    lead: &TensorInfo,
    tensors: &dyn Tensors,
) -> Result<Vec<FoundWeight>> {
    let stem = lead.name.strip_suffix(".weight").unwrap_or(&lead.name);
    let (Some(stack), &[count, rows, columns]) = (experts.stack(stem), lead.shape.as_slice()) else {
        return Ok(Vec::new());
    };
    let slices = Slices::new(lead, stem, tensors)?;
    let one = &slices.0[0].one;
    if format.is_some() && Codes::of_fp8(lead.dtype).is_some() && slices.0.len() == 1 {
        return Err(missing(lead, &format!("{}{}", lead.name, SCALES[0])));
    }
    let found = match format {
        Some(format) => format.weights(one, &slices)?.pop(),
        None => None,
    };
    let Some(FoundWeight { weight, quantized, .. }) = found.or_else(|| Dense::find(one)) else {
        return Ok(Vec::new());
    };
    let stored = slices.stored(&*weight);
    let sibling = sibling(stem, lead, tensors);
    let decoder = if experts.is_turned(&stack, [rows, columns], sibling) {
        turned(experts, Arc::clone(&weight), lead)?
    } else {
        Arc::clone(&weight)
    };
    let slices = (0..count)
        .map(|index| ExpertSlice::of_stack(Arc::clone(&decoder), Arc::clone(&weight), stored.clone(), index));
    experts.modules(&stack, slices, quantized)
}

fn turned(experts: &Experts, weight: Arc<dyn Dequantize>, lead: &TensorInfo) -> Result<Arc<dyn Dequantize>> {
    experts.turn(weight).ok_or_else(|| {
        Error::input(format!(
            "a stack of experts {} is stored transposed in this format, which is not supported",
            lead.describe()
        ))
        .tensor(&lead.name)
        .hint("dequantize the model to bf16 first, with the library that quantized it, and give that folder")
    })
}

/// The shape of a slice of the stack's other tensor.
fn sibling(stem: &str, lead: &TensorInfo, tensors: &dyn Tensors) -> Option<[usize; 2]> {
    let (path, last) = stem.rsplit_once('.')?;
    let other = if last == "down_proj" { "gate_up_proj" } else { "down_proj" };
    let end = &lead.name[stem.len()..];
    let shape = &tensors.stored(&format!("{path}.{other}{end}"))?.shape;
    shape.get(1..)?.try_into().ok()
}

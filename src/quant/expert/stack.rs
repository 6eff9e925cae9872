//! Stacks of experts in formats that store them like single weights with one more dimension: dense, and FP8 with
//! scales. The format sees one expert's slice as a tensor `X.weight` with its own companions.

use std::sync::Arc;

use crate::quant::declared::missing;
use crate::quant::expert::layout::Experts;
use crate::quant::expert::slice::ExpertSlice;
use crate::quant::format::dense::Dense;
use crate::quant::number::code_type::Codes;
use crate::quant::weight::{Dequantize, Format, FoundWeight, TensorInfo, Tensors};
use crate::{Error, Result};

/// The suffixes of a scale's name, after the name of a stack or after the `.weight` of a single weight.
const SCALES: [&str; 2] = ["_scale_inv", "_scale"];

/// One expert's tensors under the names that a format looks for, with the stored tensors they are slices of.
struct Slices(Vec<Companion>);

struct Companion {
    sought: String,
    info: TensorInfo,
    stored: TensorInfo,
}

impl Slices {
    /// The slices of the stack `lead`, whose name without `.weight` is `stem`.
    ///
    /// # Errors
    /// Scales for a different number of experts.
    fn new(lead: &TensorInfo, stem: &str, tensors: &dyn Tensors) -> Result<Slices> {
        let slice = |stored: &TensorInfo, sought: String| {
            let shape = stored.shape.get(1..).unwrap_or_default().into();
            Companion { sought, info: TensorInfo { shape, ..stored.clone() }, stored: stored.clone() }
        };
        let mut found = vec![slice(lead, format!("{stem}.weight"))];
        // The format recognizes the lead as a weight by this name.
        found[0].info.name = (&found[0].sought).into();
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

    /// The stored tensors behind a decoder's tensors.
    fn stored(&self, decoder: &dyn Dequantize) -> Vec<TensorInfo> {
        let behind = |info: &TensorInfo| self.0.iter().find(|slice| slice.info.name == info.name);
        decoder.tensors().iter().filter_map(behind).map(|slice| slice.stored.clone()).collect()
    }
}

impl Tensors for Slices {
    fn stored(&self, name: &str) -> Option<&TensorInfo> {
        self.0.iter().find(|slice| slice.sought == name).map(|slice| &slice.info)
    }

    fn content(&self, name: &str) -> Result<Vec<u8>> {
        Err(Error::input("a stack of experts has no tensor of this name to read").tensor(name))
    }
}

/// The modules of `lead`, if it is a stack of experts that `format`, or the dense decoder, can read.
///
/// # Errors
/// Codes without their scales, or scales that do not match them.
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
    let first = &slices.0[0].info;
    if format.is_some() && Codes::of_fp8(lead.dtype).is_some() && slices.0.len() == 1 {
        return Err(missing(lead, &format!("{}{}", lead.name, SCALES[0])));
    }
    let found = match format {
        Some(format) => format.weights(first, &slices)?.pop(),
        None => None,
    };
    let Some(FoundWeight { weight, quantized, .. }) = found.or_else(|| Dense::find(first)) else {
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
            "a stack of experts {} is stored transposed, which is not supported in this format",
            lead.describe()
        ))
        .tensor(&lead.name)
        .hint("dequantize the model to bf16 first, with the library that quantized it, and give that folder")
    })
}

/// The shape of a slice of the layer's other stack.
fn sibling(stem: &str, lead: &TensorInfo, tensors: &dyn Tensors) -> Option<[usize; 2]> {
    let (path, last) = stem.rsplit_once('.')?;
    let other = if last == "down_proj" { "gate_up_proj" } else { "down_proj" };
    let end = &lead.name[stem.len()..];
    let shape = &tensors.stored(&format!("{path}.{other}{end}"))?.shape;
    shape.get(1..)?.try_into().ok()
}

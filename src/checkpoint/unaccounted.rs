//! Tensors of codes that belong to no weight: what a format that is not read leaves over.
//!
//! A file whose weights are codes under names that nothing knows looks like a file of norms and biases. Taking it for a
//! dense model would drop every weight of it in silence, so each such tensor is an error.

use std::collections::{BTreeMap, HashSet};

use crate::checkpoint::catalogue::{Catalogue, Tensor};
use crate::checkpoint::error_policy::Faults;
use crate::checkpoint::module::Module;
use crate::quant::recognize::recognized;
use crate::quant::registry::{Scheme, is_code, looks_quantized};
use crate::quant::weight::{SchemeKind, TensorInfo};
use crate::shared::Name;
use crate::storage::Storage;
use crate::{Error, Result};

/// The end of a name that buffers of integers have: masks, positions, tables that route tokens.
const BUFFERS: [&str; 8] =
    ["bias", "mask", "position", "positions", "position_ids", "index", "indices", "tid2eid"];

/// Reports the tensors of codes that none of the `modules` account for, once for each kind of name.
///
/// # Errors
/// The first of them, where opening stops at the first error.
pub(crate) fn check(
    scheme: &Scheme,
    tensors: &Catalogue,
    modules: &BTreeMap<Name, Module>,
    files: &[Box<dyn Storage>],
    faults: &mut Faults,
) -> Result<()> {
    // What a GGUF file holds besides weights keeps its own name, and its types are known.
    if scheme.kind() == SchemeKind::Gguf {
        return Ok(());
    }
    let used: HashSet<&str> = modules.values().flat_map(Module::tensors).map(Tensor::name).collect();
    let owners: HashSet<&str> = used.iter().map(|name| owner(name)).collect();
    let mut seen = HashSet::new();
    for tensor in tensors.iter().filter(|tensor| holds_codes(tensor)) {
        let name = tensor.name();
        // Those that look like weights are reported where weights are looked for.
        if used.contains(name)
            || looks_quantized(&tensor.stored)
            || owners.contains(owner(name))
            || !seen.insert(last_part(name))
        {
            continue;
        }
        let (what, hint) = match recognized(name, tensor.stored.dtype) {
            Some(format) => (format!(", in the layout of {}", format.name), format.hint),
            None => (
                String::new(),
                "dequantize the model to bf16 with the library that quantized it, and give that folder",
            ),
        };
        let what = format!(
            "a tensor of codes, {}, belongs to no weight that is read{what}",
            tensor.stored.describe()
        );
        let path = files[tensor.file.0].location();
        faults.meet(Error::input(what).path(path).tensor(name).hint(hint))?;
    }
    Ok(())
}

/// Whether a tensor holds what only quantized weights consist of: integers or FP8, in two dimensions or more.
fn holds_codes(tensor: &Tensor) -> bool {
    let TensorInfo { dtype, shape, .. } = &tensor.stored;
    let last = last_part(tensor.name());
    let buffer = BUFFERS.iter().any(|end| last == *end || last.ends_with(&format!("_{end}")));
    is_code(*dtype) && !buffer && shape.len() > 1 && !shape.contains(&0)
}

fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// The module that a tensor lies beside: `X` of `X.weight_scale`, `X.qweight` and `X.weight.absmax`.
fn owner(name: &str) -> &str {
    let stem = name.rsplit_once('.').map_or("", |(stem, _)| stem);
    stem.strip_suffix(".weight").unwrap_or(stem)
}

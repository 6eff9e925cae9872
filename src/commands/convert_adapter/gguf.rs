//! A GGUF LoRA: for each weight `W` of the model file `W.lora_a` `[r, in]` and `W.lora_b` `[out, r]`, and
//! `adapter.lora.alpha`, which llama.cpp divides by `r`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::Result;
use crate::checkpoint::config::Config;
use crate::checkpoint::gguf::targets::{AdapterTarget, Place, permute_rows};
use crate::commands::convert_adapter::factors::{bytes, fits, scaled, transposed};
use crate::container::gguf_writer::{GgufWriter, MetadataValue, OutTensor};
use crate::lora::factor_dtype::FactorType;
use crate::lora::names;
use crate::lora::read::PeftAdapter;
use crate::lora::read::classify::PeftModule;
use crate::quant::format::gguf::GgmlType;

/// The name of the file.
pub(super) const FILE: &str = "adapter.gguf";

/// Writes the adapter into the folder `out`, and returns the digest of its file.
///
/// # Errors
/// A base or a module that has no place in a GGUF file; a tensor that cannot be read; a failing disk.
pub(crate) fn write(
    out: &Path,
    adapter: &PeftAdapter,
    config: &Config,
    dtype: FactorType,
) -> Result<BTreeMap<String, blake3::Hash>> {
    let target = AdapterTarget::of(config)?;
    let (kind, file_type) = match dtype {
        FactorType::F32 => (GgmlType::F32, 0),
        FactorType::F16 => (GgmlType::F16, 1),
        FactorType::Bf16 => (GgmlType::BF16, 32),
    };
    let place = |module: &PeftModule| {
        // The rows of an embedding's weight are the columns of its factors.
        let out = module.shape()[usize::from(module.place() == names::Place::Embedding)];
        target.place(module.name(), out).map_err(|e| e.path(adapter.root()))
    };
    let mut placed: Vec<(&PeftModule, Place)> =
        adapter.modules().map(|module| Ok((module, place(module)?))).collect::<Result<_>>()?;
    placed.sort_by(|a, b| a.1.name.cmp(&b.1.name));
    let alpha = adapter.config().lora_alpha().filter(|alpha| *alpha > 0.0 && fits(*alpha)).unwrap_or(1.0);
    let metadata = [
        ("general.architecture", MetadataValue::Text(target.architecture().to_owned())),
        ("general.type", MetadataValue::Text("adapter".to_owned())),
        ("adapter.type", MetadataValue::Text("lora".to_owned())),
        ("adapter.lora.alpha", MetadataValue::F32(alpha as f32)),
        ("general.file_type", MetadataValue::U32(file_type)),
        ("general.quantization_version", MetadataValue::U32(2)),
    ];
    let tensor = |name: &str, end: &str, shape: [usize; 2]| OutTensor {
        name: format!("{name}.{end}"),
        kind,
        shape: shape.to_vec(),
    };
    let tensors = placed.iter().flat_map(|(module, place)| {
        let ([out, inner], rank) = (module.shape(), module.rank());
        let a = if module.place() == names::Place::Embedding { [inner, rank] } else { [rank, inner] };
        [tensor(&place.name, "lora_a", a), tensor(&place.name, "lora_b", [out, rank])]
    });
    let mut writer = GgufWriter::create(&out.join(FILE), &metadata, tensors.collect())?;
    for (module, place) in &placed {
        let factors = scaled(adapter, module, f64::from(alpha as f32) / module.rank() as f64)?;
        // llama.cpp looks rows of it up, as of the embedding itself.
        let a = match module.place() {
            names::Place::Embedding => transposed(&factors.a, module.shape()[1]),
            _ => factors.a,
        };
        let b = bytes(module, dtype, factors.b)?;
        let b = place
            .head
            .map_or_else(|| b.clone(), |head| permute_rows(&b, module.rank() * dtype.bytes(), head));
        writer.put(&format!("{}.lora_a", place.name), &bytes(module, dtype, a)?)?;
        writer.put(&format!("{}.lora_b", place.name), &b)?;
    }
    Ok(BTreeMap::from([(FILE.to_owned(), writer.finish()?.blake3)]))
}

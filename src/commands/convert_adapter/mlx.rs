//! An adapter of mlx-lm: `X.lora_a` `[in, r]` and `X.lora_b` `[r, out]` in `adapters.safetensors`, and in
//! `adapter_config.json` the rank and the scale of all modules: `W + scale · (a · b)ᵀ`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::json;

use crate::commands::convert_adapter::factors::{bytes, fits, scaled, transposed};
use crate::container::safetensors::writer::SafetensorsWriter;
use crate::durable::atomic_file;
use crate::lora::factor_dtype::FactorType;
use crate::lora::names::Place;
use crate::lora::read::PeftAdapter;
use crate::quant::weight::TensorInfo;
use crate::shared::number_in_name;
use crate::{Error, Result};

pub(super) const WEIGHTS: &str = "adapters.safetensors";
pub(super) const CONFIG: &str = "adapter_config.json";

/// Writes the adapter into the folder `out`, and returns the digests of its files.
///
/// # Errors
/// A module outside the layers, for which mlx-lm has no LoRA; a tensor that cannot be read; a failing disk.
pub(crate) fn write(
    out: &Path,
    adapter: &PeftAdapter,
    dtype: FactorType,
) -> Result<BTreeMap<String, blake3::Hash>> {
    let rank = adapter.rank();
    let scale = adapter.modules().map(|module| module.scale()).find(|scale| fits(*scale)).unwrap_or(1.0);
    let (mut keys, mut layers) = (BTreeSet::new(), 0);
    let mut layout = Vec::new();
    for module in adapter.modules() {
        let inside = module.name().split_once(".layers.").and_then(|(_, rest)| rest.split_once('.'));
        let parsed = inside.and_then(|(layer, key)| Some((number_in_name(layer)?, key)));
        let Some((layer, key)) = parsed.filter(|_| module.place() != Place::Embedding) else {
            return Err(Error::input("mlx-lm has a LoRA for the modules of layers alone")
                .tensor(module.name())
                .path(adapter.root())
                .hint("leave this module out: `trephine extract --exclude`"));
        };
        keys.insert(key.to_owned());
        layers = layers.max(layer.saturating_add(1));
        let [rows, columns] = module.shape();
        let stored = |end: &str, shape: [usize; 2]| TensorInfo {
            name: format!("{}.{end}", module.name()).into(),
            dtype: dtype.dtype(),
            shape: shape.into(),
        };
        layout.extend([stored("lora_a", [columns, rank]), stored("lora_b", [rank, rows])]);
    }
    let mut writer = SafetensorsWriter::create(&out.join(WEIGHTS), layout)?;
    let order: Vec<String> = writer.layout().iter().map(|placed| placed.stored.name.to_string()).collect();
    for name in &order {
        let Some((module, end)) = name.rsplit_once('.') else { continue };
        let gone = || Error::unexpected("a module of the adapter is gone").tensor(name);
        let module = adapter.module(module).ok_or_else(gone)?;
        let factors = scaled(adapter, module, scale)?;
        let ([_, columns], own) = (module.shape(), module.rank());
        let values = if end == "lora_a" {
            // [in, own], each row padded to the common rank.
            let a = transposed(&factors.a, columns);
            let zeros = vec![0.0; rank - own];
            a.chunks_exact(own.max(1)).flat_map(|row| row.iter().chain(&zeros)).copied().collect()
        } else {
            let mut b = transposed(&factors.b, own);
            b.resize(rank * module.shape()[0], 0.0);
            b
        };
        writer.put(name, &bytes(module, dtype, values)?)?;
    }
    let weights = writer.finish()?;
    let config = json!({
        "fine_tune_type": "lora",
        "num_layers": layers,
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0, "keys": keys},
    });
    let text = serde_json::to_string_pretty(&config)
        .map_err(|e| Error::unexpected("cannot write JSON").because(e))?;
    let config = atomic_file::write(&out.join(CONFIG), |file| file.write_all((text + "\n").as_bytes()))?;
    Ok(BTreeMap::from([(WEIGHTS.to_owned(), weights.blake3), (CONFIG.to_owned(), config.blake3)]))
}

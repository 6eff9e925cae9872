//! How much quantization noise an adapter for a quantized base keeps, as far as that can be told without the dense
//! base.

use safetensors::Dtype;

use crate::checkpoint::module::Module;
use crate::commands::extract::output::manifest::Manifest;
use crate::delta::module_record::{Minimized, ModuleRecord};
use crate::factorize::leading_noise_energy;

/// From this share of noise on, the adapter holds less of the fine-tune than of the noise.
const MOSTLY: f64 = 0.5;

/// The norm of the rounding errors of a module whose decoded weights have the norm `norm`, by the bits that each is
/// stored in: what rounding normal numbers to such codes gives. `None` for a module without codes.
pub fn expected_noise(module: &Module, norm: f64) -> Option<f64> {
    if !module.is_quantized() {
        return None;
    }
    let [rows, columns] = module.shape();
    let bits = (8 * module.size()) as f64 / (rows * columns).max(1) as f64;
    let relative = match module.tensors().first().map(|tensor| tensor.stored.dtype) {
        Some(Dtype::F8_E4M3) => 0.027,
        Some(Dtype::F8_E5M2) => 0.053,
        // Codes of so many bits, beside which scales take a fraction of one: 9.4 % for 4 bits, half of that for each
        // bit more.
        _ => 1.5 / bits.floor().clamp(1.0, 16.0).exp2(),
    };
    Some(relative * norm)
}

/// The estimated share of noise in what the factors of all modules hold, by energy; `None` where no module of a
/// quantized base was factorized for the least error of its weights.
///
/// Noise is white, or nearly so: of its energy a rank holds what it holds of any random matrix.
pub fn kept_noise(manifest: &Manifest) -> Option<f64> {
    let plain = |module: &&ModuleRecord| {
        module.rank > 0 && matches!(module.minimized, None | Some(Minimized::Weights))
    };
    let (mut noise, mut kept) = (0.0, 0.0);
    for module in manifest.modules.iter().filter(plain) {
        let Some(norm) = module.expected_noise else { continue };
        let captured = module.quality.captured_energy * module.quality.delta_norm.powi(2);
        kept += captured;
        noise += captured.min(leading_noise_energy(module.shape, module.rank) * norm.powi(2));
    }
    (kept > 0.0).then(|| noise / kept)
}

/// The share where it is most of what is kept.
pub fn mostly_noise(manifest: &Manifest) -> Option<f64> {
    let calibrated = manifest.calibration.is_some() || manifest.hybrid.is_some();
    kept_noise(manifest).filter(|share| !calibrated && *share >= MOSTLY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::delta::record::Source;
    use crate::quant::weight::SchemeKind;

    #[test]
    fn the_expected_noise_is_near_that_of_the_pair_in_the_repository() {
        let open = |name: &str| {
            Checkpoint::open(&format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
        };
        let (dense, quantized) = (open("base"), open("base-fp8"));
        let name = "model.layers.0.mlp.gate_proj";
        let read = |checkpoint: &Checkpoint| {
            let module = checkpoint.module(name).unwrap();
            let [rows, columns] = module.shape();
            let mut values = vec![0f32; rows * columns];
            module.panel(checkpoint, 0..rows, &mut values).unwrap();
            values
        };
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let (dense_values, values) = (read(&dense), read(&quantized));
        let noise = norm(&mut values.iter().zip(&dense_values).map(|(q, b)| f64::from(q - b)));
        let size = norm(&mut values.iter().map(|v| f64::from(*v)));
        let expected = expected_noise(quantized.module(name).unwrap(), size).unwrap();
        assert!((expected / noise - 1.0).abs() < 0.15, "{expected} for {noise}");
        assert_eq!(expected_noise(dense.module(name).unwrap(), size), None);
    }

    #[test]
    fn an_adapter_of_noise_alone_is_known_for_one() {
        let white = leading_noise_energy([200, 100], 8);
        let manifest = |captured: f64, minimized: Option<Minimized>| -> Manifest {
            let (name, scheme) = ("m".to_owned(), "FP8".to_owned());
            let source = Source { name, model_type: None, scheme, kind: SchemeKind::Quantized };
            let module = serde_json::json!({"name": "m", "shape": [200, 100], "rank": 8, "method": "krylov", "basis": 8,
                "passes": 1, "delta_norm": 1.0, "relative_error": (1.0 - captured).sqrt(), "captured_energy": captured,
                "estimated_excess": 0.0, "expected_noise": 1.0, "minimized": minimized, "blake3": ""});
            let total = serde_json::json!({"delta_norm": 1.0, "relative_error": 0.0, "captured_energy": 1.0});
            serde_json::from_value(
                serde_json::json!({"trephine": "0", "options": {}, "simd": "", "inputs": {},
                "base": source, "tuned": source, "rank": 8, "total": total, "notes": [], "modules": [module],
                "not_represented": [], "tensors": []}),
            )
            .unwrap()
        };
        assert!(mostly_noise(&manifest(white, None)).unwrap() > 0.999);
        let (share, little) = (kept_noise(&manifest(0.9, None)).unwrap(), white / 0.9);
        assert!((share - little).abs() < 1e-9 && mostly_noise(&manifest(0.9, None)).is_none(), "{share}");
        assert_eq!(kept_noise(&manifest(white, Some(Minimized::Outputs))), None);
    }
}

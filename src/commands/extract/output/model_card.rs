//! The model card: what the adapter is, how good it is, and how to serve it.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::calibration::CalibrationKind;
use crate::commands::extract::noise::mostly_noise;
use crate::commands::extract::options::ResultOptions;
use crate::commands::extract::output::manifest::{Manifest, Spectrum, SpectrumOf};
use crate::commands::extract::output::quoting::{
    code, is_hub_name, loadable, prose, python_text, shell_word,
};
use crate::commands::extract::output::summary::{groups, kinds};

/// The values of `--max-lora-rank` that vLLM accepts.
const VLLM_RANKS: [usize; 9] = [1, 8, 16, 32, 64, 128, 256, 320, 512];

/// The smallest `--max-lora-rank` with which vLLM loads an adapter of rank `r`; `None` if there is none.
pub fn smallest_vllm_rank(r: usize) -> Option<usize> {
    VLLM_RANKS.into_iter().find(|&known| known >= r)
}

/// The card's text: Markdown with the front matter of the Hugging Face Hub.
pub fn write(manifest: &Manifest, deciding: &ResultOptions, spectra: &[Spectrum]) -> String {
    let base = &deciding.base_model_name;
    let mut text =
        format!("---\nlibrary_name: peft\ntags:\n- lora\n- trephine\n{}---\n\n", front_matter(base));
    let quantized = manifest.base.is_quantized();
    let method = if quantized {
        "Method B (corrective): base and adapter together approximate the tuned model, so the adapter also corrects \
         the base's quantization error"
    } else {
        "Method A: the plain difference of two unquantized checkpoints"
    };
    let (tuned, total) = (&manifest.tuned.name, &manifest.total);
    // A local path means nothing to readers on other machines.
    let on = if is_hub_name(base) { base } else { &manifest.base.name };
    let _ = writeln!(
        text,
        "# {} as a LoRA on {}\n\nExtracted by Trephine {} from {} and {} ({}): {method}.\n\n\
         Rank {}, {} modules, factors in {}. The adapter captures {:.2} % of the difference's energy; the remaining \
         error is {:.4} of its norm.",
        prose(tuned),
        prose(on),
        prose(&manifest.trephine),
        code(tuned),
        code(&manifest.base.name),
        prose(&manifest.base.scheme),
        manifest.rank,
        manifest.modules.len(),
        format!("{:?}", deciding.dtype).to_lowercase(),
        100.0 * total.captured_energy,
        total.relative_error,
    );
    absorbed(&mut text, manifest);
    minimized(&mut text, manifest);
    noise(&mut text, manifest);
    served(&mut text, manifest);
    quality(&mut text, manifest);
    lower_ranks(&mut text, manifest, spectra);
    usage(&mut text, manifest, base);
    not_held(&mut text, manifest);
    text + "\n`extraction.json` holds the figures of every module and the digest of every tensor that was read; \
            `spectra.jsonl.zst` holds every module's singular values. `b3sum --check B3SUMS` or `trephine verify .` checks \
            the files.\n"
}

/// The front matter's `base_model` line. The hub refuses a card whose `base_model` is not a repository name.
fn front_matter(base: &str) -> String {
    if is_hub_name(base) { format!("base_model: {base}\n") } else { String::new() }
}

/// Which error is the least among all factors of this rank, if not that of the weights.
/// Norms whose change the weights behind them carry.
fn absorbed(text: &mut String, manifest: &Manifest) {
    let count = manifest.absorbed_norms.len();
    if count > 0 {
        let _ = writeln!(
            text,
            "\nThe base's norms differ from the tuned model's ({count} of them): the adapter's weights were computed for the \
             base's norms, so the difference of these norms rides along exactly, and the adapter is for this base alone."
        );
    }
}

fn minimized(text: &mut String, manifest: &Manifest) {
    if let (Some(calibration), Some(outputs)) = (&manifest.calibration, manifest.total.outputs) {
        let tokens = calibration.tokens.map_or(String::new(), |tokens| format!(", {tokens} tokens"));
        let kind = match calibration.kind {
            CalibrationKind::SecondMoments => "second moments",
            CalibrationKind::Diagonal => "mean squares",
        };
        let _ = writeln!(
            text,
            "\nThe factors minimize the error of the layers' outputs, not that of the weights, over the {kind} of the layers' \
             inputs (calibration {}{tokens}): {:.2} % of what the difference changes the outputs by is captured, the \
             remaining error is {:.4} of it.",
            code(&calibration.name),
            100.0 * outputs.captured_energy,
            outputs.relative_error
        );
        let plain = manifest.modules.iter().filter(|module| module.quality.outputs.is_none()).count();
        if plain > 0 {
            let _ = writeln!(
                text,
                "For {plain} modules the calibration has no inputs; there the error of the weights is minimized."
            );
        }
    }
    if let Some(dense) = &manifest.hybrid {
        let _ = writeln!(
            text,
            "\nA part of the rank holds the change from {} alone, the rest what is left on the quantized base.",
            code(&dense.name)
        );
    }
}

/// What the adapter holds of the base's noise.
fn noise(text: &mut String, manifest: &Manifest) {
    if let Some(share) = mostly_noise(manifest) {
        let _ = writeln!(
            text,
            "\nAbout {:.0} % of what the adapter holds is quantization noise of the base, not the fine-tune (estimated from the \
             base's format). An adapter of the change alone, or one made with a calibration, is likely to serve better.",
            100.0 * share
        );
    }
}

fn served(text: &mut String, manifest: &Manifest) {
    if let (Some(served), Some(error)) = (&manifest.served, manifest.total.served) {
        let remains = match error.without_adapter > 0.0 {
            true => {
                format!("{:.1} % of the distance remains", 100.0 * error.with_adapter / error.without_adapter)
            }
            false => "they were the tuned ones already".to_owned(),
        };
        let _ = writeln!(
            text,
            "\nOn {} ({}), the served weights are {:.4} from the tuned ones with this adapter and {:.4} without it: \
             {remains}. This is a distance of weights, most of which may be quantization noise; what the adapter does for \
             the model is measured by its loss (`trephine evaluate`).",
            code(&served.name),
            prose(&served.scheme),
            error.with_adapter,
            error.without_adapter
        );
    }
}

fn quality(text: &mut String, manifest: &Manifest) {
    let weighted = manifest.total.outputs.is_some();
    let _ = writeln!(
        text,
        "\n## Quality by kind of module\n\n| kind | modules | rank | mean error | worst error | captured |{}\n\
         |---|---:|---:|---:|---:|---:|{}",
        if weighted { " of outputs |" } else { "" },
        if weighted { "---:|" } else { "" }
    );
    for kind in kinds(manifest, &BTreeMap::new()) {
        let rank = kind.ranks_text();
        let _ = writeln!(
            text,
            "| {} | {} | {rank} | {:.4} | {:.4} | {:.2} % |{}",
            prose(&kind.kind),
            kind.modules,
            kind.mean_error,
            kind.worst_error,
            100.0 * kind.captured_energy,
            match kind.outputs {
                Some(outputs) => format!(" {:.4} |", outputs.relative_error),
                None if weighted => " - |".to_owned(),
                None => String::new(),
            }
        );
    }
    text.push_str("\nErrors are `||delta - B·A|| / ||delta||` (Frobenius) of the factors as stored.\n");
    if let Some(sentence) = manifest.non_finite() {
        let _ = writeln!(text, "\n{sentence}");
    }
    if weighted {
        text.push_str("Those of outputs are `||(delta - B·A)·C^½|| / ||delta·C^½||`, `C` the second moments of the inputs.\n");
    }
}

/// What each lower rank would have given, from the singular values.
fn lower_ranks(text: &mut String, manifest: &Manifest, spectra: &[Spectrum]) {
    let ranks: Vec<usize> = (3..).map(|power| 1 << power).take_while(|&rank| rank < manifest.rank).collect();
    // Of a hybrid the values are of its second part alone.
    let outputs = manifest.total.outputs.is_some();
    let spectra: Vec<&Spectrum> =
        spectra.iter().filter(|s| s.of == outputs.then_some(SpectrumOf::Outputs)).collect();
    let norm2: f64 = spectra.iter().map(|spectrum| spectrum.delta_norm.powi(2)).sum();
    if ranks.is_empty() || norm2 == 0.0 {
        return;
    }
    let of = if outputs { " of outputs" } else { "" };
    let _ = writeln!(
        text,
        "\n## What another rank would give\n\n| rank | error{of} | captured |\n|---:|---:|---:|"
    );
    for rank in ranks {
        let values = |s: &Spectrum| s.singular_values.iter().take(rank).map(|v| v * v).sum::<f64>();
        let error2: f64 = spectra.iter().map(|s| (s.delta_norm.powi(2) - values(s)).max(0.0)).sum();
        let (error, captured) = ((error2 / norm2).sqrt(), 100.0 * (1.0 - error2 / norm2));
        let _ = writeln!(text, "| {rank} | {error:.4} | {captured:.2} % |");
    }
    let total = &manifest.total;
    let (error, captured) = match total.outputs {
        Some(outputs) => (outputs.relative_error, 100.0 * outputs.captured_energy),
        None => (total.relative_error, 100.0 * total.captured_energy),
    };
    let _ = writeln!(text, "| **{}** | {error:.4} | {captured:.2} % |", manifest.rank);
}

fn usage(text: &mut String, manifest: &Manifest, base: &str) {
    text.push_str("\n## Use\n\n");
    let on = manifest.served.as_ref().map_or(base.to_owned(), |served| loadable(&served.name));
    match smallest_vllm_rank(manifest.rank) {
        Some(rank) => {
            let _ = writeln!(
                text,
                "```\nvllm serve {} --enable-lora --max-lora-rank {rank} --lora-modules tuned=PATH_OF_THIS_FOLDER\n```",
                shell_word(&on)
            );
        }
        None => {
            let most = VLLM_RANKS[VLLM_RANKS.len() - 1];
            let _ = writeln!(
                text,
                "vLLM loads adapters of rank {most} at most; this one has rank {}.",
                manifest.rank
            );
        }
    }
    let _ = writeln!(
        text,
        "\n```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\
         model = AutoModelForCausalLM.from_pretrained({}, dtype=\"bfloat16\")\n\
         model = PeftModel.from_pretrained(model, \"PATH_OF_THIS_FOLDER\")\n```",
        python_text(base)
    );
}

fn not_held(text: &mut String, manifest: &Manifest) {
    let groups = groups(manifest);
    if groups.is_empty() {
        return;
    }
    text.push_str(
        "\n## What it does not hold\n\n| kind | why | tensors | elements | largest relative change |\n\
         |---|---|---:|---:|---:|\n",
    );
    for group in groups {
        let change =
            group.largest_change.map_or("unknown".into(), |change| format!("{:.2} %", 100.0 * change));
        let (kind, why) = (prose(&group.kind), group.reason.words());
        let _ = writeln!(text, "| {kind} | {why} | {} | {} | {change} |", group.tensors, group.elements);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vllm_knows_some_ranks_only() {
        assert_eq!(smallest_vllm_rank(4), Some(8));
        assert_eq!(smallest_vllm_rank(256), Some(256));
        assert_eq!(smallest_vllm_rank(257), Some(320));
        assert_eq!(smallest_vllm_rank(513), None);
    }

    #[test]
    fn only_hub_names_stand_in_the_front_matter() {
        assert_eq!(front_matter("Qwen/Qwen3-32B"), "base_model: Qwen/Qwen3-32B\n");
        assert_eq!(front_matter("tests/data/base"), "");
        assert_eq!(front_matter("../Qwen3"), "");
    }
}

//! The model card: what the adapter is, how good it is, and how to serve it.

use std::fmt::Write;

use crate::calibration::CalibrationKind;
use crate::commands::extract::noise::mostly_noise;
use crate::commands::extract::options::ResultOptions;
use crate::commands::extract::output::manifest::{Manifest, OtherRank};
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

/// Why the captured share of Method B is lower than that of Method A.
const NOISE_IS_NOT_LOW_RANK: &str = " Quantization error is spread over all directions and no low rank holds much of \
     it, so this share is lower than that of an adapter of the change alone, without the adapter serving worse.";

/// The card's text: Markdown with the front matter of the Hugging Face Hub.
pub fn write(manifest: &Manifest, deciding: &ResultOptions) -> String {
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
         Rank {}, {} modules, factors in {}. The adapter captures {:.2} % of {}; the remaining error \
         is {:.4} of its norm.{}",
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
        if quantized { "the change and the base's quantization error together" } else { "the change" },
        total.relative_error,
        if quantized { NOISE_IS_NOT_LOW_RANK } else { "" },
    );
    absorbed(&mut text, manifest);
    minimized(&mut text, manifest);
    noise(&mut text, manifest);
    served(&mut text, manifest);
    quality(&mut text, manifest);
    other_ranks(&mut text, manifest);
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
    for kind in kinds(manifest) {
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

/// What each other rank would have given, from the singular values.
fn other_ranks(text: &mut String, manifest: &Manifest) {
    if manifest.other_ranks.is_empty() {
        return;
    }
    let total = &manifest.total;
    let (error, captured) = match total.outputs {
        Some(outputs) => (outputs.relative_error, outputs.captured_energy),
        None => (total.relative_error, total.captured_energy),
    };
    let of = if total.outputs.is_some() { " of outputs" } else { "" };
    let _ = writeln!(
        text,
        "\n## What another rank would give\n\n| rank | error{of} | captured |\n|---:|---:|---:|"
    );
    let (lower, higher): (Vec<&OtherRank>, Vec<&OtherRank>) =
        manifest.other_ranks.iter().partition(|other| other.rank < manifest.rank);
    let row = |text: &mut String, other: &OtherRank| {
        let [below, above] = if other.lower_bound { ["<= ", ">= "] } else { ["", ""] };
        let (error, captured) = (other.relative_error(), 100.0 * other.captured_energy);
        let _ = writeln!(text, "| {} | {below}{error:.4} | {above}{captured:.2} % |", other.rank);
    };
    lower.into_iter().for_each(|other| row(text, other));
    let _ = writeln!(text, "| **{}** | {error:.4} | {:.2} % |", manifest.rank, 100.0 * captured);
    higher.into_iter().for_each(|other| row(text, other));
    if manifest.other_ranks.iter().any(|other| other.lower_bound) {
        text.push_str("\nWhere singular values have not converged, the share is a lower bound.\n");
    }
}

/// The command that serves the adapter in the folder `adapter` with vLLM; `None` where vLLM does not load its rank.
pub fn serve_line(manifest: &Manifest, base: &str, adapter: &str) -> Option<String> {
    let rank = smallest_vllm_rank(manifest.rank)?;
    let on = manifest.served.as_ref().map_or(base.to_owned(), |served| loadable(&served.name));
    Some(format!(
        "vllm serve {} --enable-lora --max-lora-rank {rank} --lora-modules tuned={adapter}",
        shell_word(&on)
    ))
}

/// The command of `huggingface_hub` that puts the folder `adapter` into a repository of the hub.
pub fn upload_line(adapter: &str) -> String {
    format!("hf upload OWNER/NAME {adapter}")
}

fn usage(text: &mut String, manifest: &Manifest, base: &str) {
    text.push_str("\n## Use\n\n");
    match serve_line(manifest, base, "PATH_OF_THIS_FOLDER") {
        Some(line) => {
            let _ = writeln!(text, "```\n{line}\n```");
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
    let _ = writeln!(text, "\nTo share it: `{}`.", upload_line("PATH_OF_THIS_FOLDER"));
}

fn not_held(text: &mut String, manifest: &Manifest) {
    let groups = groups(manifest);
    if groups.is_empty() {
        return;
    }
    text.push_str(
        "\n## What it does not hold\n\n| kind | why | tensors | elements | largest relative change | taken by |\n\
         |---|---|---:|---:|---:|---|\n",
    );
    for group in groups {
        let change =
            group.largest_change.map_or("unknown".into(), |change| format!("{:.2} %", 100.0 * change));
        let (kind, why) = (prose(&group.kind), group.reason.words());
        let flag = group.flag(manifest).map_or(String::new(), |flag| code(&flag));
        let _ =
            writeln!(text, "| {kind} | {why} | {} | {} | {change} | {flag} |", group.tensors, group.elements);
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

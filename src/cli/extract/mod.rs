//! `trephine extract`.

mod plan;
pub(crate) mod summary;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use trephine::Result;
use trephine::commands::extract::{
    AbsorbNorms, Allowances, Extraction, ResultOptions, Target, default_memory, extract, extract_part, plan,
};
use trephine::delta::{NonFinite, RoundBase};
use trephine::factorize::{Method, Precision};
use trephine::pipeline::RunOptions;

use crate::cli::extract::plan::show_plan;
use crate::cli::extract::summary::show_outcome;
use crate::cli::splitting::{Splitting, show_part};
use crate::cli::ui::byte_size;
use crate::cli::ui::progress_bar::Bar;
use crate::cli::ui::rank;
use crate::cli::ui::signal::leave_on_signal;
use crate::cli::ui::value_enums::{DtypeName, LoaderName, words};
use crate::cli::{print, print_json, threads};

/// Extracts the difference between two checkpoints as a LoRA adapter.
///
/// With an unquantized base, this is the plain difference (Method A). With a quantized base, for example block FP8,
/// the adapter also corrects the base's quantization error (Method B). To resume a stopped run, give the same command
/// again.
#[derive(Debug, Args)]
pub struct ExtractArgs {
    /// The checkpoint that the adapter is added to: a folder, a .safetensors or .gguf file, a name in the Hugging
    /// Face cache, or an hf://, https:// or s3:// address
    #[arg(long, value_name = "CHECKPOINT", alias = "base-model")]
    base: String,
    /// The checkpoint that base and adapter together should reproduce
    #[arg(long, value_name = "CHECKPOINT", alias = "model")]
    tuned: String,
    /// The folder to write the adapter to
    #[arg(short, long, value_name = "DIR", alias = "out-path")]
    out: PathBuf,
    /// Also measure the final weights' error on this checkpoint, if it is served in place of the base
    #[arg(long, value_name = "CHECKPOINT", alias = "base-quantized")]
    served: Option<String>,
    /// Make the error of the layers' outputs the least, not that of the weights: a folder of `trephine calibrate`, one
    /// of its files, or an importance matrix of llama.cpp (.gguf or .dat; it is the weaker one)
    #[arg(long, value_name = "CALIBRATION", conflicts_with = "hybrid")]
    calibration: Option<String>,
    /// The dense checkpoint that a quantized base was made of: a share of the rank goes to the change from it, the
    /// rest to what is left on the quantized base. For where there is no calibration
    #[arg(long, value_name = "DENSE_BASE")]
    hybrid: Option<String>,

    /// Rank of the adapter
    #[arg(short, long, default_value_t = 128, value_parser = rank::parse, allow_negative_numbers = true,
        alias = "max-rank", help_heading = "Result")]
    rank: usize,
    /// Ranks of several adapters from one factorization: the largest in --out, the others in its folders rank-16 ...
    #[arg(long, value_name = "RANK,...", value_delimiter = ',', value_parser = rank::parse,
        conflicts_with_all = ["rank", "energy", "served", "hybrid"], help_heading = "Result")]
    ranks: Vec<usize>,
    /// Take the smallest rank, at most --rank, that leaves this share of the whole change's norm or less (of the
    /// outputs' with a calibration)
    #[arg(long, value_name = "SHARE",
        conflicts_with_all = ["ranks", "energy", "served", "hybrid"], help_heading = "Result")]
    target_error: Option<f64>,
    /// The same for a share of the whole change's energy to capture
    #[arg(long, value_name = "SHARE",
        conflicts_with_all = ["ranks", "energy", "served", "hybrid", "target_error"], help_heading = "Result")]
    target_energy: Option<f64>,
    /// Give each module only the smallest rank that captures this share of its delta's energy, at most --rank
    #[arg(long, value_name = "SHARE", help_heading = "Result")]
    energy: Option<f64>,
    /// How far a module's error may exceed the optimal error, as a fraction of it
    #[arg(long, default_value_t = 0.005, help_heading = "Result")]
    tolerance: f64,
    /// Factorization method
    #[arg(long, value_enum, default_value_t = MethodName::Auto, help_heading = "Result")]
    method: MethodName,
    /// Numbers in which block Krylov multiplies with the differences; bytes take about two thirds of the
    /// processor time of f32
    #[arg(long, value_enum, default_value_t = PrecisionName::Auto, help_heading = "Result")]
    precision: PrecisionName,
    /// Seed of the random directions
    #[arg(long, default_value_t = 0, help_heading = "Result")]
    seed: u64,
    /// Type in which the factors are stored
    #[arg(long, value_enum, default_value_t = DtypeName::Bf16, help_heading = "Result")]
    dtype: DtypeName,
    /// Round the dequantized base first, as in a dense copy of it on disk
    #[arg(long, value_enum, default_value_t = RoundName::None, help_heading = "Result")]
    round_base: RoundName,
    /// What to do with NaN and infinities in a weight: fail, or take the difference there as zero
    #[arg(long, value_enum, default_value_t = NonFiniteName::Fail, help_heading = "Result")]
    non_finite: NonFiniteName,
    /// Extract only modules that match: a glob over the name or its last parts, or re:REGEX; `linear` stands for the
    /// default selection, so `--include linear --include lm_head` adds the head. Can be repeated
    #[arg(long, value_name = "PATTERN", help_heading = "Result")]
    include: Vec<String>,
    /// Leave out modules that match. Can be repeated
    #[arg(long, value_name = "PATTERN", help_heading = "Result")]
    exclude: Vec<String>,
    /// With --hybrid: the share of the rank that goes to the change [default: 0.5]
    #[arg(long, value_name = "SHARE", requires = "hybrid", help_heading = "Result")]
    hybrid_share: Option<f64>,
    /// Let the linear weights behind a norm carry its change, which no LoRA can hold: where the base's activation
    /// scales are folded into its norms (AWQ, SmoothQuant), wherever a norm differs, or nowhere
    #[arg(long, value_enum, default_value_t = AbsorbNormsName::Auto, num_args = 0..=1, default_missing_value = "always",
        value_name = "WHEN", require_equals = true, help_heading = "Result")]
    absorb_norms: AbsorbNormsName,
    /// If the vocabularies differ, use only the common rows
    #[arg(long, help_heading = "Result")]
    trim_vocab: bool,
    /// The adapter's base_model_name_or_path [default: the value of --base]
    #[arg(long, value_name = "NAME", help_heading = "Result")]
    base_model_name: Option<String>,

    /// The program that will load the adapter, where programs take experts and config in different forms; `all` makes
    /// what most of them load, and what PEFT needs where only one of them can be served
    #[arg(long = "for", value_enum, value_name = "PROGRAM", default_value_t = LoaderName::All, help_heading = "Result")]
    target: LoaderName,
    /// Copy the tuned checkpoint's tokenizer, chat template and generation config into the adapter's folder
    #[arg(long, help_heading = "Result")]
    copy_tokenizer: bool,
    /// Continue without selected modules that only one of the checkpoints has, or that have different shapes
    #[arg(long, help_heading = "Result")]
    allow_missing: bool,
    /// Accept a quantized tuned checkpoint on an unquantized base
    #[arg(long, help_heading = "Result")]
    allow_quantized_tuned: bool,

    #[command(flatten)]
    splitting: Splitting,
    /// Limit on the peak resident memory of the whole process
    /// [default: the smaller of 2GiB and half the available memory]
    #[arg(long, value_name = "SIZE", value_parser = byte_size::parse, help_heading = "Running")]
    memory: Option<u64>,
    /// Number of compute threads [default: one per processor]
    #[arg(long, help_heading = "Running")]
    threads: Option<usize>,
    /// Keep each module's shard after the adapter is assembled
    #[arg(long, help_heading = "Running")]
    keep_shards: bool,
    /// Discard an earlier run in the output folder and start over
    #[arg(long, help_heading = "Running")]
    overwrite: bool,
    /// Resume a run that was started on a processor with different vector instructions; its bytes may then differ
    #[arg(long, help_heading = "Running")]
    other_simd: bool,
    /// Show what would be done, without doing it
    #[arg(long, help_heading = "Running")]
    dry_run: bool,
    /// With --dry-run: the speed of the link to a server, in bytes a second
    #[arg(long, value_name = "SIZE", value_parser = byte_size::parse, default_value = "100MB",
          help_heading = "Running", hide_short_help = true)]
    link_rate: u64,
    /// Do not show progress
    #[arg(short, long, help_heading = "Running")]
    quiet: bool,
    /// Print the summary (or, with --dry-run, the plan) as JSON to stdout
    #[arg(long, help_heading = "Running")]
    json: bool,
}

words!(MethodName => Method {
    /// Chosen by shape, rank and tolerance
    Auto,
    /// Randomized block Krylov
    Krylov,
    /// Gram matrix and dense eigensolver: optimal, but slower when the shorter side is large
    Gram
});
words!(PrecisionName => Precision {
    /// Bytes, but f32 for a module where bytes would cost a visible part of the tolerance
    Auto,
    /// Bytes, with a scale for every 256 columns of a row
    Int8,
    /// f32
    F32
});
words!(RoundName => RoundBase {
    /// The exact product of code and scale
    None,
    /// bfloat16
    Bf16
});
words!(AbsorbNormsName => AbsorbNorms {
    /// Where scales are folded
    Auto,
    /// Wherever a norm differs
    Always,
    /// Nowhere
    Never
});
words!(NonFiniteName => NonFinite { Fail, Zero });

impl ExtractArgs {
    fn extraction(&self) -> Result<Extraction> {
        let rank = self.ranks.iter().copied().max().unwrap_or(self.rank);
        Ok(Extraction {
            base: self.base.clone(),
            tuned: self.tuned.clone(),
            served: self.served.clone(),
            calibration: self.calibration.clone(),
            hybrid: self.hybrid.clone(),
            out: self.out.clone(),
            deciding: ResultOptions {
                rank,
                lower_ranks: self.ranks.iter().copied().filter(|&lower| lower < rank).collect(),
                target: self.target_error.map(Target::Error).or(self.target_energy.map(Target::Energy)),
                energy: self.energy,
                tolerance: self.tolerance,
                method: self.method.into(),
                precision: self.precision.into(),
                seed: self.seed,
                dtype: self.dtype.into(),
                round_base: self.round_base.into(),
                non_finite: self.non_finite.into(),
                include: self.include.clone(),
                exclude: self.exclude.clone(),
                trim_vocab: self.trim_vocab,
                base_model_name: self.base_model_name.clone().unwrap_or_else(|| name_of(&self.base)),
                absorb_norms: self.absorb_norms.into(),
                loader: self.target.loader(),
                hybrid_share: self.hybrid.as_ref().map(|_| self.hybrid_share.unwrap_or(0.5)),
                copy_tokenizer: self.copy_tokenizer,
            },
            allow: Allowances {
                missing: self.allow_missing,
                quantized_tuned: self.allow_quantized_tuned,
                same: false,
            },
            running: RunOptions {
                threads: threads(self.threads)?,
                memory: self.memory.unwrap_or_else(default_memory),
                keep_shards: self.keep_shards,
                overwrite: self.overwrite,
                other_simd: self.other_simd,
            },
        })
    }
}

/// The adapter's default name for its base: the value of `--base` without trailing slashes; of a model at a hub, its
/// name without the revision.
fn name_of(base: &str) -> String {
    if let Some(rest) = base.strip_prefix("hf://") {
        let model: Vec<&str> = rest.split('/').take(2).collect();
        return model.join("/").split('@').next().unwrap_or_default().to_owned();
    }
    let name = base.trim_end_matches('/');
    if name.is_empty() { base.to_owned() } else { name.to_owned() }
}

/// Shows the plan, or runs the extraction.
pub fn run(arguments: ExtractArgs) -> Result<ExitCode> {
    let extraction = arguments.extraction()?;
    let part = arguments.splitting.part()?;
    if arguments.dry_run {
        let plan = plan(&extraction)?;
        let plan = part.map_or_else(|| plan.clone(), |part| plan.share(part));
        if arguments.json {
            print_json(&plan)?;
        } else {
            print(&show_plan(&plan, part, &extraction, arguments.link_rate))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let bar = Bar::new(arguments.quiet);
    leave_on_signal(&bar)?;
    match part {
        Some(part) => {
            let outcome = extract_part(&extraction, part, &bar);
            bar.clear();
            show_part(&outcome?, arguments.json)?;
        }
        None => {
            let outcome = extract(&extraction, &bar);
            bar.clear();
            let outcome = outcome?;
            if arguments.json { print_json(&outcome) } else { print(&show_outcome(&outcome)) }?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

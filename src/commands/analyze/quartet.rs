//! The three or four checkpoints of an analysis, and their matching modules.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::checkpoint::identity::Identity;
use crate::checkpoint::module::Module;
use crate::commands::analyze::record::LeftAside;
use crate::delta::difference::Difference;
use crate::delta::operand::Operand;
use crate::delta::options::{NonFinite, RoundBase};
use crate::delta::pair::{Pair, pair};
use crate::delta::record::{Side, TensorRecord};
use crate::delta::select::Selection;
use crate::delta::tensor_digests::digests;
use crate::pipeline::memory::room;
use crate::pipeline::options::RunOptions;
use crate::quant::encode::requantize::RoundToNearest;
use crate::storage::Keeper;
use crate::{Error, Result};

/// The options that determine the result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnalysisOptions {
    /// The rank of the adapters to assess.
    pub rank: usize,
    /// Seed of the random directions.
    pub seed: u64,
    /// Patterns of modules to analyze; empty for the linear layers.
    pub include: Vec<String>,
    /// Patterns of modules to leave out.
    pub exclude: Vec<String>,
}

impl Default for AnalysisOptions {
    /// The defaults of the command line.
    fn default() -> AnalysisOptions {
        AnalysisOptions { rank: 128, seed: 0, include: Vec::new(), exclude: Vec::new() }
    }
}

/// One analysis: its inputs, its output folder and its options.
#[derive(Clone, Debug)]
pub struct Analyzing {
    /// Path or hub name of `B`.
    pub base: String,
    /// Path or hub name of `Q`.
    pub base_quantized: String,
    /// Path or hub name of `T`.
    pub tuned: String,
    /// Path or hub name of `P`; without it, `T` is quantized like `Q`, by rounding to nearest, if this program can do
    /// that; if not, there are no figures of the tuned noise.
    pub tuned_quantized: Option<String>,
    /// The output folder.
    pub out: PathBuf,
    /// The options that determine the result.
    pub asking: AnalysisOptions,
    /// The other options; those for shards have no effect.
    pub running: RunOptions,
}

/// The opened checkpoints.
#[derive(Debug)]
pub struct Checkpoints {
    /// `B`.
    pub base: Checkpoint,
    /// `Q`.
    pub base_quantized: Checkpoint,
    /// `T`.
    pub tuned: Checkpoint,
    /// `P`, if given.
    pub tuned_quantized: Option<Checkpoint>,
}

/// The origin of `N_t`.
#[derive(Clone, Copy, Debug)]
pub enum TunedNoise<'a> {
    /// A module of `P`.
    TensorInfo(&'a Module),
    /// `T`, quantized here.
    Rounded(RoundToNearest),
    /// `Q` does not quantize this module, so `P` does not either.
    None,
    /// `Q` quantizes it in a format that this program cannot quantize to: `N_t` is not known, and taken as zero.
    Unknown,
}

/// One module in all its checkpoints; only the common rows, if the vocabularies differ.
#[derive(Clone, Debug)]
pub struct Quartet<'a> {
    /// Names and shape.
    pub pair: Pair,
    /// The module in `B`.
    pub base: &'a Module,
    /// The module in `Q`.
    pub base_quantized: &'a Module,
    /// The module in `T`.
    pub tuned: &'a Module,
    /// The module in `P`, or how to make it.
    pub tuned_noise: TunedNoise<'a>,
}

/// The modules that will be analyzed, and those that will not.
#[derive(Debug)]
pub struct Quartets<'a> {
    /// The modules to analyze, by name.
    pub modules: Vec<Quartet<'a>>,
    /// Modules that were selected but are not among them.
    pub left_out: Vec<LeftAside>,
    /// Remarks.
    pub notes: Vec<String>,
    /// The origin of `N_t`, in words.
    pub tuned_noise: String,
}

impl Quartet<'_> {
    /// The module in each checkpoint that has it.
    fn modules(&self) -> impl Iterator<Item = &Module> {
        let stored = match self.tuned_noise {
            TunedNoise::TensorInfo(module) => Some(module),
            _ => None,
        };
        [Some(self.base), Some(self.base_quantized), Some(self.tuned), stored].into_iter().flatten()
    }

    /// Its stored bytes in all checkpoints.
    pub fn bytes(&self) -> u64 {
        self.modules().map(Module::size).sum()
    }

    /// The stored bytes of some rows in all checkpoints.
    pub fn packed_size(&self, rows: Range<usize>) -> u64 {
        self.modules().map(|module| module.packed_size(rows.clone()) as u64).sum()
    }

    /// The stored bytes that stay mapped while it is read.
    pub fn kept_size(&self) -> u64 {
        self.modules().map(|module| module.kept_size() as u64).sum()
    }
}

impl Checkpoints {
    /// Opens the checkpoints.
    ///
    /// # Errors
    /// See [`Checkpoint::open`].
    pub fn open(job: &Analyzing) -> Result<Checkpoints> {
        let mut room = room(job.running.memory);
        let mut open = |place: &str| Checkpoint::open_within(place, &mut room);
        let opened = Checkpoints {
            base: open(&job.base)?,
            base_quantized: open(&job.base_quantized)?,
            tuned: open(&job.tuned)?,
            tuned_quantized: job.tuned_quantized.as_deref().map(open).transpose()?,
        };
        opened.refuse_swapped()?;
        Ok(opened)
    }

    /// Refuses a quantized checkpoint where a dense one belongs, and the other way round: the tables would look
    /// plausible.
    fn refuse_swapped(&self) -> Result<()> {
        for (side, checkpoint) in self.all() {
            let wanted = matches!(side, Side::BaseQuantized | Side::TunedQuantized);
            if checkpoint.modules().any(Module::is_quantized) != wanted {
                let is = if wanted { "is not quantized" } else { "is quantized" };
                let what = format!("--{} {is} ({})", side.flag(), checkpoint.scheme().label());
                let hint = "--base and --tuned are the dense checkpoints, --base-quantized and --tuned-quantized their \
                            quantized copies: are two of them swapped?";
                return Err(Error::decide(what).path(checkpoint.root()).hint(hint));
            }
        }
        Ok(())
    }

    /// Each checkpoint with its role.
    pub fn all(&self) -> Vec<(Side, &Checkpoint)> {
        let three = [
            (Side::Base, &self.base),
            (Side::BaseQuantized, &self.base_quantized),
            (Side::Tuned, &self.tuned),
        ];
        let fourth = self.tuned_quantized.as_ref().map(|p| (Side::TunedQuantized, p));
        three.into_iter().chain(fourth).collect()
    }

    /// The identities of their files.
    pub fn identities(&self) -> BTreeMap<Side, Identity> {
        self.all().into_iter().map(|(side, c)| (side, c.identity().clone())).collect()
    }

    /// The digests of the tensors that a module is read from, in every checkpoint that has it.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    pub fn digests(&self, quartet: &Quartet<'_>) -> Result<Vec<TensorRecord>> {
        let halves = self.halves(quartet);
        let records: Vec<Vec<TensorRecord>> =
            halves.into_par_iter().map(|half| digests(half, &|_| ())).collect::<Result<_>>()?;
        Ok(records.concat())
    }

    /// Keeps what comes from a server until the result is dropped: every module is read several times.
    ///
    /// # Errors
    /// A scratch folder that cannot be written to.
    pub fn keep(&self, quartet: &Quartet<'_>) -> Result<Vec<Box<dyn Keeper>>> {
        let kept = self.halves(quartet).into_iter().map(|half| half.checkpoint.keep_to_reread(half.module));
        Ok(kept.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// Bytes of memory that this takes.
    pub fn memory_to_keep(&self, quartet: &Quartet<'_>) -> u64 {
        self.halves(quartet).into_iter().map(|half| half.checkpoint.memory_to_reread(half.module)).sum()
    }

    /// The stored modules of all checkpoints.
    fn halves<'a>(&'a self, quartet: &Quartet<'a>) -> Vec<Operand<'a>> {
        let stored = match quartet.tuned_noise {
            TunedNoise::TensorInfo(module) => Some(module),
            _ => None,
        };
        let modules = [Some(quartet.base), Some(quartet.base_quantized), Some(quartet.tuned), stored];
        let sides = [Side::Base, Side::BaseQuantized, Side::Tuned, Side::TunedQuantized];
        let checkpoints =
            [Some(&self.base), Some(&self.base_quantized), Some(&self.tuned), self.tuned_quantized.as_ref()];
        sides
            .into_iter()
            .zip(checkpoints)
            .zip(modules)
            .filter_map(|((side, checkpoint), module)| {
                Some(Operand { side, checkpoint: checkpoint?, module: module? })
            })
            .collect()
    }

    /// Finds the modules that all checkpoints have.
    ///
    /// # Errors
    /// Checkpoints that do not belong together, invalid patterns, nothing to analyze; without `P`, a quantization that
    /// cannot be done here.
    pub fn quartets(&self, asking: &AnalysisOptions) -> Result<Quartets<'_>> {
        let selection = Selection::parse(&asking.include, &asking.exclude)?;
        let pairing = pair(&self.base, &self.tuned, &selection, true)?;
        let (mut modules, mut left_out) = (Vec::new(), Vec::new());
        let mut words: BTreeMap<String, usize> = BTreeMap::new();
        for leftover in &pairing.leftovers {
            let name = leftover.base.as_deref().unwrap_or_default();
            if leftover.from_row == 0 && self.base.module(name).is_some() && selection.takes(name) {
                let reason = format!("base and tuned: {}", leftover.reason.words());
                left_out.push(LeftAside { name: name.to_owned(), reason });
            }
        }
        for pair in pairing.pairs {
            match self.quartet(pair)? {
                Ok(quartet) => {
                    match quartet.tuned_noise {
                        TunedNoise::Rounded(how) => *words.entry(how.label()).or_default() += 1,
                        TunedNoise::Unknown => *words.entry(self.unknown_noise()).or_default() += 1,
                        _ => {}
                    }
                    modules.push(quartet);
                }
                Err(left) => left_out.push(left),
            }
        }
        if modules.is_empty() {
            let what = "no module has the same shape in all checkpoints";
            let hint = "give --base-quantized a quantized copy of the base, with the base's names";
            return Err(Error::input(what).path(self.base_quantized.root()).hint(hint));
        }
        modules.sort_by(|a, b| a.pair.name.cmp(&b.pair.name));
        left_out.sort_by(|a, b| a.name.cmp(&b.name));
        let tuned_noise = match (&self.tuned_quantized, words.keys().next()) {
            (Some(_), _) => "a checkpoint".to_owned(),
            (None, None) => "none: the quantized base does not quantize these modules".to_owned(),
            (None, Some(_)) => words.into_keys().collect::<Vec<_>>().join("; "),
        };
        Ok(Quartets { modules, left_out, notes: pairing.notes, tuned_noise })
    }

    fn quartet(&self, pair: Pair) -> Result<std::result::Result<Quartet<'_>, LeftAside>> {
        let Some((base, tuned)) = self.base.module(&pair.name).zip(self.tuned.module(&pair.tuned)) else {
            return Err(Error::unexpected("a paired module is missing").tensor(&pair.name));
        };
        let left = |reason: &str| LeftAside { name: pair.name.clone(), reason: reason.to_owned() };
        let Some(base_quantized) = self.base_quantized.module(&pair.name) else {
            return Ok(Err(left("the quantized base has no such module")));
        };
        if base_quantized.shape() != pair.shape {
            return Ok(Err(left("it has a different shape in the quantized base")));
        }
        let tuned_noise = match &self.tuned_quantized {
            Some(p) => match p.module(&pair.tuned) {
                None => return Ok(Err(left("the quantized tuned checkpoint has no such module"))),
                Some(module) if module.shape() != tuned.shape() => {
                    return Ok(Err(left("it has a different shape in the quantized tuned checkpoint")));
                }
                Some(module) => TunedNoise::TensorInfo(module),
            },
            None if !base_quantized.is_quantized() => TunedNoise::None,
            None => match base_quantized.weight().capabilities().round_to_nearest {
                Some(how) => TunedNoise::Rounded(how),
                None => TunedNoise::Unknown,
            },
        };
        Ok(Ok(Quartet { pair, base, base_quantized, tuned, tuned_noise }))
    }

    fn unknown_noise(&self) -> String {
        format!(
            "not known: this program cannot quantize to {} (a quantized copy given with --tuned-quantized adds it)",
            self.base_quantized.scheme().label()
        )
    }

    fn difference<'a>(
        &'a self,
        rows: usize,
        operands: [(Side, &'a Checkpoint, &'a Module); 2],
    ) -> Result<Difference<'a>> {
        let [base, tuned] = operands.map(|(side, checkpoint, module)| Operand { side, checkpoint, module });
        Difference::new(base, tuned, rows, RoundBase::None, NonFinite::Fail)
    }

    /// `D = T - B`.
    ///
    /// # Errors
    /// A side that cannot be opened.
    pub fn change<'a>(&'a self, quartet: &Quartet<'a>) -> Result<Difference<'a>> {
        let (base, tuned) =
            ((Side::Base, &self.base, quartet.base), (Side::Tuned, &self.tuned, quartet.tuned));
        self.difference(quartet.pair.rows, [base, tuned])
    }

    /// `N_b = dequant(Q) - B`.
    ///
    /// # Errors
    /// A side that cannot be opened.
    pub fn base_noise<'a>(&'a self, quartet: &Quartet<'a>) -> Result<Difference<'a>> {
        let quantized = (Side::BaseQuantized, &self.base_quantized, quartet.base_quantized);
        self.difference(quartet.pair.rows, [(Side::Base, &self.base, quartet.base), quantized])
    }

    /// `C = T - dequant(Q)`.
    ///
    /// # Errors
    /// A side that cannot be opened.
    pub fn corrective<'a>(&'a self, quartet: &Quartet<'a>) -> Result<Difference<'a>> {
        let quantized = (Side::BaseQuantized, &self.base_quantized, quartet.base_quantized);
        self.difference(quartet.pair.rows, [quantized, (Side::Tuned, &self.tuned, quartet.tuned)])
    }
}

//! Sanitizing as a job of the engine: each module's new factors go to a shard.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::commands::sanitize::factors::refit;
use crate::commands::sanitize::options::Sanitizing;
use crate::commands::sanitize::plan::{Planned, SanitizePlan};
use crate::commands::sanitize::record::{Refitted, Sanitized};
use crate::commands::sanitize::write;
use crate::commands::sanitize::write::{FILES, RECORD};
use crate::delta::record::{Side, TensorRecord};
use crate::durable::folder;
use crate::lora::factor_dtype::FactorType;
use crate::lora::read::PeftAdapter;
use crate::lora::read::classify::PeftModule;
use crate::lora::rules::{Loader, RuleFinding};
use crate::lora::write::shard;
use crate::lora::write::shard::Shard;
use crate::pipeline::options::RunOptions;
use crate::quant::weight::TensorInfo;
use crate::run::attempts::completed::Completed;
use crate::run::attempts::recorder::Recorder;
use crate::run::engine::Engine;
use crate::run::identity::RunIdentity;
use crate::run::job::{Job, RunOutput};
use crate::run::layout::Layout;
use crate::run::parts::partition::Share;
use crate::run::progress::Progress;
use crate::run::unit::{PlannedUnit, Unit, UnitId};
use crate::{Error, Result};

/// The options that determine the bytes.
#[derive(Serialize)]
pub(crate) struct ResultOptions<'a> {
    #[serde(rename = "for")]
    consumers: &'a [Loader],
    max_rank: Option<usize>,
    dtype: Option<FactorType>,
}

/// What the journal records for a module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    refitted: Refitted,
}

/// A planned sanitizing.
pub(crate) struct SanitizeJob<'a> {
    job: &'a Sanitizing,
    adapter: &'a PeftAdapter,
    base: Option<&'a Checkpoint>,
    plan: &'a SanitizePlan<'a>,
    found: &'a [RuleFinding],
    identity: RunIdentity,
    layout: Layout,
    units: Vec<PlannedUnit>,
}

impl<'a> SanitizeJob<'a> {
    /// The job for `plan`. `found` lists the consumers' rules that the adapter breaks.
    ///
    /// # Errors
    /// An output folder that is, or contains, an input; files that cannot be read.
    pub(crate) fn new(
        job: &'a Sanitizing,
        adapter: &'a PeftAdapter,
        base: Option<&'a Checkpoint>,
        plan: &'a SanitizePlan<'a>,
        found: &'a [RuleFinding],
    ) -> Result<SanitizeJob<'a>> {
        if let (Ok(out), Ok(root)) = (job.out.canonicalize(), adapter.root().canonicalize())
            && out == root
        {
            let error = Error::decide("the output folder is the adapter itself").path(&job.out);
            return Err(error.hint("give another --out"));
        }
        for input in [Some(adapter.root()), base.map(Checkpoint::root)].into_iter().flatten() {
            folder::refuse_input(&job.out, input)?;
        }
        let mut inputs = BTreeMap::from([(Side::Adapter, adapter.identity()?)]);
        inputs.extend(base.map(|base| (Side::Base, base.identity().clone())));
        let deciding = ResultOptions { consumers: &job.consumers, max_rank: job.max_rank, dtype: job.dtype };
        let identity = RunIdentity::new("sanitize", &deciding, true, inputs)?;
        let units = sources(plan).map(|(planned, source)| unit(planned, source)).collect();
        Ok(SanitizeJob {
            job,
            adapter,
            base,
            plan,
            found,
            identity,
            layout: Layout::new(RECORD, FILES),
            units,
        })
    }

    /// Sanitizes, or continues a run that was stopped.
    pub(crate) fn run(&self, progress: &dyn Progress) -> Result<Sanitized> {
        let Sanitizing { memory, overwrite, other_simd, .. } = *self.job;
        let running = RunOptions { overwrite, other_simd, ..RunOptions::new(1, memory) };
        let ended = Engine { job: self, out: &self.job.out, running: &running, progress }.run()?;
        if ended.was_done {
            progress.note("this was already done");
        }
        Ok(ended.output)
    }
}

/// The modules that have factors to refit.
fn sources<'p>(plan: &'p SanitizePlan<'_>) -> impl Iterator<Item = (&'p Planned<'p>, &'p PeftModule)> {
    plan.modules.iter().filter_map(|planned| Some((planned, planned.source?)))
}

fn unit(planned: &Planned<'_>, source: &PeftModule) -> PlannedUnit {
    PlannedUnit::new(UnitId::module(&planned.name), 0.0, source.a().size() + source.b().size())
}

impl Job for SanitizeJob<'_> {
    type Record = Record;
    type Done = Refitted;
    type Output = Sanitized;

    fn identity(&self) -> &RunIdentity {
        &self.identity
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn units(&self) -> &[PlannedUnit] {
        &self.units
    }

    fn places(&self) -> Vec<(Side, String)> {
        let base = self.job.base.clone().map(|base| (Side::Base, base));
        base.into_iter().chain([(Side::Adapter, self.job.adapter.clone())]).collect()
    }

    fn checkpoint(&self, side: Side) -> Option<&Checkpoint> {
        self.base.filter(|_| side == Side::Base)
    }

    fn check_inputs(&self) -> Result<()> {
        self.adapter.check_unchanged()?;
        self.base.map_or(Ok(()), Checkpoint::check_unchanged)
    }

    fn disk_bytes(&self) -> u64 {
        let factors = |planned: &Planned<'_>| write::factors(planned, self.plan);
        let size =
            |factor: &TensorInfo| (factor.shape.iter().product::<usize>() * self.plan.dtype.bytes()) as u64;
        let kept = self.plan.kept.iter().map(|(extra, _)| extra.tensor.size());
        // The shards and the adapter are both on disk until the adapter is complete.
        let sizes =
            self.plan.modules.iter().map(|planned| 2 * factors(planned).iter().map(size).sum::<u64>());
        sizes.chain(kept).sum::<u64>() + (1 << 20)
    }

    fn described(&self) -> String {
        format!("{} MiB", self.job.memory >> 20)
    }

    fn load(&self, unit: Unit<Record>, result: &Path) -> Result<Refitted> {
        let written = unit.written.ok_or_else(|| Error::input("its record has no digest").path(result))?;
        Shard::open(result, written)?;
        Ok(unit.record.refitted)
    }

    fn work(
        &self,
        share: &Share,
        recorder: &mut Recorder<'_, Record, Refitted>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let (done, left): (Vec<_>, Vec<_>) = sources(self.plan)
            .filter(|(planned, _)| share.contains(&UnitId::module(&planned.name)))
            .partition(|(planned, _)| recorder.is_done(&UnitId::module(&planned.name)));
        let bytes = |modules: &[(&Planned<'_>, &PeftModule)]| {
            modules.iter().map(|(planned, source)| unit(planned, source).read_bytes).sum::<u64>()
        };
        progress.begin(done.len() + left.len(), bytes(&done) + bytes(&left), done.len(), bytes(&done));
        for (planned, source) in left {
            let started = Instant::now();
            let (encoded, refitted) = refit(self.adapter, source, self.plan.rank, self.plan.dtype)?;
            let path = recorder.results().join(shard::file_name(&planned.name));
            let [a, b] = write::factors(planned, self.plan);
            let written = shard::write(&path, &[(a, &encoded.a), (b, &encoded.b)], &BTreeMap::new())?;
            let (id, record) = (UnitId::module(&planned.name), Record { refitted: refitted.clone() });
            let unit = Unit { id, written: Some(written), tensors: Vec::new(), record };
            recorder.record(unit, path, refitted)?;
            progress.read(source.a().size() + source.b().size());
            progress.analyzed(&planned.name, started.elapsed());
            progress.journaled();
        }
        Ok(())
    }

    fn finish(
        &self,
        identity: &RunIdentity,
        done: &Completed<Refitted>,
        _: &dyn Progress,
    ) -> Result<Sanitized> {
        write::write(self.job, self.adapter, self.base, self.plan, self.found, identity, done)
    }
}

impl RunOutput for Sanitized {
    fn identity(&self) -> RunIdentity {
        RunIdentity {
            command: "sanitize".into(),
            trephine: self.trephine.clone(),
            options: self.options.clone(),
            simd: Some(self.simd.clone()),
            inputs: self.inputs.clone(),
        }
    }

    fn tensors(&self) -> &[TensorRecord] {
        &self.tensors
    }
}

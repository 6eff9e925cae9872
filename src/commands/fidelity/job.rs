//! Measurement as a job of the engine: each module's distances go to a line of the journal.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Map;

use crate::checkpoint::Checkpoint;
use crate::commands::fidelity::measure::{Measurement, Measuring};
use crate::commands::fidelity::record::{FIDELITY, Fidelity, FidelityModule};
use crate::delta::pair::Pair;
use crate::delta::record::{Side, TensorRecord};
use crate::durable::{checksums, json_file};
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

/// Measures every linear module of the model, and every other module that an adapter changes. The numbers are the same
/// as those of `extract --served` for its own adapter. With an output folder, a measurement that was stopped is
/// continued.
///
/// # Errors
/// Bad input, an adapter that is not a plain LoRA, a budget that is too small, a folder that needs a decision, a
/// failing disk.
pub fn fidelity(job: &Measuring, progress: &dyn Progress) -> Result<Fidelity> {
    let measurement = Measurement::plan(job, progress)?;
    match &job.out {
        Some(out) => MeasureJob::new(&measurement, out)?.run(progress),
        None => measurement.whole(progress),
    }
}

/// A planned measurement whose record goes to a folder.
struct MeasureJob<'a> {
    measurement: &'a Measurement<'a>,
    out: &'a Path,
    identity: RunIdentity,
    layout: Layout,
    units: Vec<PlannedUnit>,
}

/// What the journal records for a module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    distances: FidelityModule,
}

/// A finished module, and the tensors read for it.
struct Done {
    distances: FidelityModule,
    tensors: Vec<TensorRecord>,
}

impl<'a> MeasureJob<'a> {
    /// The job for a measurement.
    ///
    /// # Errors
    /// An adapter that cannot be read.
    pub fn new(measurement: &'a Measurement<'a>, out: &'a Path) -> Result<MeasureJob<'a>> {
        let unit = |pair: &Pair| PlannedUnit::new(UnitId::module(&pair.name), 0.0, measurement.bytes(pair));
        let units = measurement.pairs.iter().map(unit).collect();
        let identity = measurement.identity()?;
        Ok(MeasureJob { measurement, out, identity, layout: Layout::new(FIDELITY, [FIDELITY]), units })
    }

    /// Measures, or continues a measurement that was stopped.
    pub fn run(&self, progress: &dyn Progress) -> Result<Fidelity> {
        let engine = Engine { job: self, out: self.out, running: &self.measurement.job.running, progress };
        let ended = engine.run()?;
        if ended.was_done {
            progress.note("this was already measured");
        }
        Ok(ended.output)
    }
}

impl Job for MeasureJob<'_> {
    type Record = Record;
    type Done = Done;
    type Output = Fidelity;

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
        let adapters = self.measurement.job.adapters.iter().map(|adapter| (Side::Adapter, adapter.clone()));
        let (served, tuned) = (self.measurement.job.served.clone(), self.measurement.job.tuned.clone());
        adapters.chain([(Side::Served, served), (Side::Tuned, tuned)]).collect()
    }

    fn checkpoint(&self, side: Side) -> Option<&Checkpoint> {
        match side {
            Side::Served => Some(&self.measurement.served),
            Side::Tuned => Some(&self.measurement.tuned),
            _ => None,
        }
    }

    fn check_inputs(&self) -> Result<()> {
        self.measurement.served.check_unchanged()?;
        self.measurement.tuned.check_unchanged()?;
        self.measurement.adapters.iter().try_for_each(|adapter| adapter.check_unchanged())
    }

    fn disk_bytes(&self) -> u64 {
        /// Bytes of a module's line of the journal and its part of the record, estimated generously.
        const MODULE: u64 = 16 << 10;
        self.units.len() as u64 * MODULE + (1 << 20)
    }

    fn described(&self) -> String {
        format!(
            "{} threads, {} MiB",
            self.measurement.job.running.threads,
            self.measurement.job.running.memory >> 20
        )
    }

    fn load(&self, unit: Unit<Record>, _: &Path) -> Result<Done> {
        Ok(Done { distances: unit.record.distances, tensors: unit.tensors })
    }

    fn work(
        &self,
        share: &Share,
        recorder: &mut Recorder<'_, Record, Done>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let pairs = self.measurement.pairs.iter().filter(|pair| share.contains(&UnitId::module(&pair.name)));
        let (done, left): (Vec<&Pair>, Vec<&Pair>) =
            pairs.partition(|pair| recorder.is_done(&UnitId::module(&pair.name)));
        let bytes = |pairs: &[&Pair]| pairs.iter().map(|pair| self.measurement.bytes(pair)).sum::<u64>();
        progress.begin(done.len() + left.len(), bytes(&done) + bytes(&left), done.len(), bytes(&done));
        for pair in left {
            let started = Instant::now();
            let _kept = self.measurement.keep(pair)?;
            let distances = self.measurement.module(pair)?;
            progress.read(self.measurement.bytes(pair));
            let (id, tensors) = (UnitId::module(&pair.name), self.measurement.digests(pair)?);
            let record = Record { distances: distances.clone() };
            let unit = Unit { id, written: None, tensors: tensors.clone(), record };
            recorder.record(unit, PathBuf::new(), Done { distances, tensors })?;
            progress.analyzed(&pair.name, started.elapsed());
            progress.journaled();
        }
        Ok(())
    }

    fn finish(&self, identity: &RunIdentity, done: &Completed<Done>, _: &dyn Progress) -> Result<Fidelity> {
        let (mut modules, mut tensors) = (Vec::new(), Vec::new());
        for pair in &self.measurement.pairs {
            let unit = done.get(&UnitId::module(&pair.name)).ok_or_else(|| {
                Error::unexpected("a module was never finished")
                    .tensor(&pair.name)
                    .hint("run the same command again")
            })?;
            modules.push(unit.done.distances.clone());
            tensors.extend(unit.done.tensors.iter().cloned());
        }
        let record = self.measurement.record(identity, modules, tensors)?;
        let written = json_file::write(&self.out.join(FIDELITY), &record)?;
        checksums::write(self.out, &BTreeMap::from([(FIDELITY.to_owned(), written.blake3)]))?;
        Ok(record)
    }
}

impl RunOutput for Fidelity {
    fn identity(&self) -> RunIdentity {
        RunIdentity {
            command: "fidelity".into(),
            trephine: self.trephine.clone(),
            options: Map::new(),
            simd: Some(self.simd.clone()),
            inputs: self.inputs.clone(),
        }
    }

    fn tensors(&self) -> &[TensorRecord] {
        &self.tensors
    }
}

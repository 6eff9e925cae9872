//! Extraction as a job of the engine: a module's factors go to a shard, a comparison's result to the journal.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use crate::calibration::OpenCalibration;
use crate::checkpoint::Checkpoint;
use crate::commands::extract::inputs::{Inputs, side_files};
use crate::commands::extract::options::{Allowances, Extraction, ResultOptions};
use crate::commands::extract::output::files::{FILES, MANIFEST};
use crate::commands::extract::output::manifest::Manifest;
use crate::commands::extract::output::ranks;
use crate::commands::extract::output::summary::ExtractionOutcome;
use crate::commands::extract::output::write;
use crate::commands::extract::output::write::DoneWork;
use crate::commands::extract::plan::{ExtractionPlan, PlannedModule};
use crate::commands::extract::record::{Done, Record};
use crate::commands::extract::stages;
use crate::delta::record::{Side, TensorRecord};
use crate::factorize::precision::Precision;
use crate::lora::write::shard::Shard;
use crate::run::attempts::completed::Completed;
use crate::run::attempts::recorder::Recorder;
use crate::run::engine::{Engine, PartOutcome};
use crate::run::identity::{RunIdentity, option_map, simd_level};
use crate::run::job::{Job, RunOutput};
use crate::run::layout::{LOG, Layout};
use crate::run::parts;
use crate::run::parts::assemble::{Assembled, Assembly, Begun, Recorded};
use crate::run::parts::part_id::Part;
use crate::run::parts::partition::Share;
use crate::run::progress::Progress;
use crate::run::unit::{PlannedUnit, Unit, UnitId};
use crate::simd::fuses;
use crate::{Error, Result};

/// A planned extraction.
pub(crate) struct ExtractJob<'a> {
    extraction: &'a Extraction,
    inputs: &'a Inputs,
    plan: &'a ExtractionPlan,
    identity: RunIdentity,
    layout: Layout,
    units: Vec<PlannedUnit>,
}

impl<'a> ExtractJob<'a> {
    /// The job for `plan`.
    ///
    /// # Errors
    /// Options that cannot be written as JSON.
    pub fn new(
        extraction: &'a Extraction,
        inputs: &'a Inputs,
        plan: &'a ExtractionPlan,
    ) -> Result<ExtractJob<'a>> {
        let sides = [
            (Side::Base, Some(&inputs.base)),
            (Side::Tuned, Some(&inputs.tuned)),
            (Side::Served, inputs.served.as_ref()),
            (Side::Hybrid, inputs.dense.as_ref()),
        ];
        let sides = sides.into_iter().filter_map(|(side, open)| Some((side, open?.identity().clone())));
        let mut sides: BTreeMap<_, _> = sides.collect();
        if let Some(calibration) = &inputs.calibration {
            sides.insert(Side::Calibration, calibration.identity()?);
        }
        let identity =
            RunIdentity::new("extract", &extraction.deciding, depends_on_simd(inputs, plan), sides)?;
        let mut files = FILES[..5].to_vec();
        if extraction.deciding.copy_tokenizer {
            files.extend(side_files::names(&inputs.tuned)?);
        }
        let outputs = ranks::outputs(&files, &extraction.deciding.ranks_below(plan.rank));
        let layout = Layout { log: Some(LOG), ..Layout::new(MANIFEST, outputs) };
        Ok(ExtractJob { extraction, inputs, plan, identity, layout, units: plan.units() })
    }

    fn engine<'e>(&'e self, progress: &'e dyn Progress) -> Engine<'e, ExtractJob<'a>> {
        Engine { job: self, out: &self.extraction.out, running: &self.extraction.running, progress }
    }

    /// Extracts, or continues an extraction that was stopped, split or not.
    pub fn run(&self, progress: &dyn Progress) -> Result<ExtractionOutcome> {
        let started = Instant::now();
        let ended = self.engine(progress).run()?;
        let seconds = (!ended.was_done).then(|| started.elapsed().as_secs_f64());
        Ok(ExtractionOutcome::new(self.extraction.out.clone(), ended.output, seconds))
    }

    /// Runs one part.
    pub fn part(&self, part: Part, progress: &dyn Progress) -> Result<PartOutcome> {
        self.engine(progress).part(part)
    }
}

/// Whether what comes out may depend on the processor's vectors: not where every module has to be multiplied in bytes.
fn depends_on_simd(inputs: &Inputs, plan: &ExtractionPlan) -> bool {
    let in_bytes = |module: &PlannedModule| module.precision == Precision::Int8;
    let every = !plan.modules.is_empty() && plan.modules.iter().all(in_bytes);
    !every || inputs.served.is_some() || !fuses()
}

/// Assembles the adapter of a run whose parts are all finished.
///
/// # Errors
/// Parts of different runs; a module whose bytes differ between two parts; changed checkpoints; a damaged shard; a
/// failing disk.
pub fn assemble(
    assembly: &Assembly,
    recorded: &Recorded,
    progress: &dyn Progress,
) -> Result<Assembled<ExtractionOutcome>> {
    let begun = match recorded {
        Recorded::Begun(begun) => begun,
        Recorded::Finished(_) => {
            let manifest: Manifest = parts::assemble::finished(assembly, MANIFEST, &FILES[..5], Some(LOG))?;
            return Ok(Assembled::Done(ExtractionOutcome::new(assembly.out.clone(), manifest, None)));
        }
    };
    let started = Instant::now();
    let extraction = recorded_extraction(assembly, begun)?;
    let inputs = Inputs::open(&extraction)?;
    let plan = ExtractionPlan::make(&inputs, &extraction)?;
    let job = ExtractJob::new(&extraction, &inputs, &plan)?;
    let defaults = option_map(&ResultOptions::for_base(&extraction.base))?;
    let assembled = job.engine(progress).assemble(begun, assembly.finish, &defaults)?;
    Ok(assembled.map(|ended| {
        let seconds = (!ended.was_done).then(|| started.elapsed().as_secs_f64());
        ExtractionOutcome::new(assembly.out.clone(), ended.output, seconds)
    }))
}

/// The extraction, rebuilt from what its parts recorded.
fn recorded_extraction(assembly: &Assembly, begun: &Begun) -> Result<Extraction> {
    Ok(Extraction {
        base: begun.place(assembly, Side::Base)?,
        tuned: begun.place(assembly, Side::Tuned)?,
        served: begun.place_if_any(assembly, Side::Served)?,
        calibration: begun.place_if_any(assembly, Side::Calibration)?,
        hybrid: begun.place_if_any(assembly, Side::Hybrid)?,
        out: assembly.out.clone(),
        deciding: begun.options(assembly)?,
        allow: Allowances::ALL,
        running: begun.running(assembly),
    })
}

impl Job for ExtractJob<'_> {
    type Record = Record;
    type Done = Done;
    type Output = Manifest;

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
        let Extraction { base, tuned, served, calibration, hybrid, .. } = self.extraction;
        let two = [(Side::Base, base.clone()), (Side::Tuned, tuned.clone())];
        let more = [(Side::Served, served), (Side::Calibration, calibration), (Side::Hybrid, hybrid)];
        let more = more.into_iter().filter_map(|(side, place)| Some((side, place.clone()?)));
        two.into_iter().chain(more).collect()
    }

    fn checkpoint(&self, side: Side) -> Option<&Checkpoint> {
        match side {
            Side::Base => Some(&self.inputs.base),
            Side::Tuned => Some(&self.inputs.tuned),
            Side::Served => self.inputs.served.as_ref(),
            Side::Hybrid => self.inputs.dense.as_ref(),
            _ => None,
        }
    }

    fn check_inputs(&self) -> Result<()> {
        self.inputs.all().try_for_each(Checkpoint::check_unchanged)?;
        self.inputs.calibration.iter().try_for_each(OpenCalibration::check_unchanged)
    }

    fn room_hint(&self) -> &'static str {
        "make room, or give another --out; a lower --rank needs less"
    }

    fn disk_bytes(&self) -> u64 {
        self.plan.disk_bytes
    }

    fn described(&self) -> String {
        format!("{} threads, {} MiB, {}", self.plan.threads, self.plan.memory >> 20, simd_level())
    }

    fn unit_title(&self, unit: &UnitId) -> String {
        let compared = self.plan.not_represented.iter().find(|left| *unit == left.unit);
        compared.map_or(&unit.name, |left| &left.name).to_string()
    }

    fn load(&self, unit: Unit<Record>, result: &Path) -> Result<Done> {
        let Some(written) = unit.written else {
            let left_out = unit.record.left_out;
            let left_out =
                left_out.ok_or_else(|| Error::input("its record is empty").tensor(unit.id.name))?;
            return Ok(Done::Compared(left_out, unit.tensors));
        };
        let shard = Shard::open(result, written)?;
        let record = shard.metadata().get("record").and_then(|text| serde_json::from_str(text).ok());
        let record = record.ok_or_else(|| Error::input("its record cannot be read").path(result))?;
        Ok(Done::Module(Box::new(record)))
    }

    fn work(
        &self,
        share: &Share,
        recorder: &mut Recorder<'_, Record, Done>,
        progress: &dyn Progress,
    ) -> Result<()> {
        stages::run(self.inputs, self.extraction, &self.plan.only(share), recorder, progress)
    }

    fn finish(&self, identity: &RunIdentity, done: &Completed<Done>, _: &dyn Progress) -> Result<Manifest> {
        write::finish(self.inputs, self.extraction, self.plan, identity, &DoneWork::new(done))
    }
}

impl RunOutput for Manifest {
    fn identity(&self) -> RunIdentity {
        RunIdentity {
            command: "extract".into(),
            trephine: self.trephine.clone(),
            options: self.options.clone(),
            simd: Some(self.simd.clone()).filter(|simd| !simd.is_empty()),
            inputs: self.inputs.clone(),
        }
    }

    fn tensors(&self) -> &[TensorRecord] {
        &self.tensors
    }
}

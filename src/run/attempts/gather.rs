//! Valid work of earlier attempts: results that are intact, made from inputs that have not changed.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use crate::checkpoint::Checkpoint;
use crate::delta::record::{Side, TensorRecord};
use crate::durable::digest::HexDigest;
use crate::run::attempts::attempt::Attempt;
use crate::run::attempts::completed::Completed;
use crate::run::identity::{RunIdentity, changed};
use crate::run::job::Job;
use crate::run::life::{Condition, SILENT, last_beat};
use crate::run::unit::{Unit, UnitId};
use crate::{Error, Result};

/// The decision about a unit that a journal says is done.
enum Verdict<D> {
    /// Its result is intact, and its inputs have not changed.
    Keep(D, PathBuf),
    /// Its result is missing or damaged: it is done again.
    Redo(Error),
    /// A tensor that was read for it has changed: this is a different run.
    Refuse(Error),
}

/// The attempts that report a unit as done: the index of each, with its last entry for the unit.
type Claims<'a, R> = BTreeMap<&'a UnitId, Vec<(usize, &'a Unit<R>)>>;

/// Loads the `wanted` units that the journals of `attempts` report as done. If one attempt did a unit twice, its last
/// entry counts; if two attempts did it, they must agree.
///
/// # Errors
/// Two attempts with different bytes for a unit; a tensor that has changed since it was read.
pub(crate) fn gather<J: Job + ?Sized>(
    job: &J,
    out: &Path,
    attempts: &[Attempt<J::Record>],
    wanted: &dyn Fn(&UnitId) -> bool,
    notes: &mut Vec<String>,
) -> Result<Completed<J::Done>> {
    // In the order of names, so that notes and errors are reproducible.
    let mut claims: Claims<'_, J::Record> = BTreeMap::new();
    // What a journal names beside the plan is not of this run: not even its file is looked at.
    let planned: HashSet<&UnitId> = job.units().iter().map(|unit| &unit.id).collect();
    let counts = |id: &UnitId| planned.contains(id) && wanted(id);
    for (index, attempt) in attempts.iter().enumerate() {
        for unit in attempt.units.iter().filter(|unit| counts(&unit.id)) {
            let claims = claims.entry(&unit.id).or_default();
            claims.retain(|(attempt, _)| *attempt != index);
            claims.push((index, unit));
        }
    }
    let touched: Vec<Vec<(Side, String)>> = attempts
        .iter()
        .map(|attempt| {
            attempt.identity.as_ref().map_or(Vec::new(), |then| job.identity().touched_since(then))
        })
        .collect();
    let mut done = Completed::new();
    for (id, claims) in claims {
        let (first, unit) = claims[0];
        if let Some((other, _)) = claims[1..].iter().find(|(_, other)| *other != unit) {
            return Err(differ([&attempts[first], &attempts[*other]], &id.name));
        }
        let mut why = None;
        for (index, unit) in claims {
            match check(job, out, &attempts[index].folder, unit, &touched[index]) {
                Verdict::Keep(loaded, path) => {
                    done.insert(id.clone(), path, unit.written, loaded);
                    why = None;
                    break;
                }
                Verdict::Redo(error) => why = Some(error),
                Verdict::Refuse(error) => return Err(error),
            }
        }
        notes.extend(why.map(|why| format!("{} is done again: {why}", id.name)));
    }
    Ok(done)
}

/// The rule for finished work: tensors read from a file that was modified since are hashed again, and a result is
/// trusted if its digest matches the journal.
fn check<J: Job + ?Sized>(
    job: &J,
    out: &Path,
    attempt: &Path,
    unit: &Unit<J::Record>,
    touched: &[(Side, String)],
) -> Verdict<J::Done> {
    if let Err(error) = check_touched(job, touched, &unit.tensors, out) {
        return Verdict::Refuse(error);
    }
    let name = job.result_name(&unit.id);
    let mut path = job.layout().results(out, attempt).join(&name);
    // A killed assembly may have moved some results to their final place already.
    if job.layout().in_place && !path.exists() {
        path = out.join(name);
    }
    let mut unit = unit.clone();
    share_names(job, &mut unit.tensors);
    match job.load(unit, &path) {
        Ok(done) => Verdict::Keep(done, path),
        Err(error) => Verdict::Redo(error),
    }
}

/// Lets records that a journal holds share their names and shapes with the checkpoints, as those of this run do.
fn share_names<J: Job + ?Sized>(job: &J, records: &mut [TensorRecord]) {
    for record in records {
        let Some(checkpoint) = job.checkpoint(record.checkpoint) else { continue };
        let Some(tensor) = checkpoint.tensor(&record.name) else { continue };
        record.name = tensor.stored.name.clone();
        if record.shape == tensor.stored.shape {
            record.shape = tensor.stored.shape.clone();
        }
        let file = checkpoint.shared_file_name(tensor.file);
        if record.file == file {
            record.file = file;
        }
    }
}

/// Hashes again the tensors of `records` that lie in `touched` files: equal sizes and headers do not mean
/// equal weights.
///
/// # Errors
/// A tensor that has changed; a tensor that cannot be read.
pub(crate) fn check_touched<J: Job + ?Sized>(
    job: &J,
    touched: &[(Side, String)],
    records: &[TensorRecord],
    out: &Path,
) -> Result<()> {
    let is_touched = |record: &&TensorRecord| {
        touched.iter().any(|(side, file)| *side == record.checkpoint && *file == record.file)
    };
    for then in records.iter().filter(is_touched) {
        let Some(checkpoint) = job.checkpoint(then.checkpoint) else { continue };
        if !is_as_it_was(checkpoint, then)? {
            let text =
                format!("the tensor {} of the {} has changed since", then.name, then.checkpoint.phrase());
            return Err(changed(out, &text));
        }
    }
    Ok(())
}

/// Whether a tensor, or the part of it that was read, still has its recorded digest.
fn is_as_it_was(checkpoint: &Checkpoint, then: &TensorRecord) -> Result<bool> {
    let Some(tensor) = checkpoint.tensor(&then.name) else { return Ok(false) };
    let [start, end] = then.part.unwrap_or([0, tensor.size()]);
    if end > tensor.size() || tensor.stored.shape != then.shape {
        return Ok(false);
    }
    Ok(HexDigest::from(checkpoint.hash_range(tensor, start..end)?) == then.blake3)
}

/// The error for two attempts with different bytes for one unit.
fn differ<R>(attempts: [&Attempt<R>; 2], name: &str) -> Error {
    let [a, b] = attempts;
    let what = format!("{} and {} computed different bytes", a.name(), b.name());
    let hint = format!(
        "one of them is wrong: was a different processor used, or is memory faulty? remove its folder, {} or {}, and do it again",
        a.folder.display(),
        b.folder.display()
    );
    Error::found(what).tensor(name).hint(hint)
}

/// Refuses attempts at a run other than `identity`, even those that have finished nothing: they may be running.
///
/// # Errors
/// An attempt with a different command, version, SIMD level, input or option; the error names the difference.
pub(crate) fn check_same<R>(
    attempts: &[Attempt<R>],
    identity: &RunIdentity,
    other_simd: bool,
    out: &Path,
) -> Result<()> {
    for attempt in attempts {
        let Some(before) = &attempt.identity else { continue };
        if let Some(text) = identity.difference(before, other_simd) {
            let whose = if attempt.is_of_part() { format!("{}: ", attempt.name()) } else { String::new() };
            return Err(changed(out, &(whose + &text)));
        }
    }
    Ok(())
}

/// Notes on parts that appear to be running, for a run that is about to do the same units.
pub(crate) fn at_work<R>(attempts: &[Attempt<R>]) -> impl Iterator<Item = String> {
    let parts = attempts.iter().filter(|attempt| attempt.is_of_part());
    parts.filter_map(|attempt| {
        let (beat, ago) = last_beat(&attempt.folder)?;
        let fresh = beat.condition == Condition::Running && ago < SILENT;
        let (name, ago) = (attempt.name(), ago.as_secs());
        fresh.then(|| {
            format!(
                "{name} appears to be running (heartbeat {ago} s ago); its work is done here as well, which is harmless"
            )
        })
    })
}

/// Notes on damaged journals: the entries before the damage count, the rest is done again.
pub(crate) fn damages<R>(attempts: &[Attempt<R>]) -> impl Iterator<Item = String> {
    attempts.iter().filter_map(|attempt| {
        let damage = attempt.damage.as_ref()?;
        Some(format!("{}: {damage}; the entries before that count, the rest is done again", attempt.name()))
    })
}

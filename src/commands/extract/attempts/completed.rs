//! What all attempts at a run have finished together: each module's shard and each comparison, once.

use crate::commands::extract::attempts::attempt::Work;
use crate::commands::extract::plan::Plan;
use crate::run::identity::changed;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use crate::checkpoint::identity::Change;
use crate::commands::extract::attempts::attempt::Attempt;
use crate::commands::extract::attempts::entry::Entry;
use crate::commands::extract::module::ShardRecord;
use crate::commands::extract::plan::Inputs;
use crate::commands::extract::run_identity::Begin;
use crate::delta::record::{LeftOut, Side, TensorRecord};
use crate::delta::tensor_digests::tensor_record;
use crate::durable::digest::Written;
use crate::lora::write::shard;
use crate::lora::write::shard::Shard;
use crate::run::layout::SHARDS;
use crate::run::life::SILENT;
use crate::run::life::{Condition, last_beat};
use crate::{Error, Result};

/// A finished module.
#[derive(Clone, Debug)]
pub struct DoneModule {
    /// Its shard.
    pub path: PathBuf,
    /// The shard's length and digest.
    pub written: Written,
    /// What the shard says.
    pub record: ShardRecord,
}

/// What is finished.
#[derive(Debug, Default)]
pub struct Finished {
    /// Modules by name.
    pub modules: HashMap<String, DoneModule>,
    /// Comparisons by [key](LeftOut::key).
    pub compared: HashMap<String, (LeftOut, Vec<TensorRecord>)>,
    /// What was read for them, by attempt.
    read: Vec<Vec<TensorRecord>>,
}

impl Work {
    /// All that `plan` has.
    pub fn of(plan: &Plan) -> Work {
        Work::ahead(plan, &Finished::default())
    }

    /// What of `plan` is not in `done`.
    pub fn ahead(plan: &Plan, done: &Finished) -> Work {
        let modules = plan.modules.iter().filter(|m| !done.modules.contains_key(&m.name));
        let compared = plan.not_represented.iter().filter(|l| !done.compared.contains_key(&l.key()));
        let costs = modules.map(|m| (1, 0, m.read_bytes, m.cost()));
        let costs = costs.chain(compared.map(|l| (0, 1, l.read_bytes, l.cost())));
        costs.fold(Work::default(), |sum, (modules, compared, bytes, cost)| Work {
            modules: sum.modules + modules,
            compared: sum.compared + compared,
            bytes: sum.bytes + bytes,
            cost: sum.cost + cost,
        })
    }

    /// Whether there is nothing to do.
    pub fn is_none(&self) -> bool {
        self.modules == 0 && self.compared == 0
    }
}

/// The word of one attempt's journal for a module.
struct Claim<'a> {
    attempt: usize,
    bytes: u64,
    blake3: &'a str,
}

impl Finished {
    /// Takes what the journals of `attempts` say is done, as far as it is `wanted` and there. Of a module that one
    /// attempt did twice its last word counts; of one that two did, either, if they agree.
    ///
    /// # Errors
    /// Two attempts that came to different bytes.
    pub fn gather(
        attempts: &[Attempt],
        wanted: &dyn Fn(&Entry) -> bool,
        notes: &mut Vec<String>,
    ) -> Result<Finished> {
        let mut done = Finished { read: vec![Vec::new(); attempts.len()], ..Finished::default() };
        let mut claims: BTreeMap<&str, Vec<Claim<'_>>> = BTreeMap::new();
        let mut by_whom: HashMap<String, usize> = HashMap::new();
        for (index, attempt) in attempts.iter().enumerate() {
            for entry in attempt.done.iter().filter(|entry| wanted(entry)) {
                match entry {
                    Entry::Begin(_) => {}
                    Entry::Module { name, bytes, blake3 } => {
                        let claims = claims.entry(name).or_default();
                        claims.retain(|claim| claim.attempt != index);
                        claims.push(Claim { attempt: index, bytes: *bytes, blake3 });
                    }
                    Entry::Compared { left_out, tensors } => {
                        let key = left_out.key();
                        let found = (left_out.clone(), tensors.clone());
                        let before = done.compared.insert(key.clone(), found.clone());
                        let first = *by_whom.entry(key).or_insert(index);
                        if first != index && before.is_some_and(|before| before != found) {
                            return Err(differ(attempts, first, index, &left_out.name));
                        }
                        done.read[index].extend(tensors.iter().cloned());
                    }
                }
            }
        }
        for (name, claims) in claims {
            done.take(attempts, name, &claims, notes)?;
        }
        Ok(done)
    }

    fn take(
        &mut self,
        attempts: &[Attempt],
        name: &str,
        claims: &[Claim<'_>],
        notes: &mut Vec<String>,
    ) -> Result<()> {
        let (first, others) = (&claims[0], &claims[1..]);
        if let Some(other) = others.iter().find(|o| (o.bytes, o.blake3) != (first.bytes, first.blake3)) {
            return Err(differ(attempts, first.attempt, other.attempt, name));
        }
        let mut why = None;
        for claim in claims {
            let shards = attempts[claim.attempt].folder.join(SHARDS);
            match trusted(&shards, name, claim.bytes, claim.blake3) {
                Ok(module) => {
                    self.read[claim.attempt].extend(module.record.tensors.iter().cloned());
                    self.modules.insert(name.to_owned(), module);
                    return Ok(());
                }
                Err(e) => why = Some(e),
            }
        }
        notes.extend(why.map(|why| format!("{name} is done again: {why}")));
        Ok(())
    }

    /// Bytes of the shards.
    pub fn bytes(&self) -> u64 {
        self.modules.values().map(|module| module.written.bytes).sum()
    }

    /// Holds what was read against files that `now` finds written again since an attempt began: the same sizes and
    /// headers may still be other weights, so the tensors in them are hashed again.
    ///
    /// # Errors
    /// A tensor that has changed; what cannot be read.
    pub fn check_inputs(&self, attempts: &[Attempt], now: &Begin, inputs: &Inputs, out: &Path) -> Result<()> {
        for (attempt, read) in attempts.iter().zip(&self.read) {
            let Some(before) = &attempt.begin else { continue };
            check_touched(inputs, &touched(now, before), read.iter(), out)?;
        }
        Ok(())
    }
}

/// The error for two attempts that came to different bytes of one thing.
fn differ(attempts: &[Attempt], first: usize, second: usize, name: &str) -> Error {
    let [a, b] = [first, second].map(|index| &attempts[index]);
    let what = format!("{} and {} came to different bytes", a.name(), b.name());
    let hint = format!(
        "one of them is wrong: was another processor used, or is a memory faulty? remove its folder, {} or {}, and do it again",
        a.folder.display(),
        b.folder.display()
    );
    Error::found(what).tensor(name).hint(hint)
}

/// A shard is trusted when its digest is the journal's.
fn trusted(shards: &Path, name: &str, bytes: u64, blake3: &str) -> Result<DoneModule> {
    let path = shards.join(shard::file_name(name));
    let unreadable = || Error::input("its record cannot be read").path(&path);
    let written = Written { bytes, blake3: blake3::Hash::from_hex(blake3).map_err(|_| unreadable())? };
    let shard = Shard::open(&path, written)?;
    let record = shard.metadata().get("record").and_then(|text| serde_json::from_str(text).ok());
    let record = record.ok_or_else(unreadable)?;
    Ok(DoneModule { path, written, record })
}

/// Files whose modification time is another one than when the run began.
fn touched(now: &Begin, before: &Begin) -> Vec<(Side, String)> {
    let sides = now.inputs.iter().filter_map(|(side, now)| Some((side, now, before.inputs.get(side)?)));
    let file = |change| match change {
        Change::Touched(file) => Some(file),
        _ => None,
    };
    sides
        .flat_map(|(side, now, then)| then.changes(now).into_iter().filter_map(file).map(|f| (*side, f)))
        .collect()
}

/// Those of `records`, what has been read so far, that lie in `touched` files are hashed again.
///
/// # Errors
/// A tensor that has changed; what cannot be read.
pub fn check_touched<'a>(
    inputs: &Inputs,
    touched: &[(Side, String)],
    records: impl Iterator<Item = &'a TensorRecord>,
    out: &Path,
) -> Result<()> {
    for then in
        records.filter(|t| touched.iter().any(|(side, file)| *side == t.checkpoint && *file == t.file))
    {
        let checkpoint = match then.checkpoint {
            Side::Base => Some(&inputs.base),
            Side::Tuned => Some(&inputs.tuned),
            Side::Served => inputs.served.as_ref(),
        };
        let Some((checkpoint, tensor)) = checkpoint.and_then(|c| Some((c, c.tensor(&then.name)?))) else {
            continue;
        };
        let [start, end] = then.part.unwrap_or([0, tensor.size()]);
        let range = start.min(tensor.size())..end.min(tensor.size());
        let digest = checkpoint.hash_range(tensor, range.clone())?;
        if tensor_record(then.checkpoint, checkpoint, tensor, range, digest) != *then {
            let text =
                format!("the tensor {} of the {} checkpoint has changed since", then.name, then.checkpoint);
            return Err(changed(out, &text));
        }
    }
    Ok(())
}

/// Refuses attempts at another run than `begin`. One that has done nothing is taken as seriously as any: it may be at
/// work.
///
/// # Errors
/// An attempt of other inputs, options, version or SIMD level, by name.
pub fn check_same(attempts: &[Attempt], begin: &Begin, other_simd: bool, out: &Path) -> Result<()> {
    for attempt in attempts {
        let Some(before) = &attempt.begin else { continue };
        if let Some(text) = begin.difference(before, other_simd) {
            let whose = if attempt.is_of_part() { format!("{}: ", attempt.name()) } else { String::new() };
            return Err(changed(out, &(whose + &text)));
        }
    }
    Ok(())
}

/// Parts that seem to be at work, for who is about to do what they are doing.
pub fn at_work(attempts: &[Attempt]) -> impl Iterator<Item = String> {
    let parts = attempts.iter().filter(|attempt| attempt.is_of_part());
    parts.filter_map(|attempt| {
        let (beat, ago) = last_beat(&attempt.folder)?;
        let fresh = beat.condition == Condition::Running && ago < SILENT;
        let (name, ago) = (attempt.name(), ago.as_secs());
        fresh.then(|| {
            format!(
                "{name} seems to be at work, it wrote {ago} s ago: what it is at is done here too, to no harm"
            )
        })
    })
}

/// What is wrong with journals, for the user: what stands before the damage counts, the rest is done again.
pub fn damages(attempts: &[Attempt]) -> impl Iterator<Item = String> {
    attempts.iter().filter_map(|attempt| {
        let damage = attempt.damage.as_ref()?;
        Some(format!("{}: {damage}; what it says before that counts, the rest is done again", attempt.name()))
    })
}

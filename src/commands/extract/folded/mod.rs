//! Bases whose activation scales were folded into norms and neighbouring weights.
//!
//! AWQ, SmoothQuant and modelopt's variants of them divide a norm by a vector `s` and multiply the columns of the
//! weights behind it by `s`; they also move scales between the rows of `up_proj` and the columns of `down_proj`, and
//! between `v_proj` and `o_proj`. The function stays the same and the weights do not, so `tuned - base` is not the
//! change. With the two checkpoints' norms `n_t` and `n_b`,
//!
//! ```text
//! W_t · diag(n_t / n_b) - W_b
//! ```
//!
//! is: a linear weight behind the base's norm then computes exactly what the tuned one does behind its own, whatever
//! made the norms differ. So this also carries what a fine-tune did to a norm, which no LoRA can hold. For two weights
//! with a product between them any factors `c` of the rows of the first, undone in the columns of the second, give the
//! same function; the ones that bring `up_proj` nearest to the base's are taken, row by row.

mod norms;
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::checkpoint::ModuleReader;
use crate::commands::extract::folded::norms::{NormPair, norm_before};
use crate::commands::extract::inputs::Inputs;
use crate::commands::extract::options::AbsorbNorms;
use crate::delta::pair::{Leftover, Pair, Pairing};
use crate::delta::record::Reason;
use crate::delta::rescaling::Rescaling;
use crate::{Error, Result};

/// The change of a norm, relative to it, below which nobody looks for folded scales: bf16 rounds by 0.4 %.
const LEAST_CHANGE: f64 = 0.005;

/// The share of the squared difference of sampled rows that is left by rescaling, where scales were folded.
pub(crate) const FOLDED: f64 = 0.9;

/// Rows that are compared to see whether scales were folded, in slices over the whole weight.
const SAMPLED: usize = 256;
const SLICE: usize = 32;

/// What the tuned weights are multiplied by.
#[derive(Debug, Default)]
pub(crate) struct Folded {
    /// By the base's names.
    pub(crate) rescalings: BTreeMap<String, Arc<Rescaling>>,
    /// The norms whose difference the weights behind them carry, by the base's names, with `.weight`.
    pub(crate) absorbed: BTreeSet<String>,
    /// What to say of it.
    pub(crate) notes: Vec<String>,
}

/// One norm with the pairs that read its output.
struct Group<'a> {
    norm: String,
    values: NormPair,
    pairs: Vec<&'a Pair>,
    /// Whether the norm's other readers, which the adapter does not hold, exist.
    partly: bool,
}

impl Folded {
    /// Looks for folded scales, and decides what is rescaled.
    ///
    /// # Errors
    /// Folded scales that cannot be undone; inputs that only go with unfolded ones; tensors that cannot be read.
    pub(crate) fn find(inputs: &Inputs, wanted: AbsorbNorms, pairing: &Pairing) -> Result<Folded> {
        let mut folded = Folded::default();
        if wanted == AbsorbNorms::Never {
            return Ok(folded);
        }
        let groups = groups(inputs, pairing)?;
        let mut columns: BTreeMap<&str, Arc<Vec<f32>>> = BTreeMap::new();
        for group in &groups {
            if wanted == AbsorbNorms::Auto && !is_folded(inputs, group)? {
                continue;
            }
            let ratio = Arc::new(group.values.ratio().ok_or_else(|| cannot_undo(inputs, group))?);
            if group.values.biased {
                return Err(cannot_undo(inputs, group));
            }
            if !group.partly {
                folded.absorbed.insert(format!("{}.weight", group.norm));
            }
            columns.extend(group.pairs.iter().map(|pair| (pair.name.as_str(), Arc::clone(&ratio))));
        }
        if columns.is_empty() {
            return Ok(folded);
        }
        check_company(inputs, &groups)?;
        let mut rescalings: BTreeMap<String, Rescaling> = columns
            .iter()
            .map(|(name, ratio)| {
                ((*name).to_owned(), Rescaling { columns: ratio.to_vec(), rows: Vec::new() })
            })
            .collect();
        let moved = rows::find(inputs, pairing, &mut rescalings)?;
        folded.notes.push(note(columns.len(), groups.len(), moved, wanted));
        folded.rescalings =
            rescalings.into_iter().map(|(name, rescaling)| (name, Arc::new(rescaling))).collect();
        Ok(folded)
    }

    /// Marks the norms that the weights behind them carry.
    pub(crate) fn mark(&self, leftovers: &mut [Leftover]) {
        for leftover in leftovers.iter_mut() {
            if leftover.base.as_ref().is_some_and(|name| self.absorbed.contains(name.as_str())) {
                leftover.reason = Reason::Absorbed;
            }
        }
    }
}

/// The norms that differ, each with the pairs behind it.
fn groups<'a>(inputs: &Inputs, pairing: &'a Pairing) -> Result<Vec<Group<'a>>> {
    let mut by_norm: BTreeMap<String, Vec<&Pair>> = BTreeMap::new();
    for pair in &pairing.pairs {
        if let Some(norm) = norm_before(&pair.name, &inputs.base) {
            by_norm.entry(norm).or_default().push(pair);
        }
    }
    let paired: BTreeSet<&str> = pairing.pairs.iter().map(|pair| pair.name.as_str()).collect();
    let mut left: BTreeSet<String> = BTreeSet::new();
    for module in inputs.base.modules().filter(|module| !paired.contains(module.name())) {
        left.extend(norm_before(module.name(), &inputs.base));
    }
    let mut groups = Vec::new();
    for (norm, pairs) in by_norm {
        let stored = format!("{norm}.weight");
        let partner = pairing.leftovers.iter().find(|l| l.base.as_deref() == Some(&stored));
        let Some(tuned) = partner.and_then(|l| l.tuned.as_deref()?.strip_suffix(".weight")) else { continue };
        let Some(values) = NormPair::read(&inputs.base, &inputs.tuned, &norm, tuned)? else { continue };
        if values.change() > 0.0 && pairs.iter().all(|pair| pair.shape[1] == values.base.len()) {
            let partly = left.contains(&norm);
            groups.push(Group { norm, values, pairs, partly });
        }
    }
    Ok(groups)
}

/// Whether a norm's difference is that of scales that the weights behind it hold: dividing them out brings the weights
/// nearer to each other, where a norm that was trained takes them further apart.
fn is_folded(inputs: &Inputs, group: &Group<'_>) -> Result<bool> {
    if group.values.change() < LEAST_CHANGE {
        return Ok(false);
    }
    let ratio = group.values.partial_ratio();
    let Some(pair) = group.pairs.first() else { return Ok(false) };
    let [before, after] = distances(inputs, pair, &ratio)?;
    Ok(after < FOLDED * before)
}

/// The squared distance of sampled rows, as they are and with the tuned columns multiplied by `ratio`.
fn distances(inputs: &Inputs, pair: &Pair, ratio: &[f32]) -> Result<[f64; 2]> {
    let missing = |name: &str| Error::unexpected("a paired module is gone").tensor(name);
    let base = inputs.base.module(&pair.name).ok_or_else(|| missing(&pair.name))?;
    let tuned = inputs.tuned.module(&pair.tuned).ok_or_else(|| missing(&pair.tuned))?;
    let readers = [ModuleReader::open(&inputs.base, base)?, ModuleReader::open(&inputs.tuned, tuned)?];
    let columns = pair.shape[1];
    let (mut b, mut t) = (vec![0f32; SLICE * columns], vec![0f32; SLICE * columns]);
    let stride = (pair.rows * SLICE / SAMPLED).max(SLICE);
    let [mut before, mut after] = [0f64; 2];
    for start in (0..pair.rows).step_by(stride) {
        let rows = start..(start + SLICE).min(pair.rows);
        let (b, t) = (&mut b[..rows.len() * columns], &mut t[..rows.len() * columns]);
        readers[0].panel(rows.clone(), b)?;
        readers[1].panel(rows, t)?;
        for (b, t) in b.chunks_exact(columns).zip(t.chunks_exact(columns)) {
            for ((b, t), ratio) in b.iter().zip(t).zip(ratio) {
                before += f64::from(t - b).powi(2);
                after += f64::from(t * ratio - b).powi(2);
            }
        }
    }
    Ok([before, after])
}

fn cannot_undo(inputs: &Inputs, group: &Group<'_>) -> Error {
    let what = if group.values.biased {
        "scales are folded into a norm with a bias, and cannot be undone by factors of the weights behind it"
    } else {
        "a norm differs from the tuned one's in a way that no factors of the weights behind it undo: it has zeros"
    };
    Error::input(what)
        .tensor(format!("{}.weight", group.norm))
        .path(inputs.base.root())
        .hint("--absorb-norms never takes the difference as it is, which is not the change of the model")
}

/// Refuses inputs whose modules stand where the tuned ones do, and not where the base's do.
fn check_company(inputs: &Inputs, groups: &[Group<'_>]) -> Result<()> {
    let refuse = |what: &str, hint: &str| Err(Error::decide(what).path(inputs.base.root()).hint(hint));
    if inputs.dense.is_some() {
        return refuse(
            "--hybrid does not go with a base whose scales are folded: the dense base stands elsewhere",
            "leave --hybrid out",
        );
    }
    if inputs.calibration.is_some() {
        return refuse(
            "--calibration does not go with a base whose scales are folded: its inputs are those of other norms",
            "leave --calibration out",
        );
    }
    let Some(served) = &inputs.served else { return Ok(()) };
    for group in groups {
        let values = NormPair::read(&inputs.base, served, &group.norm, &group.norm)?;
        if values.is_some_and(|values| values.change() > LEAST_CHANGE) {
            return Err(Error::decide(
                "the served checkpoint has other norms than the base: scales are folded into one of them",
            )
            .tensor(format!("{}.weight", group.norm))
            .path(served.root())
            .hint("give the served checkpoint as --base: its adapter is another one"));
        }
    }
    Ok(())
}

fn note(weights: usize, norms: usize, moved: usize, wanted: AbsorbNorms) -> String {
    let why = match wanted {
        AbsorbNorms::Auto => {
            "the base's activation scales are folded into its norms (as AWQ and SmoothQuant do)"
        }
        _ => "the norms that differ are absorbed",
    };
    let pairs = match moved {
        0 => String::new(),
        moved => format!(", and the rows and columns of {moved} pairs of weights to their neighbours'"),
    };
    format!(
        "{why}: {weights} tuned weights behind {norms} norms were rescaled to the base's norms{pairs}. The adapter is for \
         this base alone, and carries the change of these norms exactly"
    )
}

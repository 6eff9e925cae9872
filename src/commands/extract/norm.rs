//! In which norm each module's error is to be the least: that of the weights, of the layer's outputs, or of the change
//! first.

use crate::calibration::KnownInput;
use crate::commands::extract::inputs::Inputs;
use crate::commands::extract::options::Extraction;
use crate::delta::module_record::Minimized;
use crate::delta::pair::{Pair, Pairing};
use crate::factorize::types::{Method, Request};
use crate::factorize::{choose, weighted};
use crate::lora::names::Place;
use crate::quant::weight::SchemeKind;
use crate::{Error, Result};

/// Refuses inputs that do not go together.
///
/// # Errors
/// A calibration and a dense base at once; a dense base beside a dense one, or of another model; a calibration that
/// knows none of the modules.
pub fn check(inputs: &Inputs, job: &Extraction, pairing: &Pairing) -> Result<()> {
    if inputs.calibration.is_some() && inputs.dense.is_some() {
        return Err(Error::decide("--calibration and --hybrid are two ways to the same end")
            .hint("give the calibration alone: it is the better one"));
    }
    check_dense(inputs, job, pairing)?;
    let Some(calibration) = &inputs.calibration else { return Ok(()) };
    for pair in &pairing.pairs {
        if input(inputs, pair)?.is_some() {
            return Ok(());
        }
    }
    let name = &calibration.source().name;
    Err(Error::input(format!("the calibration '{name}' knows none of the selected modules"))
        .hint("calibrate the tuned checkpoint, or its base: the modules' names have to be theirs"))
}

fn check_dense(inputs: &Inputs, job: &Extraction, pairing: &Pairing) -> Result<()> {
    let Some(dense) = &inputs.dense else { return Ok(()) };
    if job.deciding.hybrid_share.is_none() {
        return Err(Error::decide("a hybrid needs to know its share of the rank").hint("--hybrid-share 0.5"));
    }
    if inputs.base.scheme().kind() == SchemeKind::Dense {
        return Err(Error::decide("--hybrid is for a quantized base: this one is dense")
            .path(inputs.base.root())
            .hint("leave --hybrid out: the difference from a dense base is the change itself (Method A)"));
    }
    for pair in &pairing.pairs {
        if dense.module(&pair.name).is_none_or(|module| module.shape() != pair.shape) {
            let what = "the dense base has no such module of the quantized base's shape";
            let hint = "--hybrid takes the checkpoint that the quantized base was made of, by the same names";
            return Err(Error::input(what).tensor(&pair.name).path(dense.root()).hint(hint));
        }
    }
    Ok(())
}

/// What the calibration knows of a pair's inputs. An embedding's are words: each of them is one row.
///
/// # Errors
/// It knows the module by another width.
pub fn input(inputs: &Inputs, pair: &Pair) -> Result<Option<KnownInput>> {
    match &inputs.calibration {
        Some(calibration) if pair.place != Place::Embedding => {
            calibration.input(&[&pair.tuned, &pair.name], pair.shape[1])
        }
        _ => Ok(None),
    }
}

/// Which error a module's factors will be the least in, where the run knows of more than one.
pub fn minimized(inputs: &Inputs, known: Option<&KnownInput>) -> Option<Minimized> {
    match (known, &inputs.calibration, &inputs.dense) {
        (Some(_), ..) => Some(Minimized::Outputs),
        (None, Some(_), _) => Some(Minimized::Weights),
        (None, None, Some(_)) => Some(Minimized::Hybrid),
        (None, None, None) => None,
    }
}

/// Remarks on what is calibrated and what is not.
///
/// # Errors
/// As [`input`].
pub fn notes(inputs: &Inputs, pairs: &[Pair]) -> Result<Vec<String>> {
    let Some(calibration) = &inputs.calibration else { return Ok(Vec::new()) };
    let mut notes = Vec::new();
    if calibration.is_diagonal() {
        notes.push(format!(
            "the calibration '{}' has the mean squares of single inputs alone: better than none, but on FP8 bases \
             worse than Method A; `trephine calibrate` takes the full second moments",
            calibration.source().name
        ));
    }
    let mut unknown = Vec::new();
    for pair in pairs {
        if input(inputs, pair)?.is_none() {
            unknown.push(pair.name.as_str());
        }
    }
    if let Some(first) = unknown.first() {
        let others = match unknown.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        notes.push(format!(
            "no token of the calibration reached {first}{others}: there the error of the weights is the least, not \
             that of the outputs"
        ));
    }
    Ok(notes)
}

/// What a factorization takes.
pub struct Work {
    /// How it is done.
    pub method: Method,
    /// Floating-point operations of the cost model.
    pub flops: f64,
    /// Bytes beyond the delta.
    pub bytes: usize,
}

impl Work {
    /// Of a module of this shape, on so many threads.
    pub fn of(
        shape @ [m, n]: [usize; 2],
        request: &Request,
        threads: usize,
        known: Option<&KnownInput>,
        hybrid: bool,
    ) -> Work {
        if let Some(known) = known {
            let rows = known.rows;
            return Work {
                method: weighted::method(m, n, rows, request),
                flops: weighted::flops(m, n, rows, request),
                bytes: weighted::workspace(shape, rows, threads, request),
            };
        }
        let (method, flops) = (choose::choose(m, n, request), choose::flops(m, n, request));
        let bytes = choose::workspace(m, n, threads, request);
        // Two factorizations of a smaller rank each; the factors of the first wait for the second.
        let waiting = if hybrid { (m + n) * request.rank.min(m).min(n) * 16 } else { 0 };
        Work { method, flops: if hybrid { 1.3 * flops } else { flops }, bytes: bytes + waiting }
    }
}

//! Processes one module, from its delta to its finished factors.

use serde::{Deserialize, Serialize};

use crate::commands::extract::factors::hybrid::Hybrid;
use crate::commands::extract::factors::{Made, StoredFactors, plain, weighted};
use crate::commands::extract::inputs::Inputs;
use crate::commands::extract::noise::expected_noise;
use crate::commands::extract::options::Extraction;
use crate::commands::extract::output::manifest::Spectrum;
use crate::commands::extract::plan::planned::PlannedModule;
use crate::commands::extract::units::Attempt;
use crate::delta::difference::{Difference, Keep, Survey};
use crate::delta::module_record::{ModuleRecord, ServedError};
use crate::delta::operand::Operand;
use crate::delta::options::RoundBase;
use crate::delta::recomputed::Recomputed;
use crate::delta::record::{Side, TensorRecord};
use crate::delta::tensor_digests::digests;
use crate::factorize::in_memory::Held;
use crate::factorize::kernel::bytes::codes::words as code_words;
use crate::factorize::kernel::bytes::passes::Codes;
use crate::factorize::precision::Precision;
use crate::factorize::quantized::{HeldCodes, Requantized};
use crate::factorize::residual;
use crate::factorize::types::Panels;
use crate::lora::factor_dtype::FactorType;
use crate::lora::names::Place;
use crate::pipeline::buffer_pool::HugeBuffer;
use crate::{Error, Result};

/// The name of `lora_A` in a shard.
pub const A: &str = "lora_A";

/// The name of `lora_B` in a shard.
pub const B: &str = "lora_B";

/// A module whose delta is ready.
pub struct Loaded<'a> {
    /// The module, and how it is gone about.
    pub attempt: Attempt<'a>,
    /// The delta, if it is held in memory.
    delta: Delta,
    /// What the first read found: norms, digests, counts.
    survey: Survey,
}

/// A delta, as it is held in memory.
enum Delta {
    /// Not at all: it is computed anew at every visit.
    Recomputed,
    /// In f32.
    Values(Held<HugeBuffer>),
    /// In bytes.
    Codes(HeldCodes<HugeBuffer>),
}

/// A factorization that ended.
pub enum Finished<'a> {
    /// With factors.
    Done(Box<FinishedModule>),
    /// In bytes, which are too coarse: the module has to be done again in f32.
    Coarse(Attempt<'a>),
}

/// What a shard records about its module besides the factors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShardRecord {
    /// The module; its digest is filled in when the adapter is assembled.
    pub module: ModuleRecord,
    /// Its singular values.
    pub spectrum: Spectrum,
    /// The tensors read for it.
    pub tensors: Vec<TensorRecord>,
    /// The energy of each direction in the norm of the weights, where the singular values are not of that norm.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub energies: Vec<f64>,
}

/// The factors of one module as stored in the adapter, before padding to the uniform rank.
pub struct FinishedModule {
    /// Its record.
    pub record: ShardRecord,
    /// `lora_A` `[rank, in]` and its bytes.
    pub a: ([usize; 2], Vec<u8>),
    /// `lora_B` `[out, rank]` and its bytes.
    pub b: ([usize; 2], Vec<u8>),
}

/// The difference of a planned module's two weights.
pub fn difference<'a>(
    inputs: &'a Inputs,
    module: &PlannedModule,
    job: &Extraction,
) -> Result<Difference<'a>> {
    let base = operand(Side::Base, &inputs.base, &module.pair.name)?;
    let tuned = operand(Side::Tuned, &inputs.tuned, &module.pair.tuned)?;
    let deciding = &job.deciding;
    let difference =
        Difference::new(base, tuned, module.pair.rows, deciding.round_base, deciding.non_finite)?;
    Ok(difference.rescaled(module.rescaling.clone()))
}

/// One side of a difference, by name.
///
/// # Errors
/// The checkpoint has no such module.
pub fn operand<'a>(
    side: Side,
    checkpoint: &'a crate::checkpoint::Checkpoint,
    name: &str,
) -> Result<Operand<'a>> {
    match checkpoint.module(name) {
        Some(module) => Ok(Operand { side, checkpoint, module }),
        None => Err(Error::input("the checkpoint has no such module").tensor(name).path(checkpoint.root())),
    }
}

/// Reads a module's delta for the first time. If the plan holds it in memory, `slab` gives the buffer for a number of
/// f32 words.
///
/// # Errors
/// Errors of reading and decoding; a weight that is not finite.
pub fn load<'a>(
    inputs: &Inputs,
    attempt: Attempt<'a>,
    job: &Extraction,
    slab: &dyn Fn(usize) -> Result<HugeBuffer>,
    read: &(dyn Fn(u64) + Sync),
) -> Result<Loaded<'a>> {
    let module = attempt.module;
    let difference = difference(inputs, module, job)?;
    let (m, n) = (difference.rows(), difference.cols());
    let check = |survey: Survey| check_values(&survey, m * n, &module.name).map(|()| survey);
    let (delta, survey) = match (attempt.holding.held, attempt.in_bytes()) {
        (false, false) => (Delta::Recomputed, check(difference.survey(Keep::Sums, read)?)?),
        (false, true) => (Delta::Recomputed, check(difference.survey(Keep::Codes(None), read)?)?),
        (true, in_bytes) if !in_bytes || attempt.holding.as_values => {
            let mut values = slab(m * n)?;
            let keep = if in_bytes { Keep::Both(&mut values) } else { Keep::Values(&mut values) };
            let survey = check(difference.survey(keep, read)?)?;
            (Delta::Values(Held::new(m, n, values)?), survey)
        }
        (true, _) => {
            let mut codes = slab(code_words(m, n))?;
            let survey = check(difference.survey(Keep::Codes(Some(&mut codes)), read)?)?;
            (Delta::Codes(HeldCodes::new(m, n, codes, survey.missed2)?), survey)
        }
    };
    Ok(Loaded { attempt, delta, survey })
}

/// The largest share of a weight's elements that `--non-finite zero` takes as unchanged: some stray values, not a
/// weight that is lost.
const MOST_NON_FINITE: f64 = 0.01;

/// Refuses a delta of which too little is left to speak of quality.
fn check_values(survey: &Survey, elements: usize, name: &str) -> Result<()> {
    let share = survey.non_finite as f64 / elements.max(1) as f64;
    if share > MOST_NON_FINITE {
        let what = format!(
            "{} of {elements} elements of a weight are NaN or infinite ({:.1} %), which is too much to take as unchanged",
            survey.non_finite,
            100.0 * share
        );
        let hint = "the checkpoint is damaged: fetch it again, or leave the module out with --exclude";
        return Err(Error::input(what).tensor(name).hint(hint));
    }
    if survey.norm2 == 0.0 && survey.vanished > 0 {
        let what =
            format!("all of a weight's change ({} elements) is below what f32 can hold", survey.vanished);
        let hint = "leave the module out with --exclude: no adapter can hold such a change";
        return Err(Error::input(what).tensor(name).hint(hint));
    }
    Ok(())
}

/// Factorizes a loaded module, rounds its factors, and measures them. The delta's buffer goes to `spent` when it is no
/// longer needed.
///
/// # Errors
/// Errors of recomputing the delta; factors outside the range of the type that they are stored in.
pub fn finish<'a>(
    inputs: &Inputs,
    job: &Extraction,
    loaded: Loaded<'a>,
    spent: &dyn Fn(HugeBuffer),
) -> Result<Finished<'a>> {
    let Loaded { attempt, delta, mut survey } = loaded;
    let module = attempt.module;
    let share = if survey.norm2 > 0.0 { survey.missed2 / survey.norm2 } else { 0.0 };
    let missed_by_bytes = if attempt.in_bytes() { Some(share) } else { attempt.missed_by_bytes };
    let Some(made) = made(inputs, attempt, job, delta, &survey, spent)? else {
        return Ok(Finished::Coarse(attempt.again(share)));
    };
    let Made {
        stored,
        rank,
        mut quality,
        method,
        precision,
        basis,
        passes,
        estimated_excess,
        spectrum,
        tensors,
        energies,
    } = made;
    survey.tensors.extend(tensors);
    if let Some(served) = &inputs.served {
        let served = operand(Side::Served, served, &module.pair.name)?;
        survey.tensors.extend(digests(served, &|_| ())?);
        quality.served = Some(measure_served(inputs, attempt, job, served, &stored)?);
    }
    let record = ModuleRecord {
        name: module.name.clone(),
        shape: module.shape,
        rank,
        method,
        precision,
        missed_by_bytes,
        basis,
        passes,
        minimized: module.minimizes,
        quality,
        estimated_excess,
        expected_noise: inputs
            .base
            .module(&module.pair.name)
            .and_then(|base| expected_noise(base, survey.base_norm2.sqrt())),
        non_finite: survey.non_finite,
        blake3: String::new(),
    };
    let (a, b) = lay_out(module, rank, stored, job.deciding.dtype);
    let spectrum = Spectrum { shape: module.shape, ..spectrum };
    let record = ShardRecord { module: record, spectrum, tensors: survey.tensors, energies };
    Ok(Finished::Done(Box::new(FinishedModule { record, a, b })))
}

/// The factors of a delta that is held, or else computed anew at every visit, by the way that the plan has for it;
/// `None` where bytes are too coarse.
fn made(
    inputs: &Inputs,
    attempt: Attempt<'_>,
    job: &Extraction,
    held: Delta,
    survey: &Survey,
    spent: &dyn Fn(HugeBuffer),
) -> Result<Option<Made>> {
    let (module, norm2) = (attempt.module, survey.norm2);
    let (request, dtype) = (job.deciding.request(), job.deciding.dtype);
    let recompute = || Ok(Recomputed::new(difference(inputs, module, job)?, attempt.holding.visitors));
    let must = attempt.precision == Precision::Int8;
    let of_codes = |codes: &dyn Codes, delta: &dyn Panels| {
        plain::make_of_codes((codes, must), delta, norm2, &module.name, &request, dtype)
    };
    if inputs.dense.is_some() && job.deciding.hybrid_share.is_some() {
        return made_hybrid(inputs, attempt, job, held, norm2, spent).map(Some);
    }
    let make = |delta: &dyn Panels| match (&inputs.calibration, &module.calibrated) {
        (Some(calibration), Some(known)) => {
            weighted::make(delta, norm2, &calibration.load(known)?, &module.name, &request, dtype)
        }
        _ => plain::make(delta, norm2, &module.name, &request, dtype, None),
    };
    let or_in_f32 = |made: Option<Made>, delta: &dyn Panels| match made {
        None if attempt.holding.at_once => make(delta).map(Some),
        made => Ok(made),
    };
    let of_values = |delta: &dyn Panels| match attempt.in_bytes() {
        true => or_in_f32(of_codes(&Requantized::new(delta, survey.missed2), delta)?, delta),
        false => make(delta).map(Some),
    };
    match held {
        Delta::Recomputed => of_values(&recompute()?),
        Delta::Values(held) => {
            let made = of_values(&held);
            spent(held.into_inner());
            made
        }
        Delta::Codes(codes) => {
            let delta = recompute()?;
            let made = of_codes(&codes, &delta);
            spent(codes.into_inner());
            or_in_f32(made?, &delta)
        }
    }
}

/// The factors of a hybrid: a part of the rank for the change from the dense base.
fn made_hybrid(
    inputs: &Inputs,
    attempt: Attempt<'_>,
    job: &Extraction,
    held: Delta,
    norm2: f64,
    spent: &dyn Fn(HugeBuffer),
) -> Result<Made> {
    let (Some(dense), Some(share)) = (&inputs.dense, job.deciding.hybrid_share) else {
        return Err(Error::unexpected("a hybrid without a dense base"));
    };
    let (module, request, dtype) = (attempt.module, job.deciding.request(), job.deciding.dtype);
    let dense = operand(Side::Hybrid, dense, &module.pair.name)?;
    let tuned = operand(Side::Tuned, &inputs.tuned, &module.pair.tuned)?;
    let change = Difference::new(dense, tuned, module.pair.rows, RoundBase::None, job.deciding.non_finite)?;
    // The tuned side's digests are among the delta's own.
    let Survey { norm2: change2, mut tensors, .. } = change.survey(Keep::Sums, &|_| ())?;
    tensors.retain(|tensor| tensor.checkpoint == Side::Hybrid);
    let change = Recomputed::new(change, job.running.threads);
    let name = module.name.as_str();
    let hybrid = Hybrid { module: name, change: (&change, change2), norm2, request, share, dtype };
    let made = match held {
        Delta::Values(held) => {
            let (made, rest) = hybrid.of_held(held)?;
            spent(rest.into_inner());
            made
        }
        _ => {
            let delta = Recomputed::new(difference(inputs, module, job)?, attempt.holding.visitors);
            hybrid.of_recomputed(&delta)?
        }
    };
    Ok(Made { tensors, ..made })
}

fn measure_served(
    inputs: &Inputs,
    attempt: Attempt<'_>,
    job: &Extraction,
    served: Operand<'_>,
    stored: &StoredFactors,
) -> Result<ServedError> {
    let module = attempt.module;
    let tuned = operand(Side::Tuned, &inputs.tuned, &module.pair.tuned)?;
    // Whatever the base is rounded to, the served checkpoint is used as stored.
    let unrounded = RoundBase::None;
    let difference = Difference::new(served, tuned, module.pair.rows, unrounded, job.deciding.non_finite)?;
    let delta = Recomputed::new(difference.rescaled(module.rescaling.clone()), attempt.holding.visitors);
    let measured = residual::residual(&delta, &stored.left, &stored.right)?;
    Ok(ServedError { without_adapter: measured.norm2.sqrt(), with_adapter: measured.residual2.sqrt() })
}

/// The shape and the bytes of a factor.
type StoredFactor = ([usize; 2], Vec<u8>);

/// Turns factors `left · right` of the weight into `lora_A` and `lora_B`. An embedding's weight is `[vocab, dim]` and
/// its LoRA applies to the transpose. A trimmed vocabulary is padded with rows of zeros.
fn lay_out(
    module: &PlannedModule,
    rank: usize,
    stored: StoredFactors,
    dtype: FactorType,
) -> (StoredFactor, StoredFactor) {
    let [rows, cols] = module.shape;
    let StoredFactors { mut left_bytes, right_bytes, .. } = stored;
    left_bytes.resize(rows * rank * dtype.bytes(), 0);
    if module.pair.place != Place::Embedding {
        return (([rank, cols], right_bytes), ([rows, rank], left_bytes));
    }
    let a = transpose(&left_bytes, rows, rank, dtype.bytes());
    let b = transpose(&right_bytes, rank, cols, dtype.bytes());
    (([rank, rows], a), ([cols, rank], b))
}

fn transpose(bytes: &[u8], rows: usize, cols: usize, size: usize) -> Vec<u8> {
    let mut transposed = Vec::with_capacity(bytes.len());
    for col in 0..cols {
        for row in 0..rows {
            let start = (row * cols + col) * size;
            transposed.extend_from_slice(&bytes[start..start + size]);
        }
    }
    transposed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposes_elements_not_bytes() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        assert_eq!(transpose(&bytes, 2, 3, 2), [1, 2, 7, 8, 3, 4, 9, 10, 5, 6, 11, 12]);
    }
}

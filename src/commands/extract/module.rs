//! Processes one module, from its delta to its finished factors.

use serde::{Deserialize, Serialize};

use crate::commands::extract::factors::hybrid::Hybrid;
use crate::commands::extract::factors::{Made, StoredFactors, plain, weighted};
use crate::commands::extract::inputs::Inputs;
use crate::commands::extract::noise::expected_noise;
use crate::commands::extract::options::Extraction;
use crate::commands::extract::output::manifest::Spectrum;
use crate::commands::extract::plan::{PlannedModule, request};
use crate::delta::difference::{Difference, Recomputed, Survey};
use crate::delta::module_record::{ModuleRecord, ServedError};
use crate::delta::operand::Operand;
use crate::delta::options::RoundBase;
use crate::delta::record::{Side, TensorRecord};
use crate::delta::tensor_digests::digests;
use crate::factorize::in_memory::Held;
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
pub struct Loaded {
    /// The delta in f32, if it is held in memory.
    pub held: Option<Held<HugeBuffer>>,
    /// What the first read found: norms, digests, counts.
    pub survey: Survey,
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
/// values.
///
/// # Errors
/// Errors of reading and decoding; a weight that is not finite.
pub fn load(
    inputs: &Inputs,
    module: &PlannedModule,
    job: &Extraction,
    slab: &dyn Fn(usize) -> Result<HugeBuffer>,
    read: &(dyn Fn(u64) + Sync),
) -> Result<Loaded> {
    let difference = difference(inputs, module, job)?;
    let (m, n) = (difference.rows(), difference.cols());
    if !module.held {
        let survey = difference.survey(None, read)?;
        check_values(&survey, m * n, &module.name)?;
        return Ok(Loaded { held: None, survey });
    }
    let mut values = slab(m * n)?;
    let survey = difference.survey(Some(&mut values), read)?;
    check_values(&survey, m * n, &module.name)?;
    Ok(Loaded { held: Some(Held::new(m, n, values)?), survey })
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
pub fn finish(
    inputs: &Inputs,
    module: &PlannedModule,
    job: &Extraction,
    loaded: Loaded,
    spent: &dyn Fn(HugeBuffer),
) -> Result<FinishedModule> {
    let Loaded { held, mut survey } = loaded;
    let Made { stored, rank, mut quality, method, basis, passes, estimated_excess, spectrum, tensors } =
        made(inputs, module, job, held, survey.norm2, spent)?;
    survey.tensors.extend(tensors);
    if let Some(served) = &inputs.served {
        let served = operand(Side::Served, served, &module.pair.name)?;
        survey.tensors.extend(digests(served, &|_| ())?);
        quality.served = Some(measure_served(inputs, module, job, served, &stored)?);
    }
    let record = ModuleRecord {
        name: module.name.clone(),
        shape: module.shape,
        rank,
        method,
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
    Ok(FinishedModule { record: ShardRecord { module: record, spectrum, tensors: survey.tensors }, a, b })
}

/// The factors of a delta that is held, or else computed anew at every visit, by the way that the plan has for it.
fn made(
    inputs: &Inputs,
    module: &PlannedModule,
    job: &Extraction,
    held: Option<Held<HugeBuffer>>,
    norm2: f64,
    spent: &dyn Fn(HugeBuffer),
) -> Result<Made> {
    let (request, dtype) = (request(job), job.deciding.dtype);
    let recompute = || Ok(Recomputed::new(difference(inputs, module, job)?, module.visitors));
    if let (Some(dense), Some(share)) = (&inputs.dense, job.deciding.hybrid_share) {
        let dense = operand(Side::Hybrid, dense, &module.pair.name)?;
        let tuned = operand(Side::Tuned, &inputs.tuned, &module.pair.tuned)?;
        let change =
            Difference::new(dense, tuned, module.pair.rows, RoundBase::None, job.deciding.non_finite)?;
        // The tuned side's digests are among the delta's own.
        let Survey { norm2: change2, mut tensors, .. } = change.survey(None, &|_| ())?;
        tensors.retain(|tensor| tensor.checkpoint == Side::Hybrid);
        let change = Recomputed::new(change, job.running.threads);
        let name = module.name.as_str();
        let hybrid = Hybrid { module: name, change: (&change, change2), norm2, request, share, dtype };
        let made = match held {
            None => hybrid.of_recomputed(&recompute()?)?,
            Some(held) => {
                let (made, rest) = hybrid.of_held(held)?;
                spent(rest.into_inner());
                made
            }
        };
        return Ok(Made { tensors, ..made });
    }
    let make = |delta: &dyn Panels| match (&inputs.calibration, &module.calibrated) {
        (Some(calibration), Some(known)) => {
            weighted::make(delta, norm2, &calibration.load(known)?, &module.name, &request, dtype)
        }
        _ => plain::make(delta, norm2, &module.name, &request, dtype, None),
    };
    match held {
        None => make(&recompute()?),
        Some(held) => {
            let made = make(&held);
            spent(held.into_inner());
            made
        }
    }
}

fn measure_served(
    inputs: &Inputs,
    module: &PlannedModule,
    job: &Extraction,
    served: Operand<'_>,
    stored: &StoredFactors,
) -> Result<ServedError> {
    let tuned = operand(Side::Tuned, &inputs.tuned, &module.pair.tuned)?;
    // Whatever the base is rounded to, the served checkpoint is used as stored.
    let unrounded = RoundBase::None;
    let difference = Difference::new(served, tuned, module.pair.rows, unrounded, job.deciding.non_finite)?;
    let delta = Recomputed::new(difference.rescaled(module.rescaling.clone()), module.visitors);
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

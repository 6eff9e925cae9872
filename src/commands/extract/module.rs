//! Processes one module, from its delta to its finished factors.

use serde::{Deserialize, Serialize};

use crate::commands::extract::options::Extraction;
use crate::commands::extract::output::manifest::Spectrum;
use crate::commands::extract::plan::{Inputs, PlannedModule, request};
use crate::delta::difference::{Difference, Recomputed, Survey};
use crate::delta::module_record::{ModuleRecord, Quality, ServedError};
use crate::delta::operand::Operand;
use crate::delta::record::{Side, TensorRecord};
use crate::delta::tensor_digests::digests;
use crate::factorize::in_memory::Held;
use crate::factorize::residual;
use crate::factorize::types::{Factors, Panels};
use crate::lora::factor_dtype::FactorType;
use crate::lora::names::Place;
use crate::pipeline::buffer_pool::HugeBuffer;
use crate::{Error, Result, factorize};

/// The relative error below which one more pass measures the error: the difference of the two norms, which gives it for
/// free, has then lost its digits to cancellation.
const MEASURE_BELOW: f64 = 3e-3;

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
    Difference::new(base, tuned, module.pair.rows, deciding.round_base, deciding.non_finite)
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

/// The largest share of a weight's elements that `--non-finite zero` takes as unchanged: some stray values, not a weight that is lost.
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
    let recompute = || Ok(Recomputed::new(difference(inputs, module, job)?, module.visitors));
    let mut recomputed = None;
    let delta: &dyn Panels = match &held {
        Some(held) => held,
        None => recomputed.insert(recompute()?),
    };
    let factors = factorize::factorize(delta, survey.norm2, &module.name, &request(job))?;
    let spectrum = Spectrum {
        module: module.name.clone(),
        shape: module.shape,
        delta_norm: survey.norm2.sqrt(),
        converged: factors.converged,
        singular_values: factors.singular_values.clone(),
    };
    let (stored, quality) = store(delta, &factors, survey.norm2, job.deciding.dtype, &module.name)?;
    let mut record = ModuleRecord {
        name: module.name.clone(),
        shape: module.shape,
        rank: factors.rank,
        method: if factors.rank == 0 { "none".into() } else { factors.method.name().into() },
        basis: factors.basis,
        passes: factors.passes,
        quality,
        estimated_excess: factors.estimated_excess,
        non_finite: survey.non_finite,
        blake3: String::new(),
    };
    drop((factors, recomputed));
    if let Some(held) = held {
        spent(held.into_inner());
    }
    if let Some(served) = &inputs.served {
        let served = operand(Side::Served, served, &module.pair.name)?;
        survey.tensors.extend(digests(served, &|_| ())?);
        record.quality.served = Some(measure_served(inputs, module, job, served, &stored)?);
    }
    let (a, b) = lay_out(module, record.rank, stored, job.deciding.dtype);
    Ok(FinishedModule { record: ShardRecord { module: record, spectrum, tensors: survey.tensors }, a, b })
}

/// Rounded factors: `left` `[rows, rank]`, `right` `[rank, cols]`, row-major.
struct StoredFactors {
    left: Vec<f32>,
    right: Vec<f32>,
    left_bytes: Vec<u8>,
    right_bytes: Vec<u8>,
}

/// The share of a delta's energy that rounding the factors may cost: far more than any rounding does but that of numbers too small
/// for their type.
const MOST_LOST: f64 = 0.01;

fn store(
    delta: &dyn Panels,
    factors: &Factors,
    norm2: f64,
    dtype: FactorType,
    name: &str,
) -> Result<(StoredFactors, Quality)> {
    let (mut left, mut right) = (factors.left.clone(), factors.right.clone());
    let (left_bytes, right_bytes) = (dtype.round(&mut left), dtype.round(&mut right));
    if left.iter().chain(&right).any(|v| !v.is_finite()) {
        let what = "a factor is out of range for the type that it is stored in";
        return Err(Error::input(what)
            .tensor(name)
            .hint("--dtype bf16 and --dtype f32 have a wider range than f16"));
    }
    let mut error2 = residual::stored_error(factors, &left, &right, norm2)?;
    if error2 < MEASURE_BELOW * MEASURE_BELOW * norm2 {
        error2 = residual::residual(delta, &left, &right)?.residual2;
    }
    let kept: f64 = factors.singular_values.iter().take(factors.rank).map(|value| value * value).sum();
    if error2 > (norm2 - kept).max(0.0) + MOST_LOST * norm2 {
        let lost = 100.0 * (error2 - (norm2 - kept).max(0.0)) / norm2;
        let what =
            format!("storing the factors as {} costs {lost:.1} % of the difference's energy", dtype.dtype());
        return Err(Error::input(what)
            .tensor(name)
            .hint("--dtype bf16 or f32 holds smaller numbers than f16"));
    }
    Ok((StoredFactors { left, right, left_bytes, right_bytes }, Quality::of(norm2, error2)))
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
    let unrounded = crate::delta::options::RoundBase::None;
    let difference = Difference::new(served, tuned, module.pair.rows, unrounded, job.deciding.non_finite)?;
    let delta = Recomputed::new(difference, module.visitors);
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

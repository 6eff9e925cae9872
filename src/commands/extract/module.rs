//! One module from its delta to its finished factors.

use serde::{Deserialize, Serialize};

use crate::commands::extract::factors::hybrid::Hybrid;
use crate::commands::extract::factors::{Made, StoredFactors, plain, weighted};
use crate::commands::extract::inputs::Inputs;
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
    /// The delta in f32 where it is held.
    pub held: Option<Held<HugeBuffer>>,
    /// What the first reading found out.
    pub survey: Survey,
}

/// What a shard says of its module, beside the factors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShardRecord {
    /// The module; its digest is filled in when the adapter is assembled.
    pub module: ModuleRecord,
    /// Its singular values.
    pub spectrum: Spectrum,
    /// What was read for it.
    pub tensors: Vec<TensorRecord>,
}

/// The factors of one module as they will lie in the adapter, but for the padding to the uniform rank.
pub struct FinishedModule {
    /// What is known of it.
    pub record: ShardRecord,
    /// `lora_A` `[rank, in]` and its bytes.
    pub a: ([usize; 2], Vec<u8>),
    /// `lora_B` `[out, rank]` and its bytes.
    pub b: ([usize; 2], Vec<u8>),
}

/// The difference that a planned module is.
pub fn difference<'a>(
    inputs: &'a Inputs,
    module: &PlannedModule,
    job: &Extraction,
) -> Result<Difference<'a>> {
    let base = half(Side::Base, &inputs.base, &module.pair.name)?;
    let tuned = half(Side::Tuned, &inputs.tuned, &module.pair.tuned)?;
    let deciding = &job.deciding;
    Difference::new(base, tuned, module.pair.rows, deciding.round_base, deciding.non_finite)
}

/// One side of a difference, by name.
///
/// # Errors
/// No such module.
pub fn half<'a>(
    side: Side,
    checkpoint: &'a crate::checkpoint::Checkpoint,
    name: &str,
) -> Result<Operand<'a>> {
    match checkpoint.module(name) {
        Some(module) => Ok(Operand { side, checkpoint, module }),
        None => Err(Error::input("the checkpoint has no such module").tensor(name).path(checkpoint.root())),
    }
}

/// Reads a module's delta for the first time, and holds it where the plan says so, in a `slab` of so many values.
///
/// # Errors
/// What reading and decoding met; a weight that is not finite.
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
        return Ok(Loaded { held: None, survey: difference.survey(None, read)? });
    }
    let mut values = slab(m * n)?;
    let survey = difference.survey(Some(&mut values), read)?;
    Ok(Loaded { held: Some(Held::new(m, n, values)?), survey })
}

/// Factorizes a loaded module, rounds its factors, and measures them. The delta goes to `spent` when it is needed no more.
///
/// # Errors
/// What recomputing the delta met; factors that do not fit in the type they are stored in.
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
        let served = half(Side::Served, served, &module.pair.name)?;
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
    let anew = || Ok(Recomputed::new(difference(inputs, module, job)?, module.visitors));
    if let (Some(dense), Some(share)) = (&inputs.dense, job.deciding.hybrid_share) {
        let dense = half(Side::Hybrid, dense, &module.pair.name)?;
        let tuned = half(Side::Tuned, &inputs.tuned, &module.pair.tuned)?;
        let change =
            Difference::new(dense, tuned, module.pair.rows, RoundBase::None, job.deciding.non_finite)?;
        // The tuned side's digests are among the delta's own.
        let Survey { norm2: change2, mut tensors, .. } = change.survey(None, &|_| ())?;
        tensors.retain(|tensor| tensor.checkpoint == Side::Hybrid);
        let change = Recomputed::new(change, job.running.threads);
        let name = module.name.as_str();
        let hybrid = Hybrid { module: name, change: (&change, change2), norm2, request, share, dtype };
        let made = match held {
            None => hybrid.of_recomputed(&anew()?)?,
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
        None => make(&anew()?),
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
    let tuned = half(Side::Tuned, &inputs.tuned, &module.pair.tuned)?;
    // Whatever the base is rounded to, this one is served as it is.
    let as_it_is = RoundBase::None;
    let difference = Difference::new(served, tuned, module.pair.rows, as_it_is, job.deciding.non_finite)?;
    let delta = Recomputed::new(difference, module.visitors);
    let measured = residual::residual(&delta, &stored.left, &stored.right)?;
    Ok(ServedError { without_adapter: measured.norm2.sqrt(), with_adapter: measured.residual2.sqrt() })
}

type Laid = ([usize; 2], Vec<u8>);

/// Turns factors `left · right` of the weight into `lora_A` and `lora_B`. An embedding's weight is `[vocab, dim]` and
/// its LoRA is of the transpose. A trimmed vocabulary is filled up with rows of zeros.
fn lay_out(module: &PlannedModule, rank: usize, stored: StoredFactors, dtype: FactorType) -> (Laid, Laid) {
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
    let mut turned = Vec::with_capacity(bytes.len());
    for col in 0..cols {
        for row in 0..rows {
            let at = (row * cols + col) * size;
            turned.extend_from_slice(&bytes[at..at + size]);
        }
    }
    turned
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

//! The identity of a calibration: everything that determines its bytes.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::options::Calibration;
use crate::calibration::layout::Index;
use crate::checkpoint::{Checkpoint, Identity};
use crate::model::Sequences;
use crate::{Error, Result};

/// The index, and the run that wrote it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(flatten)]
    pub index: Index,
    /// The blake3 of everything that determines the output.
    pub run: String,
}

/// Everything that determines a calibration's output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Begin {
    trephine: String,
    /// The instruction set that products use on this machine.
    simd: String,
    pub model: String,
    checkpoint: Identity,
    pub text_digest: String,
    pub tokens: u64,
    pub k: u64,
    pub seed: u64,
}

impl Begin {
    pub fn of(job: &Calibration, checkpoint: &Checkpoint, sequences: &Sequences) -> Begin {
        let path = Path::new(&job.model);
        let last = || path.file_name().map_or(job.model.clone(), |name| name.to_string_lossy().into_owned());
        Begin {
            trephine: env!("CARGO_PKG_VERSION").to_owned(),
            simd: crate::run::simd_level().to_owned(),
            // A hub name is not a local path. Of a path, only the last part says something about the model.
            model: if path.exists() { last() } else { job.model.clone() },
            checkpoint: checkpoint.identity().clone(),
            text_digest: sequences.digest().to_hex().to_string(),
            tokens: sequences.tokens() as u64,
            k: job.k as u64,
            seed: job.seed,
        }
    }

    /// The digest of everything except file times.
    pub fn digest(&self) -> Result<String> {
        let timeless = Begin { checkpoint: self.checkpoint.timeless(), ..self.clone() };
        let text = serde_json::to_vec(&timeless)
            .map_err(|e| Error::unexpected("cannot write the run as JSON").because(e))?;
        Ok(blake3::hash(&text).to_hex().to_string())
    }

    /// What differs from an earlier run, in words; `None` if nothing does.
    pub fn difference(&self, before: &Begin) -> Option<String> {
        let change =
            before.checkpoint.changes(&self.checkpoint).first().map(|change| format!("the model's {change}"));
        let text = (self.text_digest != before.text_digest).then(|| "the text is different".to_owned());
        let numbers = [("--k", self.k, before.k), ("--seed", self.seed, before.seed)];
        let number = numbers.iter().find(|(_, now, then)| now != then);
        let number = number.map(|(option, now, then)| format!("{option} was {then} and is {now}"));
        let program = (self.trephine != before.trephine)
            .then(|| format!("it was started by trephine {}", before.trephine));
        let simd = (self.simd != before.simd)
            .then(|| format!("it ran on {}, this machine has {}", before.simd, self.simd));
        change.or(text).or(number).or(program).or(simd)
    }
}

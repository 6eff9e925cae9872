//! What a run is of: all that decides its bytes, and how it differs from an earlier one.

use crate::run::identity::{differing_option, simd_level};
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::checkpoint::identity::{Change, Identity};
use crate::commands::extract::options::{Deciding, Extraction};
use crate::commands::extract::plan::Inputs;
use crate::delta::record::Side;
use crate::{Error, Result};

/// All that decides a run's bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Begin {
    /// Version of the program.
    pub trephine: String,
    /// The options that decide the result.
    pub options: Map<String, Value>,
    /// Instruction set that the products run on.
    pub simd: String,
    /// The files that are read, by checkpoint.
    pub inputs: BTreeMap<Side, Identity>,
}

impl Begin {
    /// For the run at hand.
    ///
    /// # Errors
    /// Options that JSON cannot hold.
    pub fn new(job: &Extraction, inputs: &Inputs) -> Result<Begin> {
        let mut sides = BTreeMap::from([
            (Side::Base, inputs.base.identity().clone()),
            (Side::Tuned, inputs.tuned.identity().clone()),
        ]);
        sides.extend(inputs.served.as_ref().map(|served| (Side::Served, served.identity().clone())));
        Ok(Begin {
            trephine: env!("CARGO_PKG_VERSION").into(),
            options: deciding(&job.deciding)?,
            simd: simd_level().into(),
            inputs: sides,
        })
    }

    /// In words, the first thing in which `self` (this run) differs from `before`; modification times aside.
    pub fn difference(&self, before: &Begin, other_simd: bool) -> Option<String> {
        if self.trephine != before.trephine {
            return Some(format!("it was made by version {}, this is {}", before.trephine, self.trephine));
        }
        if self.simd != before.simd && !other_simd {
            let advice = "--other-simd goes on, but the bytes may differ from those of one machine";
            return Some(format!(
                "it was made with {} instructions, this machine has {} ({advice})",
                before.simd, self.simd
            ));
        }
        if let Some(text) = differing_option(&before.options, &self.options) {
            return Some(text);
        }
        for side in [Side::Base, Side::Tuned, Side::Served] {
            match (before.inputs.get(&side), self.inputs.get(&side)) {
                (Some(then), Some(now)) => {
                    let changes = then.changes(now);
                    if let Some(change) = changes.iter().find(|change| !matches!(change, Change::Touched(_)))
                    {
                        return Some(format!("the {side} checkpoint is another one: {change}"));
                    }
                }
                (None, None) => {}
                (then, _) => {
                    let had = if then.is_some() { "had" } else { "had no" };
                    return Some(format!("the earlier run {had} --{side}"));
                }
            }
        }
        None
    }
}

/// The options that decide the result, as JSON.
///
/// # Errors
/// Options that JSON cannot hold.
pub fn deciding(options: &Deciding) -> Result<Map<String, Value>> {
    let failed = |e| Error::unexpected("cannot write the options as JSON").because(e);
    match serde_json::to_value(options).map_err(failed)? {
        Value::Object(map) => Ok(map),
        other => Err(Error::unexpected(format!("options are no JSON object but {other}"))),
    }
}

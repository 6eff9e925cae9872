//! What a run is of: all that decides its bytes, and how it differs from an earlier one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::checkpoint::identity::{Change, Identity};
use crate::commands::extract::options::{Deciding, Extraction};
use crate::commands::extract::output::manifest::Side;
use crate::commands::extract::plan::Inputs;
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

/// In words, the first option that differs.
pub fn differing_option(before: &Map<String, Value>, now: &Map<String, Value>) -> Option<String> {
    let names = before.keys().chain(now.keys().filter(|name| !before.contains_key(*name)));
    let null = Value::Null;
    names.into_iter().find_map(|name| {
        let [then, now] = [before, now].map(|options| options.get(name).unwrap_or(&null));
        let flag = name.replace('_', "-");
        (then != now).then(|| format!("--{flag} was {then} and is {now}"))
    })
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

/// The instruction set that matrix products are dispatched to on this machine.
pub fn simd_level() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            return "x86-64 AVX-512";
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            return "x86-64 AVX2";
        }
    }
    std::env::consts::ARCH
}

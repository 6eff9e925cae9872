//! The identity of a run: everything that determines its output, and how it differs from an earlier run's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::checkpoint::identity::{Change, Identity};
use crate::delta::record::Side;
use crate::factorize::{SimdLevel, simd_limit};
use crate::{Error, Result};

/// Everything that determines a run's output. Equal identities give equal bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunIdentity {
    /// The command, for example `extract`.
    pub command: String,
    /// Version of Trephine.
    pub trephine: String,
    /// The options that determine the result.
    pub options: Map<String, Value>,
    /// Instruction set of the matrix products, where there are any. A different one may round differently.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub simd: Option<String>,
    /// The files that are read, by their role in the run.
    pub inputs: BTreeMap<Side, Identity>,
}

impl RunIdentity {
    /// The identity of a run of `command` by this version on this machine. `computes` says whether it computes
    /// matrix products.
    ///
    /// # Errors
    /// Options that JSON cannot represent.
    pub fn new(
        command: &str,
        options: &impl Serialize,
        computes: bool,
        inputs: BTreeMap<Side, Identity>,
    ) -> Result<RunIdentity> {
        Ok(RunIdentity {
            command: command.to_owned(),
            trephine: env!("CARGO_PKG_VERSION").into(),
            options: option_map(options)?,
            simd: computes.then(|| simd_level().to_owned()),
            inputs,
        })
    }

    /// In words, the first difference of `self` (this run) from `before`; modification times are ignored.
    pub fn difference(&self, before: &RunIdentity, other_simd: bool) -> Option<String> {
        if self.command != before.command {
            return Some(format!("it was made by `trephine {}`", before.command));
        }
        if self.trephine != before.trephine {
            return Some(format!("it was made by version {}, this is {}", before.trephine, self.trephine));
        }
        if self.simd != before.simd && !other_simd {
            let [then, now] = [before, self].map(|run| run.simd.as_deref().unwrap_or("no"));
            return Some(format!(
                "it was made with {then} instructions, this machine has {now} (--other-simd continues, but the bytes \
                 may differ from those of one machine)"
            ));
        }
        differing_option(&before.options, &self.options).or_else(|| self.differing_input(before))
    }

    fn differing_input(&self, before: &RunIdentity) -> Option<String> {
        let sides: BTreeSet<Side> = before.inputs.keys().chain(self.inputs.keys()).copied().collect();
        sides.into_iter().find_map(|side| match (before.inputs.get(&side), self.inputs.get(&side)) {
            (Some(then), Some(now)) => {
                let changes = then.changes(now);
                let change = changes.into_iter().find(|change| !matches!(change, Change::Touched(_)))?;
                Some(format!("the {} is a different one: {change}", side.phrase()))
            }
            (then, _) => {
                let had = if then.is_some() { "had" } else { "had no" };
                Some(format!("the earlier run {had} --{}", side.flag()))
            }
        })
    }

    /// Files whose modification time differs from that in `before`: copies, or the same shapes with other values.
    pub fn touched_since(&self, before: &RunIdentity) -> Vec<(Side, String)> {
        let sides = self.inputs.iter().filter_map(|(side, now)| Some((*side, now, before.inputs.get(side)?)));
        let file = |change| match change {
            Change::Touched(file) => Some(file),
            _ => None,
        };
        sides
            .flat_map(|(side, now, then)| {
                then.changes(now).into_iter().filter_map(file).map(move |f| (side, f))
            })
            .collect()
    }

    /// The inputs without modification times, for records whose bytes must not depend on when a copy was made.
    pub fn timeless_inputs(&self) -> BTreeMap<Side, Identity> {
        self.inputs.iter().map(|(side, identity)| (*side, identity.timeless())).collect()
    }
}

/// The error for a run that this one cannot continue.
pub(crate) fn changed(out: &Path, text: &str) -> Error {
    Error::decide(format!("cannot resume: the folder belongs to a different run: {text}"))
        .path(out)
        .hint("give the same inputs and options, another --out, or --overwrite to start anew")
}

/// In words, the first option that differs.
pub(crate) fn differing_option(before: &Map<String, Value>, now: &Map<String, Value>) -> Option<String> {
    let names = before.keys().chain(now.keys().filter(|name| !before.contains_key(*name)));
    let null = Value::Null;
    names.into_iter().find_map(|name| {
        let [then, now] = [before, now].map(|options| options.get(name).unwrap_or(&null));
        let flag = name.replace('_', "-");
        (then != now).then(|| format!("--{flag} was {then} and is {now}"))
    })
}

/// Options as a JSON object.
///
/// # Errors
/// Options that JSON cannot represent.
pub fn option_map(options: &impl Serialize) -> Result<Map<String, Value>> {
    let failed = |e| Error::unexpected("cannot write the options as JSON").because(e);
    match serde_json::to_value(options).map_err(failed)? {
        Value::Object(map) => Ok(map),
        other => Err(Error::unexpected(format!("the options are not a JSON object: {other}"))),
    }
}

/// The instruction set of the matrix products on this machine.
pub fn simd_level() -> &'static str {
    let limit = simd_limit();
    #[cfg(target_arch = "x86_64")]
    {
        if limit == SimdLevel::Portable {
            return "x86-64 without AVX2";
        }
        if limit > SimdLevel::Avx2 && std::arch::is_x86_feature_detected!("avx512f") {
            return "x86-64 AVX-512";
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            return "x86-64 AVX2";
        }
    }
    if limit == SimdLevel::Portable { "portable" } else { std::env::consts::ARCH }
}

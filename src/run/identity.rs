//! The identity of a run: everything that determines its output.

use std::path::Path;

use crate::Error;
use serde_json::{Map, Value};

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

/// The error for a run that this one cannot go on with.
pub fn changed(out: &Path, text: &str) -> Error {
    Error::decide(format!("the folder holds a run that this one cannot go on with: {text}"))
        .path(out)
        .hint("give the same inputs and options, another --out, or --overwrite to start anew")
}

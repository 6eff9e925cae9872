//! The doctor: a healthy pair is healthy, and what would stop the work is found before it.

use std::fs;

use crate::common::{Ended, copied, data, run, trephine};
use serde_json::Value;
use tempfile::tempdir;

fn doctor(arguments: &[&str]) -> Ended {
    run(trephine().arg("doctor").args(arguments))
}

#[test]
fn a_healthy_machine_and_pair() {
    doctor(&[]).code(0).shows("ok: processor: ").shows("ok: disk: ");
    let pair = ["--base", &data("base-fp8"), "--tuned", &data("tuned"), "--rank", "16"];
    let ended = doctor(&pair).code(0);
    ended.shows("ok: base: qwen3, block FP8").shows("ok: extraction: 21 modules at rank 16; needs ");
    let json = doctor(&[&pair[..], &["--json"]].concat()).code(0).stdout;
    let found: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(found["version"], 1);
    assert!(found["checks"].as_array().unwrap().iter().all(|check| check["health"] != "error"));
}

/// The machine's memory is said as it is, not as twice what a run takes of it unasked.
#[cfg(target_os = "linux")]
#[test]
fn the_memory_that_is_available_is_said() {
    let said = |more: &[&str]| {
        let json = doctor(&[&["--json"][..], more].concat()).code(0).stdout;
        let found: Value = serde_json::from_str(&json).unwrap();
        let checks = found["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["what"] == "memory").unwrap();
        (check["health"].as_str().unwrap().to_owned(), check["found"].as_str().unwrap().to_owned())
    };
    let words = said(&[]).1;
    let (number, unit) = words.split_once(" are available").unwrap().0.split_once(' ').unwrap();
    let mebibytes = number.parse::<f64>().unwrap() * if unit == "GiB" { 1024.0 } else { 1.0 };
    // A budget that fits is none to remark on, and one that does not is.
    let around = |share: f64| format!("{}MiB", (mebibytes * share) as u64);
    assert_eq!(said(&["--memory", &around(0.7)]).0, "ok", "{words}");
    assert_eq!(said(&["--memory", &around(1.5)]).0, "note", "{words}");
    let all = fs::read_to_string("/proc/meminfo").unwrap();
    let line = all.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    let kibibytes: f64 = line.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    assert!(mebibytes < 1.2 * kibibytes / 1024.0, "{words}, the system says {line}");
    let limit = fs::read_to_string("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    let unlimited = limit.is_ok_and(|limit| limit.trim().parse::<f64>().unwrap() > 1e15);
    assert!(!unlimited || mebibytes > 0.5 * kibibytes / 1024.0, "{words}, the system says {line}");
}

#[test]
fn what_would_stop_the_work_is_found_first() {
    let swapped = ["--base", &data("tuned"), "--tuned", &data("base-fp8")];
    let ended = doctor(&swapped).code(4).says("1 problem would stop the work");
    ended.shows("error: extraction: ").shows("are they swapped?").shows("hint: ");
    let small = ["--base", &data("base"), "--tuned", &data("tuned"), "--memory", "2MiB"];
    doctor(&small).code(4).shows("not enough memory");
    let home = tempdir().unwrap();
    let folder = copied("tuned", home.path());
    let config = fs::read_to_string(folder.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["vocab_size"] = 7.into();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let pair = ["--base", &data("base"), "--tuned", folder.to_str().unwrap()];
    doctor(&pair).code(0).shows("note: tuned: the config has 7 tokens, the embedding ");
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    fs::write(folder.join("model.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    doctor(&pair).code(4).shows("error: tuned: ");
}

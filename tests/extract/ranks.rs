//! Several ranks from one factorization, and a rank that follows from how near the adapter has to come.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;

use crate::common::measure::{Weights, check};
use crate::common::{Ended, assert_same, contents, copy, data, extract_with, manifest, run, trephine};

fn extracted(base: &str, out: &Path, more: &[&str]) -> Ended {
    extract_with(&data(base), &data("tuned"), out, more)
}

fn error(out: &Path) -> f64 {
    manifest(out)["total"]["relative_error"].as_f64().unwrap()
}

fn rank(out: &Path) -> u64 {
    let config: Value = serde_json::from_slice(&fs::read(out.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["r"], manifest(out)["rank"]);
    config["r"].as_u64().unwrap()
}

#[test]
fn lower_ranks_are_whole_adapters_of_their_own() {
    for base in ["base", "base-fp8"] {
        let home = tempdir().unwrap();
        let out = home.path().join("out");
        let ranks = ["--ranks", "16,4,8,4"];
        extracted(base, &out, &ranks).code(0).shows("rank-4").shows("rank-8");
        assert_eq!(rank(&out), 16);
        let said = manifest(&out)["lower_ranks"].clone();
        let said: Vec<u64> =
            said.as_array().unwrap().iter().map(|lower| lower["rank"].as_u64().unwrap()).collect();
        assert_eq!(said, [4, 8]);
        for lower in ["4", "8"] {
            // Somewhere else, and by itself.
            let moved = home.path().join(format!("moved-{lower}"));
            copy(&out.join(format!("rank-{lower}")), &moved);
            assert_eq!(rank(&moved).to_string(), lower);
            check(&moved, &Weights::open(&data(base)), &Weights::open(&data("tuned")));
            let (base, tuned) = (data(base), data("tuned"));
            run(trephine().arg("verify").arg(&moved).args(["--base", &base, "--tuned", &tuned])).code(0);
            let alone = home.path().join(format!("alone-{lower}"));
            extract_with(&base, &tuned, &alone, &["--rank", lower]).code(0);
            assert!(error(&moved) <= 1.001 * error(&alone), "{} {}", error(&moved), error(&alone));
        }
        let before = contents(&out);
        extracted(base, &out, &ranks).code(0).shows("already complete");
        assert_same(&out, &before, "a second run");
        extracted(base, &out, &["--ranks", "4,16"]).code(2);
        extracted(base, &out, &["--ranks", "4,16", "--overwrite"]).code(0);
        assert!(!out.join("rank-8").join("adapter_config.json").exists());
        fs::remove_file(out.join("rank-4/adapter_config.json")).unwrap();
        extracted(base, &out, &["--ranks", "4,16"]).code(2).says("rank-4/adapter_config.json");
    }
}

#[test]
fn the_rank_follows_from_the_target() {
    let home = tempdir().unwrap();
    for (option, share, allowed) in
        [("--target-error", "0.6", 0.6), ("--target-energy", "0.5", 0.5f64.sqrt())]
    {
        let out = home.path().join(option);
        extracted("base", &out, &["--rank", "64", option, share]).code(0);
        assert!(error(&out) <= allowed, "{option}: {}", error(&out));
        check(&out, &Weights::open(&data("base")), &Weights::open(&data("tuned")));
        let less = home.path().join(format!("less{option}"));
        let rank = (rank(&out) - 1).to_string();
        extracted("base", &less, &["--rank", &rank]).code(0);
        // An extraction of its own may miss the least error by the tolerance.
        assert!(error(&less) > 0.999 * allowed, "{option}: rank {rank} leaves {} too", error(&less));
    }
    let out = home.path().join("out");
    extracted("base", &out, &["--rank", "4", "--target-error", "0.05"]).code(0);
    assert_eq!(rank(&out), 4);
    assert!(manifest(&out)["notes"].to_string().contains("rank 4 is not enough"));
}

#[test]
fn what_does_not_go_together_is_refused() {
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    for wrong in [
        &["--ranks", "4,8", "--rank", "8"][..],
        &["--ranks", "4,0"],
        &["--ranks", "4,8", "--target-error", "0.5"],
        &["--target-error", "0.5", "--target-energy", "0.5"],
        &["--target-error", "1.5"],
        &["--ranks", "4,8", "--energy", "0.5"],
        &["--ranks", "4,8", "--hybrid", &data("base")],
        &["--target-error", "0.5", "--served", &data("base-fp8")],
    ] {
        extracted("base-fp8", &out, wrong).code(2);
        assert!(!out.exists(), "{wrong:?}");
    }
}

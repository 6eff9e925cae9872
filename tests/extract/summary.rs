//! The end of a run on the terminal and in JSON, and the plan.

use crate::common::{Ended, data, extract, extract_with, run};
use serde_json::Value;
use tempfile::tempdir;

fn extracted(base: &str, more: &[&str]) -> (Ended, tempfile::TempDir) {
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    (extract_with(&data(base), &data("tuned"), &out, more).code(0), home)
}

#[test]
fn the_end_says_what_was_captured_and_what_comes_next() {
    let (ended, home) = extracted("base", &["--rank", "16"]);
    let ended = ended.shows("% of the change (relative error ").shows("): Method A\n");
    let ended = ended.shows("another rank would capture: 8 ").shows("peak memory ").shows("rank 16, ");
    let ended = ended.shows("next: trephine verify ").shows("--enable-lora --max-lora-rank 16");
    let ended = ended.shows(" --format gguf --base ").shows("--include linear --include lm_head");
    assert!(!ended.stdout.contains("time"), "{}", ended.stdout);
    let again =
        extract_with(&data("base"), &data("tuned"), &home.path().join("out"), &["--rank", "16"]).code(0);
    again.shows("already complete: nothing was left to do");
    let (ended, _home) = extracted("base-fp8", &["--rank", "16"]);
    let ended = ended.shows("of the change and the base's quantization error together");
    ended.shows("no low rank holds much of it");
}

#[test]
fn other_ranks_are_those_of_runs_at_these_ranks() {
    let (ended, _home) = extracted("base", &["--rank", "16", "--json"]);
    let outcome: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(outcome["version"], 1);
    assert!(
        outcome["adapter_bytes"].as_u64().unwrap() > 100_000 && outcome["seconds"].as_f64().unwrap() > 0.0
    );
    let others = outcome["other_ranks"].as_array().unwrap();
    for rank in ["8", "32"] {
        let said = others.iter().find(|other| other["rank"].as_u64() == rank.parse().ok()).unwrap();
        let (ended, _home) = extracted("base", &["--rank", rank, "--json"]);
        let real: Value = serde_json::from_str(&ended.stdout).unwrap();
        let [said, real] =
            [&said["captured_energy"], &real["total"]["captured_energy"]].map(|v| v.as_f64().unwrap());
        // Rounding to bf16 costs a little; values that have not converged are too small.
        assert!((said - real).abs() < 0.01, "rank {rank}: {said} for {real}");
    }
}

#[test]
fn an_adapter_of_a_small_part_says_so_first() {
    let (ended, _home) = extracted("base", &["--rank", "4", "--include", "k_proj"]);
    let first = "warning: most of the model is not in the adapter: ";
    assert!(ended.stdout.starts_with(first), "{}", ended.stdout);
    assert!(ended.stdout.replace('\n', " ").contains(" % of the change"), "{}", ended.stdout);
    let (ended, _home) = extracted("base", &["--rank", "4"]);
    assert!(!ended.stdout.contains("most of the model"), "{}", ended.stdout);
}

#[test]
fn narrow_terminals_break_no_word() {
    let home = tempdir().unwrap();
    let out = home.path().join("o");
    let mut command = extract(&data("base-fp8"), &data("tuned"), &out);
    let ended = run(command.args(["--rank", "4"]).env("COLUMNS", "50")).code(0);
    let prose = ended.stdout.lines().take_while(|line| !line.starts_with("next:"));
    // The path of the adapter is one word.
    let long: Vec<&str> = prose.filter(|line| line.len() > 50 && !line.contains("/o:")).collect();
    assert!(long.is_empty(), "{long:?}");
    assert!(ended.stdout.contains("captured") && !ended.stdout.contains("worst error"), "{}", ended.stdout);
}

#[test]
fn the_plan_has_a_row_for_each_kind() {
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    let mut command = extract(&data("base"), &data("tuned"), &out);
    let ended = run(command.args(["--rank", "16", "--dry-run"])).code(0);
    let rows: Vec<&str> = ended.stdout.lines().filter(|line| line.contains("_proj ")).collect();
    assert_eq!(rows.len(), 7, "{}", ended.stdout);
    assert!(rows.iter().all(|row| row.split_whitespace().nth(1) == Some("3")), "{rows:?}");
    let ended = ended.shows("21 modules\n").shows("not in the adapter, not selected: ");
    ended.shows("adapter  rank 16, ").shows("time     about ");
    assert!(!out.exists());
}

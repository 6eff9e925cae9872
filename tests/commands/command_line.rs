//! The command line itself: help, names that other tools have for the same, and messages for what was mistyped.

use crate::common::{Ended, data, run, trephine};
use tempfile::tempdir;

fn said(arguments: &[&str]) -> Ended {
    run(trephine().args(arguments))
}

#[test]
fn the_help_groups_the_commands_and_shows_examples() {
    let help = said(&["--help"]).code(0).stdout;
    for group in
        ["Extract:", "Check:", "Measure:", "Convert:", "Cluster:", "Shell:", "Examples:", "Exit codes:"]
    {
        assert!(help.contains(&format!("\n{group}\n")), "{group}: {help}");
    }
    let help = said(&["merge", "--help"]).code(0).stdout;
    assert!(help.contains("\nExamples:\n  trephine merge --base "), "{help}");
}

#[test]
fn names_of_mergekit_are_known_but_not_shown() {
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    let out = out.to_str().unwrap();
    let (base, tuned) = (data("base"), data("tuned"));
    let names =
        ["extract", "-q", "--base-model", &base, "--model", &tuned, "--out-path", out, "--max-rank", "4"];
    said(&names).code(0).shows("rank 4, ");
    let help = said(&["extract", "--help"]).code(0).stdout;
    assert!(!help.contains("--out-path") && !help.contains("--base-model "), "{help}");
    let short = ["extract", "-q", "--base", &base, "--tuned", &tuned, "-o", out, "-r", "4"];
    said(&short).code(0).shows("already complete");
}

#[test]
fn what_was_mistyped_is_explained() {
    let (base, tuned) = (data("base"), data("tuned"));
    let pair = ["extract", "--base", &base, "--tuned", &tuned, "--out", "never"];
    let with = |more: &[&str]| said(&[&pair[..], more].concat()).code(2);
    with(&["--memory", "2"]).says("did you mean 2GiB?");
    with(&["--rank", "full"]).says("a rank is a number, for example 128");
    with(&["--rank", "-4"]).says("a rank is 1 or more");
    with(&["--rank", "0"]).says("an adapter of rank 0 holds nothing");
    let ended = said(&["extract", &base, &tuned]).code(2);
    ended.says("checkpoints are given by name here").says("trephine extract --base ");
    assert!(!std::path::Path::new("never").exists());
}

//! The page src/cli/json.md against the program: every command's JSON has the keys that the page names, and no others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::common::{data, run, trephine};
use regex::Regex;
use serde_json::Value;
use tempfile::tempdir;

/// The keys of each section of the page, and which of them may be absent.
fn page() -> BTreeMap<String, Vec<(String, bool)>> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/json.md")).unwrap();
    let key = Regex::new(r"`([a-z_]+)`(\*?)").unwrap();
    let section = |section: &str| {
        let (title, rest) = section.split_once('\n').unwrap();
        let rows = rest.lines().filter(|line| line.starts_with("| `"));
        let cells = rows.map(|row| row.split('|').nth(1).unwrap());
        let keys = cells.flat_map(|cell| key.captures_iter(cell).collect::<Vec<_>>());
        (title.to_owned(), keys.map(|found| (found[1].to_owned(), !found[2].is_empty())).collect())
    };
    text.split("\n## ").skip(1).map(section).collect()
}

#[test]
fn the_page_of_json_is_true() {
    let home = tempdir().unwrap();
    let at = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let (base, fp8, tuned) = (data("base"), data("base-fp8"), data("tuned"));
    let (adapter, parts) = (at("adapter"), at("parts"));
    let pair = ["--base", &*base, "--tuned", &*tuned, "--rank", "4"];
    let text = ["--tokens", "64", "--sequence", "32"];
    let commands: Vec<(&str, Vec<&str>)> = vec![
        ("extract", [&["extract", "-q"], &pair[..], &["-o", &adapter]].concat()),
        ("extract --dry-run", [&["extract", "-q", "--dry-run"], &pair[..], &["-o", &adapter]].concat()),
        ("extract --part", [&["extract", "-q", "--part", "1/2"], &pair[..], &["-o", &parts]].concat()),
        ("status", vec!["status", &parts]),
        ("verify", vec!["verify", "-q", &adapter]),
        ("doctor", [&["doctor"], &pair[..]].concat()),
        ("probe", vec!["probe", &base]),
        ("probe ADAPTER", vec!["probe", &adapter]),
        ("autopsy", vec!["autopsy", "-q", &base]),
        ("fidelity", vec!["fidelity", "-q", "--served", &fp8, "--tuned", &tuned, "--adapter", &adapter]),
    ];
    let [analysis, dense, sanitized, calibration] = ["an", "de", "sa", "ca"].map(at);
    let more: Vec<(&str, Vec<&str>)> = vec![
        ("analyze", [&["analyze", "-q", "--base-quantized", &fp8], &pair[..], &["-o", &analysis]].concat()),
        ("dequantize", vec!["dequantize", "-q", &fp8, "-o", &dense]),
        ("sanitize", vec!["sanitize", "-q", &adapter, "-o", &sanitized]),
        ("calibrate", [&["calibrate", "-q", "--model", &base, "-o", &calibration], &text[..]].concat()),
        ("evaluate", [&["evaluate", "-q", "--model", &base, "--adapter", &adapter], &text[..]].concat()),
    ];
    let page_at = at("page.html");
    let last = [("report", vec!["report", &*adapter, "-o", &*page_at])];
    let page = page();
    let mut seen = BTreeSet::new();
    for (title, arguments) in commands.into_iter().chain(more).chain(last) {
        let ended = run(trephine().args(arguments).arg("--json")).code(0);
        let found: Value = serde_json::from_str(&ended.stdout).unwrap();
        let found: BTreeSet<&str> = found.as_object().unwrap().keys().map(String::as_str).collect();
        let named = page.get(title).unwrap_or_else(|| panic!("the page has no section '{title}'"));
        let all: BTreeSet<&str> = named.iter().map(|(key, _)| key.as_str()).collect();
        let unknown: Vec<&&str> = found.difference(&all).collect();
        assert!(unknown.is_empty(), "{title}: the page does not name {unknown:?}");
        let due = named.iter().filter(|(_, optional)| !optional).map(|(key, _)| key.as_str());
        let absent: Vec<&str> = due.filter(|key| !found.contains(key)).collect();
        assert!(absent.is_empty(), "{title}: the program does not write {absent:?}");
        seen.insert(title.to_owned());
    }
    assert_eq!(seen, page.into_keys().collect(), "a section that is not held");
}

//! Helpers for split runs and what they leave in the output folder.

// Each test binary uses only a part of this.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use trephine::durable::journal::Journal;

use super::common::runs::Reference;
use super::common::{Ended, run, trephine};

/// The command for one part of the reference run.
pub fn part(reference: &Reference, out: &Path, index: usize, of: usize) -> Command {
    let mut command = trephine();
    command.args(["extract", "--quiet", "--base", &reference.job.base, "--tuned", &reference.job.tuned]);
    command.args(["--rank", "8", "--part", &format!("{index}/{of}"), "--out"]).arg(out);
    command
}

/// Does all of `of` parts.
pub fn split(reference: &Reference, out: &Path, of: usize) {
    (1..=of).for_each(|index| drop(run(&mut part(reference, out, index, of)).code(0)));
}

/// `trephine assemble`.
pub fn assemble(out: &Path) -> Ended {
    run(trephine().arg("assemble").arg(out))
}

/// The folders of the parts, by name.
pub fn attempts(out: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(out.join(".trephine/parts")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// The shards of one part, by name.
pub fn shards_of(attempt: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(attempt.join("shards")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Rewrites the journal of a part with each record changed.
pub fn rewrite(attempt: &Path, change: impl Fn(&mut Value)) {
    let path = attempt.join("journal");
    let mut entries: Vec<Value> = trephine::durable::journal::replay(&path).unwrap();
    entries.iter_mut().for_each(change);
    fs::remove_file(&path).unwrap();
    let mut journal = Journal::create(&path).unwrap();
    entries.iter().for_each(|entry| journal.append(entry).unwrap());
}

/// Makes the last heartbeat of a part two minutes old.
pub fn age(attempt: &Path) {
    let file = fs::File::options().append(true).open(attempt.join("heartbeat.json")).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(120)).unwrap();
}

//! Disks that are full or not writable, and unsuitable output folders.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Ended, assert_same, contents, copied, data, extract, extract_with, job, run};
use tempfile::tempdir;
use trephine::Kind;
use trephine::commands::extract::extract as extract_by_library;
use trephine::run::Progress;

const RANK: [&str; 2] = ["--rank", "16"];

fn pair() -> [String; 2] {
    [data("base-fp8"), data("tuned")]
}

/// A small file system in memory, unmounted when dropped. `None` where mounting is not allowed.
pub struct Disk(PathBuf);

impl Disk {
    pub fn mount(at: &Path, options: &str) -> Option<Disk> {
        fs::create_dir_all(at).unwrap();
        let mut command = Command::new("mount");
        let status = command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).output();
        let mounted = status.is_ok_and(|output| output.status.success());
        if !mounted {
            eprintln!("skipped: no file system can be mounted here");
        }
        mounted.then(|| Disk(at.to_owned()))
    }

    pub fn remount(&self, options: &str) {
        let status = Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.0).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_disk_too_small_is_told_ahead() {
    let home = tempdir().unwrap();
    let Some(disk) = Disk::mount(&home.path().join("disk"), "size=1m") else { return };
    let ([base, tuned], out) = (pair(), disk.0.join("out"));
    extract_with(&base, &tuned, &out, &RANK)
        .code(1)
        .says("the disk is too full: the run needs ")
        .says("make room");
    assert!(!out.join("adapter_model.safetensors").exists());
    disk.remount("size=64m");
    extract_with(&base, &tuned, &out, &RANK).code(0);
}

/// Fills the disk when the work begins, except for some bytes, like somebody else's large file.
struct Filler<'a> {
    disk: &'a Disk,
    leave: u64,
}

impl Progress for Filler<'_> {
    fn begin(&self, _: usize, _: u64, _: usize, _: u64) {
        let stat = rustix::fs::statvfs(&self.disk.0).unwrap();
        let filler = (stat.f_bavail * stat.f_frsize).saturating_sub(self.leave);
        fs::write(self.disk.0.join("filler"), vec![1; filler as usize]).unwrap();
    }
}

#[test]
fn a_disk_that_fills_up_in_the_middle() {
    let home = tempdir().unwrap();
    let [base, tuned] = pair();
    let reference = home.path().join("reference");
    extract_with(&base, &tuned, &reference, &RANK).code(0);
    let Some(disk) = Disk::mount(&home.path().join("disk"), "size=16m") else { return };
    // There is room for nothing, for the journal's first records, for some shards, for all of them, for a part of
    // the adapter.
    for kib in [0, 16, 100, 250, 450] {
        let out = disk.0.join(kib.to_string());
        let mut job = job(&base, &tuned, &out);
        job.deciding.rank = 16;
        let error = extract_by_library(&job, &Filler { disk: &disk, leave: kib << 10 }).unwrap_err();
        assert_eq!(error.kind(), Kind::Unexpected, "{error}");
        assert!(error.to_string().contains("the disk is full"), "{kib} KiB: {error}");
        assert!(error.cure().is_some(), "{error}");
        assert!(!out.join("B3SUMS").exists());
        fs::remove_file(disk.0.join("filler")).unwrap();
        extract_with(&base, &tuned, &out, &RANK).code(0);
        assert_same(&out, &contents(&reference), &format!("room for {kib} KiB"));
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn files_that_may_not_grow() {
    let home = tempdir().unwrap();
    let [base, tuned] = pair();
    let reference = home.path().join("reference");
    extract_with(&base, &tuned, &reference, &RANK).code(0);
    // In blocks of 512 bytes, or 1024 in some shells: the limit hits the start of the journal, a shard, the end of
    // the journal,
    // the adapter.
    for blocks in [0, 4, 16, 30, 200] {
        let out = home.path().join(blocks.to_string());
        let mut command = Command::new("sh");
        let limited = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
        command.args(["-c", &limited, "sh", env!("CARGO_BIN_EXE_trephine"), "extract", "--quiet"]);
        command.args(["--base", &base, "--tuned", &tuned, "--out"]).arg(&out).args(RANK);
        run(&mut command).code(1).says("cannot ").says("large");
        assert!(!out.join("B3SUMS").exists() && !out.join("adapter_model.safetensors").exists());
        extract_with(&base, &tuned, &out, &RANK).code(0);
        assert_same(&out, &contents(&reference), &format!("files of {blocks} blocks"));
    }
}

#[test]
fn a_finished_folder_where_nothing_can_be_written() {
    let home = tempdir().unwrap();
    let Some(disk) = Disk::mount(&home.path().join("disk"), "size=64m") else { return };
    let ([base, tuned], out) = (pair(), disk.0.join("out"));
    extract_with(&base, &tuned, &out, &RANK).code(0);
    disk.remount("ro");
    let mut command = extract(&base, &tuned, &out);
    let ended = run(command.args(RANK)).code(0);
    assert!(ended.stdout.contains("already complete"), "{ended:?}");
}

/// The command as an unprivileged user, because root may write anywhere.
pub fn as_nobody(command: &mut Command) -> Ended {
    if rustix::process::getuid().is_root() {
        command.uid(65534).gid(65534);
    }
    run(command)
}

/// Copies the program and the checkpoints to a folder that everybody may read; returns a command that extracts
/// from there.
pub fn for_anybody(home: &Path, out: &Path) -> Command {
    fs::set_permissions(home, fs::Permissions::from_mode(0o755)).unwrap();
    let program = home.join("trephine");
    fs::copy(env!("CARGO_BIN_EXE_trephine"), &program).unwrap();
    let mut command = Command::new(program);
    let [base, tuned] = ["base", "tuned"].map(|name| copied(name, home));
    command.args(["extract", "--rank", "4", "--quiet", "--base"]).arg(base).arg("--tuned").arg(tuned);
    command.arg("--out").arg(out).current_dir(home);
    command
}

#[test]
fn a_folder_that_cannot_be_written() {
    let home = tempdir().unwrap();
    let parent = home.path().join("parent");
    fs::create_dir(&parent).unwrap();
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o555)).unwrap();
    let mut command = for_anybody(home.path(), &parent.join("out"));
    as_nobody(&mut command).code(1).says("cannot create the folder").says("Permission denied").says("parent");
    let mut command = for_anybody(home.path(), &parent);
    as_nobody(&mut command).code(1).says("cannot create the folder").says("Permission denied");
    assert!(contents(&parent).is_empty());
}

#[test]
fn files_that_cannot_be_read() {
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    let mut command = for_anybody(home.path(), &out);
    for (file, words) in [("model.safetensors", "cannot open"), ("config.json", "cannot read")] {
        let path = home.path().join("tuned").join(file);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        as_nobody(&mut command).code(1).says(words).says(file).says("Permission denied");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    }
    fs::create_dir(&out).unwrap();
    fs::set_permissions(&out, fs::Permissions::from_mode(0o000)).unwrap();
    as_nobody(&mut command).code(2).says("the output folder cannot be read");
}

#[test]
fn a_folder_that_holds_something_else_is_left_alone() {
    let home = tempdir().unwrap();
    let [base, tuned] = pair();
    for (at, file) in
        ["notes.txt", "README.md", "adapter_model.safetensors", "B3SUMS"].into_iter().enumerate()
    {
        let out = home.path().join(at.to_string());
        fs::create_dir(&out).unwrap();
        fs::write(out.join(file), "mine").unwrap();
        let before = contents(&out);
        for more in [&["--rank", "4"][..], &["--rank", "4", "--overwrite"]] {
            extract_with(&base, &tuned, &out, more)
                .code(2)
                .says("holds something else")
                .says(file)
                .says("another --out");
            assert_same(&out, &before, file);
        }
    }
    // A finished adapter with a foreign file beside it.
    let out = home.path().join("mixed");
    extract_with(&base, &tuned, &out, &RANK).code(0);
    fs::write(out.join("checkpoint.bin"), "mine").unwrap();
    let before = contents(&out);
    extract_with(&base, &tuned, &out, &["--overwrite"]).code(2).says("checkpoint.bin");
    assert_same(&out, &before, "mixed");
    // The checkpoint's own folder.
    let own = copied("base", home.path());
    let before = contents(&own);
    let spec = own.to_str().unwrap();
    extract_with(spec, &tuned, &own, &["--overwrite"]).code(2).says("holds something else");
    assert_same(&own, &before, "the checkpoint's own folder");
}

#[test]
fn an_output_that_is_a_file() {
    let home = tempdir().unwrap();
    let [base, tuned] = pair();
    let out = home.path().join("file");
    fs::write(&out, "mine").unwrap();
    extract_with(&base, &tuned, &out, &RANK).code(2).says("the output folder cannot be read");
    extract_with(&base, &tuned, &out.join("below"), &RANK).code(2).says("the output folder cannot be read");
    assert_eq!(fs::read(&out).unwrap(), b"mine");
}

#[test]
fn readers_that_go_away() {
    let home = tempdir().unwrap();
    let [base, tuned] = pair();
    for (at, redirection) in
        ["| head -c 1", "2>&1 >&- | head -c 1", ">&- 2>&-", "2>/dev/full"].into_iter().enumerate()
    {
        let out = home.path().join(at.to_string());
        let line = format!("\"$@\" {redirection}; true");
        let mut command = Command::new("sh");
        command.args(["-c", &line, "sh", env!("CARGO_BIN_EXE_trephine"), "extract"]);
        command.args(["--base", &base, "--tuned", &tuned, "--out"]).arg(&out).args(RANK);
        let ended = run(&mut command).code(0);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        assert!(out.join("B3SUMS").exists(), "{redirection}: {}", ended.stderr);
    }
}

#[test]
fn names_that_are_no_text() {
    use std::os::unix::ffi::OsStrExt;
    let home = tempdir().unwrap();
    let [base, tuned] = pair();
    let out = home.path().join(std::ffi::OsStr::from_bytes(b"out \xff"));
    run(extract(&base, &tuned, &out).args(RANK)).code(0);
    assert!(out.join("B3SUMS").exists());
    run(crate::common::trephine().arg("verify").arg(&out)).code(0);
}

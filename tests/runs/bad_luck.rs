//! Bad luck in every command that writes: kills at random instants, files that may not grow, a disk that can only be
//! read, threads that the system does not give. `scripts/faults.py` kills and fills the disk at every system call.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::Instant;

use crate::common::pair::noise;
use crate::common::{assert_same, contents, data, run};
use crate::every_command::Inputs;
use crate::faults::{Disk, as_nobody, for_anybody};
use tempfile::tempdir;

const COMMANDS: [&str; 6] = ["extract", "dequantize", "merge", "analyze", "fidelity", "sanitize"];

#[test]
fn every_command_goes_on_after_kills() {
    let inputs = Inputs::new();
    for name in COMMANDS {
        let started = Instant::now();
        run(&mut inputs.command(name, name, &[])).code(0);
        let (whole, files) = (started.elapsed(), contents(&inputs.path(name)));
        let mut kills = 0;
        for (attempt, share) in noise(11, 60).into_iter().enumerate() {
            let out = format!("{name}-{attempt}");
            let mut process = inputs.command(name, &out, &[]).spawn().unwrap();
            sleep(whole.mul_f32(share.abs().min(1.0)));
            process.kill().unwrap();
            if process.wait().unwrap().success() {
                continue;
            }
            run(&mut inputs.command(name, &out, &[])).code(0);
            assert_same(&inputs.path(&out), &files, &format!("{name}, kill {attempt}"));
            kills += 1;
            if kills == 3 {
                break;
            }
        }
        assert!(kills > 0, "{name}: no run was caught before it ended");
    }
}

/// The command under a limit of the shell.
fn limited(command: &Command, limit: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("trap '' XFSZ; {limit}; exec \"$@\""), "sh"]);
    shell.arg(command.get_program()).args(command.get_args());
    shell.current_dir(command.get_current_dir().unwrap());
    shell.env("HF_HOME", "/nonexistent");
    shell
}

#[test]
fn every_command_goes_on_after_files_that_may_not_grow() {
    let inputs = Inputs::new();
    for name in COMMANDS {
        run(&mut inputs.command(name, name, &[])).code(0);
        let files = contents(&inputs.path(name));
        // In blocks of 512 bytes, or 1024 in some shells: nothing can be written, or a beginning.
        for blocks in [0, 3, 12] {
            let out = format!("{name}-{blocks}");
            let command = inputs.command(name, &out, &[]);
            run(&mut limited(&command, &format!("ulimit -f {blocks}"))).code(1).says("cannot ");
            let left = contents(&inputs.path(&out));
            assert!(!left.contains_key("B3SUMS"), "{name}");
            assert!(
                !left.keys().any(|file| file.contains(".tmp-") && !file.ends_with("heartbeat")),
                "{left:?}"
            );
            run(&mut inputs.command(name, &out, &[])).code(0);
            assert_same(&inputs.path(&out), &files, &format!("{name}, files of {blocks} blocks"));
        }
    }
}

#[test]
fn a_finished_folder_of_any_command_may_lie_where_nothing_can_be_written() {
    let inputs = Inputs::new();
    let Some(disk) = Disk::mount(&inputs.path("disk"), "size=64m") else { return };
    for name in COMMANDS {
        run(&mut inputs.command(name, &format!("disk/{name}"), &[])).code(0);
    }
    disk.remount("ro");
    for name in COMMANDS {
        let files = contents(&inputs.path("disk").join(name));
        run(&mut inputs.command(name, &format!("disk/{name}"), &[])).code(0);
        assert_same(&inputs.path("disk").join(name), &files, name);
        // A run that is not finished cannot go on there.
        run(&mut inputs.command(name, &format!("disk/{name}-new"), &[]))
            .code(1)
            .says("Read-only file system");
    }
}

#[test]
fn threads_that_the_system_does_not_give_are_an_error() {
    if !rustix::process::getuid().is_root() {
        eprintln!("skipped: the limit would count the processes of this user");
        return;
    }
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    fs::create_dir(&out).unwrap();
    rustix::fs::chown(&out, Some(rustix::fs::Uid::from_raw(65534)), None).unwrap();
    let command = for_anybody(home.path(), &out);
    let ended = as_nobody(&mut limited(&command, "ulimit -u 1"));
    let ended = ended.code(1).says("hint: ");
    assert!(!ended.stderr.contains("panicked") && ended.stderr.contains("thread"), "{ended:?}");
    assert!(!out.join("B3SUMS").exists());
}

#[test]
fn names_that_are_no_text_are_said_and_not_taken_for_others() {
    use std::os::unix::ffi::OsStrExt;
    let home = tempdir().unwrap();
    let input = crate::common::copied("base-fp8", home.path());
    let named = |bytes: &[u8]| input.join(std::ffi::OsStr::from_bytes(bytes));
    fs::write(named(b"notes \xff.txt"), "side").unwrap();
    let out = home.path().join("out");
    let dequantize = || {
        let mut command = crate::common::trephine();
        command.arg("dequantize").arg(&input).arg("--out").arg(&out);
        command
    };
    run(&mut dequantize()).code(0).says("not copied: 'notes \u{fffd}.txt' is a name that is not UTF-8");
    fs::rename(named(b"model.safetensors"), named(b"model \xff.safetensors")).unwrap();
    run(dequantize().arg("--overwrite"))
        .code(3)
        .says("the name of a weight file is not UTF-8: ")
        .says("hint: rename it");
}

#[test]
fn links_that_lead_to_themselves_are_called_that() {
    use std::os::unix::fs::symlink;
    let home = tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| home.path().join(name));
    symlink(&one, &two).unwrap();
    symlink(&two, &one).unwrap();
    let tuned = data("tuned");
    let words = "this link leads to no file or folder";
    for (base, out) in [(one.to_str().unwrap(), "out"), (data("base").as_str(), "one")] {
        let ended = crate::common::extract_with(base, &tuned, &home.path().join(out), &["--rank", "4"]);
        assert!(matches!(ended.code, Some(1..=3)), "{ended:?}");
        assert!(ended.stderr.contains(words) || ended.stderr.contains("Too many levels"), "{ended:?}");
    }
    let input = crate::common::copied("base-fp8", home.path());
    symlink("self.txt", input.join("self.txt")).unwrap();
    symlink("nowhere", input.join("gone.txt")).unwrap();
    let mut command = crate::common::trephine();
    command.arg("dequantize").arg(&input).arg("--out").arg(home.path().join("dense"));
    run(&mut command)
        .code(0)
        .says("not copied: self.txt is a link that leads to no file")
        .says("not copied: gone.txt is a link that leads to no file");
}

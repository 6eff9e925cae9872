//! Runs that are split into parts: the bytes are those of one machine, regardless of who does which part, in which
//! order and how often; missing and foreign work is reported by name.

use std::fs;
use std::path::Path;

use crate::common::runs::{Reference, part_killed_at};
use crate::common::{assert_same, contents, copied, copy, data, extract_with, run};
use crate::parts_of_runs::{age, assemble, attempts, part, rewrite, shards_of, split};
use tempfile::tempdir;

#[test]
fn any_number_of_parts_gives_the_bytes_of_one_machine() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    // This includes more parts than modules.
    for of in [1, 2, 3, 7, 50] {
        let out = home.path().join(of.to_string());
        // Out of order, and with different memory and threads, which change nothing.
        for index in (1..=of).rev() {
            let threads = ["1", "2"][index % 2];
            let memory = ["2GiB", "300MiB"][index % 3 % 2];
            let mut command = part(&reference, &out, index, of);
            run(command.args(["--threads", threads, "--memory", memory])).code(0);
        }
        assert!(!out.join("B3SUMS").exists());
        assemble(&out).code(0);
        assert_same(&out, &reference.files, &format!("{of} parts"));
        let again = assemble(&out).code(0);
        assert!(again.stdout.contains("already complete"), "{}", again.stdout);
        let late = run(&mut part(&reference, &out, 1, of)).code(0);
        assert!(late.stdout.contains("is already assembled"), "{}", late.stdout);
        assert_same(&out, &reference.files, "assembled twice");
    }
}

#[test]
fn parts_that_are_killed_and_come_again() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    let mut kills = 0;
    for index in 1..=3 {
        // Killed after every further record, each time in a process of its own.
        while part_killed_at(&reference.job, &out, "record 2", &format!("{index}/3")) {
            kills += 1;
            assert!(kills < 40);
        }
    }
    assert!(kills >= 12, "{kills}");
    assert!(attempts(&out).len() > 12);
    assemble(&out).code(0);
    assert_same(&out, &reference.files, "killed again and again");
}

#[test]
fn a_lost_part_is_taken_over() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let lost = home.path().join("lost");
    run(&mut part(&reference, &lost, 1, 3)).code(0);
    assert!(part_killed_at(&reference.job, &lost, "record 1", "2/3"));
    assert!(part_killed_at(&reference.job, &lost, "record 3", "3/3"));
    let again = |out: &Path, parts: &[(usize, usize)]| {
        parts.iter().for_each(|(index, of)| drop(run(&mut part(&reference, out, *index, *of)).code(0)));
    };
    type Way<'a> = (&'a str, &'a dyn Fn(&Path));
    let ways: [Way<'_>; 5] = [
        ("by itself", &|out| again(out, &[(2, 3), (3, 3)])),
        ("by another split", &|out| again(out, &[(1, 2), (2, 2)])),
        ("by one", &|out| again(out, &[(1, 1)])),
        ("by the assembly", &|out| drop(crate::common::run(finish(out).arg("-q")).code(0))),
        ("by the unsplit run", &|out| {
            let mut command = crate::common::trephine();
            command.args(["extract", "--rank", "8", "--base", &reference.job.base, "--tuned"]);
            let ended = run(command.arg(&reference.job.tuned).arg("--out").arg(out)).code(0);
            ended.says("note: part 2/3 on ").says(" appears to be running (heartbeat ");
        }),
    ];
    for (name, way) in ways {
        let out = home.path().join(name);
        copy(&lost, &out);
        way(&out);
        assemble(&out).code(0);
        assert_same(&out, &reference.files, name);
    }
}

/// `trephine assemble OUT --finish`.
fn finish(out: &Path) -> std::process::Command {
    let mut command = crate::common::trephine();
    command.arg("assemble").arg(out).arg("--finish");
    command
}

#[test]
fn the_same_work_twice_at_once_does_no_harm() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    for round in 0..3 {
        let out = home.path().join(round.to_string());
        let start = |index| {
            let mut command = part(&reference, &out, index, 2);
            command.stdout(std::process::Stdio::null()).spawn().unwrap()
        };
        let processes: Vec<_> = [1, 2, 1, 2, 2, 1].into_iter().map(start).collect();
        for mut process in processes {
            assert!(process.wait().unwrap().success());
        }
        assemble(&out).code(0);
        assert_same(&out, &reference.files, "six processes for two parts");
    }
    // Work that was certainly done twice: a copy of a part under another name.
    let out = home.path().join("copy");
    split(&reference, &out, 2);
    let first = attempts(&out).remove(0);
    copy(&first, &first.with_file_name("1-of-2-another-1-1"));
    assemble(&out).code(0);
    assert_same(&out, &reference.files, "every module of one part twice");
}

#[test]
fn two_parts_that_differ_are_both_named() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    split(&reference, &out, 2);
    let first = attempts(&out).remove(0);
    let other = first.with_file_name("1-of-2-another-1-1");
    copy(&first, &other);
    // A shard with one flipped bit, recorded in its journal.
    let shard = shards_of(&other).remove(0);
    crate::common::flip(&shard, fs::metadata(&shard).unwrap().len() as usize - 9);
    let digest = blake3::hash(&fs::read(&shard).unwrap()).to_hex().to_string();
    rewrite(&other, |entry| {
        let Some(module) = entry.get_mut("module") else { return };
        let name = module["name"].as_str().unwrap();
        if shard.ends_with(trephine::lora::write::shard::file_name(name)) {
            module["blake3"] = digest.clone().into();
        }
    });
    let mut how: serde_json::Value =
        serde_json::from_slice(&fs::read(other.join("attempt.json")).unwrap()).unwrap();
    how["host"] = "another".into();
    fs::write(other.join("attempt.json"), how.to_string()).unwrap();
    let before = contents(&out);
    let ended = assemble(&out).code(4).says("computed different bytes: tensor 'model.layers.");
    ended.says("part 1/2 on ").says("part 1/2 on another (process ").says(other.to_str().unwrap());
    run(finish(&out).arg("-q")).code(4).says("computed different bytes");
    run(&mut part(&reference, &out, 1, 1)).code(4).says("computed different bytes");
    assert_eq!(contents(&out).len(), before.len() + 1, "but for the lock nothing is new");
    fs::remove_dir_all(&other).unwrap();
    assemble(&out).code(0);
    assert_same(&out, &reference.files, "without the wrong one");
}

#[test]
fn parts_of_another_run_are_refused_by_name() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    run(&mut part(&reference, &out, 1, 2)).code(0);
    let before = contents(&out);
    let (base, tuned) = (&reference.job.base, &reference.job.tuned);
    let refused = |base: &str, more: &[&str], words: &str| {
        let more: Vec<&str> = more.iter().copied().chain(["--part", "2/2"]).collect();
        extract_with(base, tuned, &out, &more).code(2).says("part 1/2 on ").says(words);
        assert_same(&out, &before, words);
    };
    refused(base, &["--rank", "9"], "--rank was 8 and is 9");
    refused(base, &["--rank", "8", "--seed", "1"], "--seed was 0 and is 1");
    refused(base, &["--rank", "8", "--served", base], "the earlier run had no --served");
    let name = ["--rank", "8", "--base-model-name", base];
    refused(&data("base"), &name, "the base checkpoint is a different one: config.json had ");
    // The unsplit run is refused too, and leaves no journal behind.
    extract_with(base, tuned, &out, &["--rank", "9"]).code(2).says("--rank was 8 and is 9");
    assert!(!out.join(".trephine/journal").exists());
}

#[test]
fn other_versions_and_processors_are_refused() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    for (field, words) in [
        ("trephine", "it was made by version 0.0.0, this is "),
        ("simd", "it was made with 0.0.0 instructions, this machine has "),
    ] {
        let out = home.path().join(field);
        split(&reference, &out, 2);
        rewrite(&attempts(&out)[0], |entry| {
            if let Some(begin) = entry.get_mut("begin") {
                begin[field] = "0.0.0".into();
            }
        });
        let code = if field == "simd" { 0 } else { 2 };
        run(&mut part(&reference, &out, 2, 2)).code(2).says("part 1/2 on ").says(words);
        run(part(&reference, &out, 2, 2).arg("--other-simd")).code(code);
        let ended = assemble(&out).code(2).says("part 1/2 on ").says("part 2/2 on ");
        ended.says(if field == "simd" {
            "different vector instructions"
        } else {
            "belong to different runs: "
        });
        let mut other_simd = crate::common::trephine();
        run(other_simd.arg("assemble").arg(&out).args(["-q", "--other-simd"])).code(code);
        if field == "simd" {
            let simd = crate::common::manifest(&out)["simd"].as_str().unwrap().to_owned();
            assert_eq!(simd, format!("0.0.0 and {}", trephine::run::simd_level()));
        }
    }
}

#[test]
fn damage_costs_only_what_it_hits() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let whole = home.path().join("whole");
    split(&reference, &whole, 2);
    let journal = |out: &Path| attempts(out)[0].join("journal");
    let length = |path: &Path| fs::metadata(path).unwrap().len();
    type Damage<'a> = (&'a str, &'a dyn Fn(&Path));
    let damages: [Damage<'_>; 7] = [
        ("its first line", &|out| crate::common::flip(&journal(out), 40)),
        ("its middle", &|out| crate::common::flip(&journal(out), length(&journal(out)) as usize / 2)),
        ("torn", &|out| {
            let file = fs::File::options().write(true).open(journal(out)).unwrap();
            file.set_len(length(&journal(out)) - 3).unwrap();
        }),
        ("emptied", &|out| fs::write(journal(out), "").unwrap()),
        ("a shard", &|out| crate::common::flip(&shards_of(&attempts(out)[0])[1], 900)),
        ("a missing shard", &|out| fs::remove_file(&shards_of(&attempts(out)[0])[1]).unwrap()),
        ("how", &|out| fs::write(attempts(out)[0].join("attempt.json"), "{").unwrap()),
    ];
    for (name, damage) in damages {
        let out = home.path().join(name);
        copy(&whole, &out);
        damage(&out);
        if name != "how" {
            let ended = assemble(&out).code(4);
            assert!(ended.stdout.contains("--part 1/2"), "{name}: {}", ended.stdout);
            if name.starts_with("its ") {
                ended.says("the journal is damaged: line ").says("the entries before that count");
            }
            run(&mut part(&reference, &out, 1, 2)).code(0);
        }
        assemble(&out).code(0);
        assert_same(&out, &reference.files, name);
    }
}

#[test]
fn what_is_missing_is_said_with_the_command_for_it() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let out = home.path().join("it's here");
    let none = |folder: &Path| assemble(folder).code(2).says("the folder holds no run, finished or not");
    none(&out);
    fs::create_dir(&out).unwrap();
    none(&out);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    run(&mut part(&reference, &out, 2, 4)).code(0);
    assert!(part_killed_at(&reference.job, &out, "record 1", "4/4"));
    let ended = assemble(&out).code(4).says(" of 21 modules are missing").says("--finish");
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines.len(), 6, "{}", ended.stdout);
    assert!(lines[0].starts_with("# part 1/4: ") && lines[0].ends_with("(never started)"), "{}", lines[0]);
    assert!(lines[4].contains("part 4/4: ") && lines[4].contains("running on "), "{}", lines[4]);
    attempts(&out).iter().for_each(|attempt| age(attempt));
    let ended = assemble(&out).code(4);
    assert!(ended.stdout.contains("missing (lost on "), "{}", ended.stdout);
    let json = run(crate::common::trephine().arg("assemble").arg(&out).args(["-q", "--json"])).code(4).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let parts: Vec<&str> =
        json["parts"].as_array().unwrap().iter().map(|p| p["part"].as_str().unwrap()).collect();
    assert_eq!(parts, ["1/4", "3/4", "4/4"]);
    for line in ended.stdout.lines().filter(|line| !line.starts_with('#')) {
        let words = shlex::split(line).unwrap();
        assert_eq!(words[0], "trephine");
        run(crate::common::trephine().args(&words[1..])).code(0);
    }
    assemble(&out).code(0);
    assert_same(&out, &reference.files, "by the commands that were given");
}

#[test]
fn from_an_unsplit_run_to_parts_and_back() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    assert!(crate::common::runs::killed_at(&reference.job, &out, "record 5"));
    let ended = run(&mut part(&reference, &out, 1, 2)).code(0);
    assert!(ended.stdout.contains(" were already done"), "{}", ended.stdout);
    assert!(part_killed_at(&reference.job, &out, "record 2", "2/2"));
    let mid = home.path().join("mid");
    copy(&out, &mid);
    assert!(crate::common::runs::killed_at(&reference.job, &mid, "record 1"));
    let ended = run(crate::common::trephine()
        .args(["extract", "--rank", "8", "--base", &reference.job.base, "--tuned"])
        .arg(&reference.job.tuned)
        .arg("--out")
        .arg(&mid))
    .code(0);
    ended.says("resuming: ").says(" of 21 modules are done");
    assert_same(&mid, &reference.files, "unsplit, split, unsplit");
    run(&mut part(&reference, &out, 2, 2)).code(0);
    assemble(&out).code(0);
    assert_same(&out, &reference.files, "unsplit, then split");
    // An unsplit run is assembled and finished like a run with a single part.
    let out = home.path().join("only unsplit");
    assert!(crate::common::runs::killed_at(&reference.job, &out, "record 5"));
    let ended = assemble(&out).code(4);
    assert!(ended.stdout.starts_with("# the run: "), "{}", ended.stdout);
    run(finish(&out).arg("-q")).code(0);
    assert_same(&out, &reference.files, "an unsplit run, finished by the assembly");
}

#[test]
fn overwrite_makes_way_for_this_run_only() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    let other = |out: &Path| {
        for index in ["1/2", "2/2"] {
            let more = ["--rank", "9", "--part", index];
            extract_with(&reference.job.base, &reference.job.tuned, out, &more).code(0);
        }
    };
    other(&out);
    let overwriting = |index| run(part(&reference, &out, index, 2).arg("--overwrite"));
    overwriting(1).code(0);
    let ended = overwriting(2).code(0);
    assert!(ended.stdout.contains("part 2/2: "), "{}", ended.stdout);
    let again = overwriting(1).code(0);
    assert!(again.stdout.contains(": 0 modules of 21"), "{}", again.stdout);
    assemble(&out).code(0);
    assert_same(&out, &reference.files, "the parts of this run have stayed");
    // Over a different finished run, and over a damaged one of the same run.
    run(reference.extract(&out).args(["--overwrite", "--seed", "5"])).code(0);
    run(&mut part(&reference, &out, 1, 2)).code(2).says("--seed was 5 and is 0");
    for damaged in [false, true] {
        if damaged {
            crate::common::flip(&out.join("README.md"), 70);
            run(&mut part(&reference, &out, 1, 2)).code(2).says("finished run that is damaged");
        }
        [1, 2].into_iter().for_each(|index| drop(overwriting(index).code(0)));
        assemble(&out).code(0);
        assert_same(&out, &reference.files, "anew");
    }
    // Parts of another run that appear to be running are not removed.
    let out = home.path().join("at work");
    let other = Reference::of(&data("base"), &data("tuned"));
    assert!(part_killed_at(&other.job, &out, "record 1", "1/2"));
    let overwriting = || run(part(&reference, &out, 1, 2).arg("--overwrite"));
    overwriting().code(2).says("part 1/2 on ").says("appears to be running (heartbeat ");
    attempts(&out).iter().for_each(|attempt| age(attempt));
    overwriting().code(0);
    // The unsplit run leaves nothing of them either.
    run(other.extract(&out).arg("--overwrite")).code(0);
    assert_same(&out, &other.files, "the unsplit run over parts");
}

#[test]
fn checkpoints_that_moved_or_changed() {
    let home = tempdir().unwrap();
    let [base, tuned] = ["base-fp8", "tuned"].map(|name| copied(name, home.path()));
    let reference = Reference::of(base.to_str().unwrap(), tuned.to_str().unwrap());
    let out = home.path().join("out");
    split(&reference, &out, 2);
    let elsewhere = home.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::rename(&tuned, elsewhere.join("tuned")).unwrap();
    assemble(&out).code(3).says("no such file or folder");
    let weights = elsewhere.join("tuned/model.safetensors");
    let assemble_there = |out: &Path| {
        let mut command = crate::common::trephine();
        command.arg("assemble").arg(out).arg("-q").arg("--tuned").arg(elsewhere.join("tuned"));
        run(&mut command)
    };
    // Written again with a different weight after the parts have read it.
    let copied = home.path().join("copy");
    copy(&out, &copied);
    let bytes = fs::read(&weights).unwrap();
    crate::common::flip(&weights, bytes.len() - 1000);
    let file = fs::File::options().append(true).open(&weights).unwrap();
    file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(60)).unwrap();
    assemble_there(&copied).code(2).says(" of the tuned checkpoint has changed since");
    fs::write(&weights, bytes).unwrap();
    assemble_there(&out).code(0);
    assert_same(&out, &reference.files, "the tuned checkpoint was moved");
}

#[test]
fn relative_paths_are_found_again_from_elsewhere() {
    let home = tempdir().unwrap();
    [copied("base-fp8", home.path()), copied("tuned", home.path())]
        .iter()
        .for_each(|path| assert!(path.is_dir()));
    let arguments = ["extract", "-q", "--base", "base-fp8", "--tuned", "./tuned/../tuned/", "--rank", "8"];
    let here = |more: &[&str]| {
        run(crate::common::trephine().current_dir(home.path()).args(arguments).args(more)).code(0)
    };
    here(&["--out", "whole"]);
    ["1/2", "2/2"].iter().for_each(|part| drop(here(&["--out", "parts", "--part", part])));
    assemble(&home.path().join("parts")).code(0);
    assert_same(&home.path().join("parts"), &contents(&home.path().join("whole")), "relative paths");
}

#[test]
fn shards_are_kept_when_asked() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    split(&reference, &out, 3);
    run(crate::common::trephine().arg("assemble").arg(&out).args(["-q", "--keep-shards"])).code(0);
    assert_eq!(crate::common::shards(&out).len(), 21);
    assert!(!out.join(".trephine/parts").exists());
    reference.goes_on(&out, "shards no longer kept");
}

#[test]
fn parts_say_what_they_are() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    for (bad, words) in
        [("0/4", "no part 0 of 4"), ("5/4", "no part 5 of 4"), ("x", "'x' is not a part of a run")]
    {
        let ended = extract_with(&reference.job.base, &reference.job.tuned, &out, &["--part", bad]);
        ended.code(2).says(words);
    }
    let mut auto = reference.extract(&out);
    auto.args(["--part", "auto"]).env_remove("SLURM_ARRAY_TASK_ID").env_remove("JOB_COMPLETION_INDEX");
    run(&mut auto).code(2).says("neither a Slurm array task nor a pod of an indexed Job");
    assert!(!out.exists());
    for (name, value) in [("ID", "14"), ("MIN", "10"), ("MAX", "14"), ("STEP", "4"), ("COUNT", "2")] {
        auto.env(format!("SLURM_ARRAY_TASK_{name}"), value);
    }
    let ended = run(auto.arg("--json")).code(0);
    let outcome: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((outcome["part"].as_str(), outcome["run_modules"].as_u64()), (Some("2/2"), Some(21)));
    let mut pod = reference.extract(&out);
    pod.args(["--part", "auto/2"]).env_remove("SLURM_ARRAY_TASK_ID").env("JOB_COMPLETION_INDEX", "0");
    run(&mut pod).code(0);
    assemble(&out).code(0);
    assert_same(&out, &reference.files, "an array of base 10 and step 4, and a pod");
}

/// `trephine status --json`.
fn status(out: &Path) -> serde_json::Value {
    let ended = run(crate::common::trephine().arg("status").arg(out).arg("--json")).code(0);
    serde_json::from_str(&ended.stdout).unwrap()
}

/// The text of `trephine status`.
fn told(out: &Path) -> String {
    run(crate::common::trephine().arg("status").arg(out)).code(0).stdout
}

#[test]
fn status_follows_a_split_run() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    run(crate::common::trephine().arg("status").arg(&out))
        .code(2)
        .says("the folder holds no run, finished or not");
    run(&mut part(&reference, &out, 2, 4)).code(0);
    assert!(part_killed_at(&reference.job, &out, "record 2", "3/4"));
    let now = status(&out);
    assert_eq!((now["state"].as_str(), &now["parts"]), (Some("running"), &serde_json::json!(4)));
    assert_eq!((&now["total"]["modules"], &now["not_begun"]), (&21.into(), &serde_json::json!([1, 4])));
    let [second, third] = [0, 1].map(|index| now["attempts"][index].clone());
    assert_eq!((&second["part"], &second["state"]), (&"2/4".into(), &"done".into()));
    assert_eq!(second["modules"], second["ahead"]["modules"]);
    assert!(second["read_bytes"].as_u64().unwrap() >= second["ahead"]["bytes"].as_u64().unwrap(), "{second}");
    assert_eq!((&third["part"], &third["state"]), (&"3/4".into(), &"running".into()));
    assert_eq!(now["modules"].as_u64().unwrap(), second["modules"].as_u64().unwrap() + 2);
    assert!(now["shard_bytes"].as_u64().unwrap() > 10_000 && third["heard"].as_f64().unwrap() < 60.0);
    // The process was killed: only its silence shows that.
    attempts(&out).iter().for_each(|attempt| age(attempt));
    let now = status(&out);
    assert_eq!((&now["state"], &now["attempts"][1]["state"]), (&"idle".into(), &"lost".into()));
    let words = told(&out);
    assert!(words.contains("not started: part 1, 4 of 4"), "{words}");
    assert!(words.contains("no process appears to be running; trephine assemble "), "{words}");
    [1, 3, 4].into_iter().for_each(|index| drop(run(&mut part(&reference, &out, index, 4)).code(0)));
    let now = status(&out);
    assert_eq!((&now["state"], &now["modules"]), (&"complete".into(), &21.into()));
    assert_eq!((&now["compared"], &now["not_begun"]), (&now["total"]["compared"], &serde_json::json!([])));
    assert!(told(&out).contains("everything is done: trephine assemble "));
    let before = contents(&out);
    told(&out);
    assert_same(&out, &before, "looking changes nothing");
    assemble(&out).code(0);
    let now = status(&out);
    assert_eq!(
        (&now["state"], &now["modules"], &now["total"]["modules"]),
        (&"assembled".into(), &21.into(), &21.into())
    );
    let words = run(crate::common::trephine().args(["status", "--watch=1"]).arg(&out)).code(0).stdout;
    assert!(words.contains("the adapter is assembled"), "{words}");
}

#[test]
fn status_of_unsplit_failed_and_stopped_runs() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let out = home.path().join("unsplit");
    assert!(crate::common::runs::killed_at(&reference.job, &out, "record 4"));
    let now = status(&out);
    assert_eq!(
        (&now["parts"], &now["attempts"][0]["part"]),
        (&serde_json::Value::Null, &serde_json::Value::Null)
    );
    assert_eq!((&now["modules"], &now["total"]["modules"]), (&4.into(), &21.into()));
    // It fails on its input: a weight that is not finite.
    let tuned = copied("tuned", home.path());
    let weights = tuned.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 40_000..].chunks_exact_mut(2).for_each(|v| v.copy_from_slice(&[0xc0, 0x7f]));
    fs::write(&weights, bytes).unwrap();
    let out = home.path().join("failed");
    let bad = tuned.to_str().unwrap();
    extract_with(&reference.job.base, bad, &out, &["--rank", "8", "--part", "1/1"]).code(3);
    let now = status(&out);
    assert_eq!(now["attempts"][0]["state"], "failed");
    assert!(now["attempts"][0]["error"].as_str().unwrap().contains("model."), "{now}");
    assert!(told(&out).contains("part 1/1 failed: "), "{}", told(&out));
}

#[test]
fn a_stopped_part_says_so() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let stopped = |round: usize| {
        let out = home.path().join(round.to_string());
        let mut command = part(&reference, &out, 1, 1);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        let mut process = command.spawn().unwrap();
        let begun = || {
            out.join(".trephine/parts").is_dir()
                && attempts(&out).first().is_some_and(|first| first.join("heartbeat.json").exists())
        };
        while !begun() && process.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        if process.try_wait().unwrap().is_none() {
            let id = rustix::process::Pid::from_child(&process);
            rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        }
        let ended = crate::common::Ended::of(process.wait_with_output().unwrap());
        (ended.code != Some(0)).then_some((out, ended))
    };
    // A part that finished before the signal is run again.
    let (out, ended) = (0..50).find_map(stopped).expect("every part ended before the signal");
    assert!(
        ["To resume:", "To start again:"].iter().any(|word| ended.stderr.contains(word)),
        "{}",
        ended.stderr
    );
    ended.code(75).says("--part 1/1");
    assert_eq!(status(&out)["attempts"][0]["state"], "stopped");
    run(&mut part(&reference, &out, 1, 1)).code(0);
    assemble(&out).code(0);
    assert_same(&out, &reference.files, "stopped by a signal");
}

/// A checkpoint with Qwen3's shapes and no data: its files are sparse.
fn hollow(home: &Path, hidden: usize, intermediate: usize, heads: usize, layers: usize) -> String {
    let mut tensors = vec![
        ("model.embed_tokens".to_owned(), vec![151_936, hidden]),
        ("lm_head".to_owned(), vec![151_936, hidden]),
        ("model.norm".to_owned(), vec![hidden]),
    ];
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        };
        add("self_attn.q_proj", &[heads * 128, hidden]);
        add("self_attn.k_proj", &[8 * 128, hidden]);
        add("self_attn.v_proj", &[8 * 128, hidden]);
        add("self_attn.o_proj", &[hidden, heads * 128]);
        add("mlp.gate_proj", &[intermediate, hidden]);
        add("mlp.up_proj", &[intermediate, hidden]);
        add("mlp.down_proj", &[hidden, intermediate]);
        add("input_layernorm", &[hidden]);
        add("post_attention_layernorm", &[hidden]);
        add("self_attn.q_norm", &[128]);
        add("self_attn.k_norm", &[128]);
    }
    let (mut header, mut end) = (serde_json::Map::new(), 0u64);
    for (name, shape) in tensors {
        let begin = end;
        end += 2 * shape.iter().product::<usize>() as u64;
        let entry = serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]});
        header.insert(name + ".weight", entry);
    }
    let mut header = serde_json::Value::Object(header).to_string();
    header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
    let file = fs::File::create(home.join("model.safetensors")).unwrap();
    std::io::Write::write_all(&mut &file, &(header.len() as u64).to_le_bytes()).unwrap();
    std::io::Write::write_all(&mut &file, header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
    fs::write(home.join("config.json"), "{\"model_type\": \"qwen3\"}").unwrap();
    home.to_str().unwrap().to_owned()
}

/// A plan with this many threads and this much memory.
fn planned(checkpoint: &str, threads: usize, memory: u64) -> trephine::commands::extract::ExtractionPlan {
    let mut job = crate::common::job(checkpoint, checkpoint, Path::new("/nonexistent"));
    job.deciding.rank = 256;
    job.allow.same = true;
    job.running = trephine::pipeline::RunOptions::new(threads, memory);
    trephine::commands::extract::plan(&job).unwrap()
}

#[test]
fn the_split_is_balanced_and_the_same_everywhere() {
    use trephine::run::Part;
    use trephine::run::Partition;
    for (name, hidden, intermediate, heads, layers) in
        [("Qwen3-32B", 5120, 25600, 64, 64), ("Qwen3-14B", 5120, 17408, 40, 40)]
    {
        let home = tempdir().unwrap();
        let checkpoint = hollow(home.path(), hidden, intermediate, heads, layers);
        let (plan, other) = (planned(&checkpoint, 1, 300 << 20), planned(&checkpoint, 64, 200 << 30));
        assert_ne!(plan.modules[0].holding.held, other.modules[0].holding.held);
        for (of, most) in [(1, 1.0), (4, 1.01), (16, 1.03), (64, 1.10)] {
            let split = Partition::of(&plan.units(), of);
            assert_eq!(
                split,
                Partition::of(&other.units(), of),
                "{name}: threads or memory have changed the split"
            );
            println!("{name} in {of} parts: the slowest over the mean is {:.4}", split.imbalance());
            assert!(split.imbalance() <= most, "{name}, {of}: {}", split.imbalance());
            let (mut modules, mut compared, mut bytes) = (Vec::new(), Vec::new(), 0);
            for (index, load) in split.loads().iter().enumerate() {
                let share = plan.share(Part::new(index + 1, of).unwrap());
                assert_eq!(share.cost(), *load);
                modules.extend(share.modules.into_iter().map(|module| module.name));
                compared.extend(share.not_represented.iter().map(|left| left.key().to_owned()));
                bytes += share.read_bytes;
            }
            [&mut modules, &mut compared].into_iter().for_each(|names| names.sort());
            let mut all: Vec<String> = plan.modules.iter().map(|module| module.name.clone()).collect();
            all.sort();
            assert_eq!((modules.len(), bytes), (7 * layers, plan.read_bytes));
            assert_eq!(modules, all, "every module once");
            assert_eq!(compared.len(), plan.not_represented.len());
            compared.dedup();
            assert_eq!(compared.len(), plan.not_represented.len());
        }
    }
}

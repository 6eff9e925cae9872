//! Output folders that somebody else has prepared: names that lead out of them, links in them, and side files that
//! are links.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};
use trephine::durable::Journal;

use crate::common::{Ended, assert_same, contents, copied, data, extract_with, run, trephine};

/// A victim's folder, which is to stay as it is.
struct Victim {
    home: TempDir,
    path: PathBuf,
}

impl Victim {
    fn new() -> Victim {
        let home = tempdir().unwrap();
        let path = home.path().join("victim");
        fs::create_dir_all(path.join("parts/1-of-2-x")).unwrap();
        fs::create_dir_all(path.join("shards")).unwrap();
        for file in
            ["x", "journal", "lock", "heartbeat.json", "attempt.json", "shards/a.shard", "parts/1-of-2-x/log"]
        {
            fs::write(path.join(file), format!("{file} is mine")).unwrap();
        }
        Victim { home, path }
    }

    fn out(&self, name: &str) -> PathBuf {
        let out = self.home.path().join(name);
        fs::create_dir_all(&out).unwrap();
        out
    }

    #[track_caller]
    fn is_untouched(&self, when: &str) {
        let other = Victim::new();
        assert_same(&self.path, &contents(&other.path), when);
    }
}

fn dequantize(out: &Path, more: &[&str]) -> Ended {
    let mut command = trephine();
    command.args(["dequantize", &data("base-fp8"), "--quiet", "--max-shard-size", "300kB", "--out"]).arg(out);
    run(command.args(more))
}

/// The folder of the only part in `out`.
fn part(out: &Path) -> PathBuf {
    let mut parts = fs::read_dir(out.join(".trephine/parts")).unwrap();
    parts.next().unwrap().unwrap().path()
}

/// Files of a part's `attempt.json`, which an unsplit run is to take for its own.
fn tamper_outputs(out: &Path, names: &[&str]) {
    let path = part(out).join("attempt.json");
    let mut info: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    info["outputs"].as_array_mut().unwrap().extend(names.iter().map(|name| json!(name)));
    fs::write(&path, info.to_string()).unwrap();
}

#[test]
fn names_in_an_attempt_that_lead_out_of_the_folder_are_no_files_of_the_run() {
    let victim = Victim::new();
    let out = victim.out("out");
    let absolute = victim.path.join("x");
    symlink(&victim.path, out.join("sub")).unwrap();
    dequantize(&out, &["--part", "1/2"]).code(2).says("holds something else");
    fs::remove_file(out.join("sub")).unwrap();
    dequantize(&out, &["--part", "1/2"]).code(0);
    tamper_outputs(&out, &["../victim/x", absolute.to_str().unwrap(), "..", ".", ""]);
    dequantize(&out, &["--overwrite"]).code(0);
    victim.is_untouched("names that lead out");
    assert!(out.join("B3SUMS").exists());
}

#[test]
fn a_link_among_the_files_of_an_earlier_run_is_not_followed() {
    let victim = Victim::new();
    let out = victim.out("out");
    dequantize(&out, &["--part", "1/2"]).code(0);
    tamper_outputs(&out, &["sub/x"]);
    symlink(&victim.path, out.join("sub")).unwrap();
    dequantize(&out, &["--overwrite"]).code(1).says("links inside an output folder are not followed");
    victim.is_untouched("a link to a folder");
}

#[test]
fn a_unit_that_is_not_planned_moves_no_file() {
    let victim = Victim::new();
    let out = victim.out("out");
    dequantize(&out, &["--part", "1/2"]).code(0);
    let part = part(&out);
    let journal = part.join("journal");
    let mut lines: Vec<Value> = trephine::durable::journal::replay(&journal).unwrap();
    // A file of theirs, under a name that leads to a place outside.
    fs::write(part.join("x"), "theirs").unwrap();
    fs::create_dir_all(part.join("shards/a/b")).unwrap();
    let digest = trephine::durable::digest::hash_file(&part.join("x")).unwrap();
    for name in ["../x", "../../victim/x"] {
        let (bytes, blake3) = (digest.bytes, digest.blake3.to_hex().to_string());
        lines.push(json!({"file": {"name": name, "bytes": bytes, "blake3": blake3}}));
    }
    fs::remove_file(&journal).unwrap();
    let mut tampered = Journal::<Value>::create(&journal).unwrap();
    lines.iter().for_each(|line| tampered.append(line).unwrap());
    fs::write(victim.home.path().join("x"), "x is mine").unwrap();
    dequantize(&out, &[]).code(0);
    assert_eq!(fs::read_to_string(victim.home.path().join("x")).unwrap(), "x is mine");
    victim.is_untouched("a unit that is not planned");
}

#[test]
fn links_where_a_run_keeps_its_state_are_refused_and_lead_nowhere() {
    for (at, (link, target)) in [
        (".trephine", ""),
        (".trephine/lock", "lock"),
        (".trephine/journal", "journal"),
        (".trephine/attempt.json", "attempt.json"),
        (".trephine/heartbeat.json", "heartbeat.json"),
        (".trephine/.tmp-heartbeat", "x"),
        (".trephine/shards", "shards"),
        (".trephine/parts", "parts"),
        (".trephine/parts/1-of-2-x", "parts/1-of-2-x"),
    ]
    .into_iter()
    .enumerate()
    {
        let victim = Victim::new();
        for (more, also) in
            [(&[][..], "plain"), (&["--overwrite"], "overwrite"), (&["--part", "1/2"], "part")]
        {
            let out = victim.out(&format!("{at}-{also}"));
            fs::create_dir_all(out.join(link).parent().unwrap()).unwrap();
            symlink(victim.path.join(target), out.join(link)).unwrap();
            dequantize(&out, more).code(2).says("holds a link").says("nothing was touched");
            let more = [&["--rank", "4"], more].concat();
            extract_with(&data("base"), &data("tuned"), &out, &more).code(2).says("holds a link");
            victim.is_untouched(&format!("{link}, {also}"));
        }
    }
}

#[test]
fn a_log_that_is_a_link_is_not_appended_to() {
    let victim = Victim::new();
    let out = victim.out("out");
    symlink(victim.path.join("x"), out.join("extraction.log")).unwrap();
    extract_with(&data("base"), &data("tuned"), &out, &["--rank", "4"]).code(2).says("the log is a link");
    victim.is_untouched("the log");
}

#[test]
fn an_output_folder_may_itself_be_a_link() {
    let home = tempdir().unwrap();
    let [real, link] = ["real", "link"].map(|name| home.path().join(name));
    fs::create_dir(&real).unwrap();
    symlink(&real, &link).unwrap();
    extract_with(&data("base"), &data("tuned"), &link, &["--rank", "4"]).code(0);
    assert!(real.join("B3SUMS").exists());
    run(trephine().arg("verify").arg(&link)).code(0);
}

#[test]
fn side_files_that_lead_out_of_the_checkpoint_are_not_copied() {
    let home = tempdir().unwrap();
    let input = copied("base-fp8", home.path());
    fs::write(home.path().join("id_ed25519"), "a private key").unwrap();
    let blob = home.path().join("models--a--b/blobs/0123");
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    fs::write(&blob, "{}").unwrap();
    fs::create_dir(input.join("sub")).unwrap();
    fs::write(input.join("sub/inside.txt"), "inside").unwrap();
    for (name, target) in [
        ("tokenizer_config.json", home.path().join("id_ed25519")),
        ("sub/key.txt", home.path().join("id_ed25519")),
        ("gone.txt", home.path().join("nowhere")),
        ("linked.txt", input.join("sub/inside.txt")),
        ("tokenizer.json", blob),
    ] {
        let _ = fs::remove_file(input.join(name));
        symlink(target, input.join(name)).unwrap();
    }
    fs::write(input.join("Icon\r"), "").unwrap();
    let out = home.path().join("out");
    let mut command = trephine();
    command.arg("dequantize").arg(&input).arg("--out").arg(&out);
    let ended = run(&mut command)
        .code(0)
        .says("not copied: tokenizer_config.json is a link out of the checkpoint's folder")
        .says("not copied: sub/key.txt is a link")
        .says("not copied: 'Icon\\r'");
    assert!(!ended.stderr.contains("\r is"), "{}", ended.stderr);
    for (name, there) in [
        ("tokenizer_config.json", false),
        ("sub/key.txt", false),
        ("gone.txt", false),
        ("Icon\r", false),
        ("linked.txt", true),
        ("sub/inside.txt", true),
        ("tokenizer.json", true),
    ] {
        assert_eq!(out.join(name).exists(), there, "{name}");
    }
    assert_eq!(fs::read_to_string(out.join("linked.txt")).unwrap(), "inside");
}

#[test]
fn a_tokenizer_that_leads_out_of_the_checkpoint_is_not_copied() {
    let home = tempdir().unwrap();
    let tuned = copied("tuned", home.path());
    fs::write(home.path().join("id_ed25519"), "a private key").unwrap();
    fs::rename(tuned.join("tokenizer.json"), tuned.join("own.json")).unwrap();
    symlink("own.json", tuned.join("tokenizer.json")).unwrap();
    fs::remove_file(tuned.join("tokenizer_config.json")).unwrap();
    symlink(home.path().join("id_ed25519"), tuned.join("tokenizer_config.json")).unwrap();
    let out = home.path().join("out");
    let mut command = trephine();
    command.args(["extract", "--rank", "4", "--copy-tokenizer", "--base", &data("base"), "--tuned"]);
    run(command.arg(&tuned).arg("--out").arg(&out))
        .code(0)
        .says("not copied: tokenizer_config.json is a link out of the tuned checkpoint's folder");
    assert!(out.join("tokenizer.json").is_file() && !out.join("tokenizer_config.json").exists());
    run(trephine().arg("verify").arg(&out)).code(0);
}

//! `B3SUMS` against damage: every change is found, and all of them at once.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use tempfile::{TempDir, tempdir};
use trephine::Kind;
use trephine::durable::B3SUMS;
use trephine::durable::checksums::Checksums;
use trephine::durable::checksums::write;
use trephine::durable::digest::hash_file;
use trephine::durable::{Level, Problem, Verification};

fn verify(folder: &Path) -> Verification {
    Checksums::read(folder).unwrap().verify(&["extraction.log"], &|_| ())
}

/// The findings, as pairs of problem and name.
fn found(folder: &Path) -> Vec<(Problem, String)> {
    verify(folder).findings.into_iter().map(|f| (f.problem, f.name.unwrap_or_default())).collect()
}

fn listed(files: &[(&str, &[u8])]) -> TempDir {
    let home = tempdir().unwrap();
    let mut sums = BTreeMap::new();
    for (name, bytes) in files {
        let path = home.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        sums.insert((*name).to_owned(), hash_file(&path).unwrap().blake3);
    }
    write(home.path(), &sums).unwrap();
    home
}

fn sample() -> TempDir {
    let home = listed(&[
        ("adapter_config.json", b"{\"r\": 16}"),
        ("adapter_model.safetensors", b"weights, weights"),
        ("back\\slash\n", b"x"),
        ("empty", b""),
        ("sub/file", b"a file in a folder"),
    ]);
    fs::write(home.path().join("extraction.log"), "times").unwrap();
    fs::create_dir_all(home.path().join(".trephine/shards")).unwrap();
    fs::write(home.path().join(".trephine/shards/a.shard"), "shard").unwrap();
    home
}

#[test]
fn a_whole_folder_passes_and_every_byte_is_told() {
    let home = sample();
    let sums = Checksums::read(home.path()).unwrap();
    let told = AtomicU64::new(0);
    let verification = sums.verify(&["extraction.log"], &|n| {
        told.fetch_add(n, Ordering::Relaxed);
    });
    assert_eq!(verification.findings, []);
    assert_eq!((verification.matched, verification.passed()), (5, true));
    assert_eq!(told.into_inner(), sums.bytes());
}

#[test]
fn every_flipped_bit_of_the_sums_and_of_the_files_is_found() {
    let home = sample();
    let files = ["B3SUMS", "adapter_config.json", "adapter_model.safetensors", "back\\slash\n", "sub/file"];
    for name in files {
        let path = home.path().join(name);
        let whole = fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &bytes).unwrap();
            assert!(!verify(home.path()).passed(), "bit {bit} of {name}");
        }
        fs::write(&path, &whole).unwrap();
    }
    assert!(verify(home.path()).passed());
}

#[test]
fn all_is_found_at_once_and_turns_into_json() {
    let home = listed(&[("a", b"a"), ("b", b"b"), ("c", b"c")]);
    fs::write(home.path().join("a"), "A").unwrap();
    fs::remove_file(home.path().join("b")).unwrap();
    fs::remove_file(home.path().join("c")).unwrap();
    fs::create_dir(home.path().join("c")).unwrap();
    fs::write(home.path().join("c/new"), "").unwrap();
    let text = fs::read_to_string(home.path().join(B3SUMS)).unwrap();
    let (first, h) = (text.lines().next().unwrap(), "0".repeat(64));
    let more = format!(
        "{text}{first}\n{h}  ../up\n{h}  /etc/hosts\n{h}  x/../a\n{}\nno line\n",
        text.to_uppercase()
    );
    fs::write(home.path().join(B3SUMS), more).unwrap();
    insta::assert_snapshot!(
        verify(home.path()).findings.iter().map(|f| format!("{f}\n")).collect::<String>(),
        @r#"
    "a" was listed before, in line 1
    "../up" is not a name inside the folder
    "/etc/hosts" is not a name inside the folder
    "x/../a" is not a name inside the folder
    line 8 of B3SUMS does not begin with 64 lowercase hex digits
    line 9 of B3SUMS does not begin with 64 lowercase hex digits
    line 10 of B3SUMS does not begin with 64 lowercase hex digits
    line 11 of B3SUMS is too short
    line 12 of B3SUMS is too short
    "a" has the BLAKE3 32684bfa28c0c84d6f210511aace0efc5171c7889148ba89208d5aa29705fa98, but 17762fddd969a453925d65717ac3eea21320b66b54342fde15128d6caf21215f is listed
    "b" is missing
    "c" is not a regular file
    "c/new" is not listed in B3SUMS
    "#
    );
    let json = serde_json::to_value(verify(home.path())).unwrap();
    assert_eq!(json["findings"][0]["problem"], "duplicate");
    assert_eq!(json["findings"][0]["line"], 4);
}

#[test]
fn what_checks_nothing_does_not_pass() {
    let home = tempdir().unwrap();
    assert_eq!(Checksums::read(home.path()).unwrap_err().kind(), Kind::Input);
    fs::write(home.path().join(B3SUMS), "").unwrap();
    assert_eq!(found(home.path()), [(Problem::Empty, String::new())]);
    assert!(!verify(home.path()).passed());
    fs::write(home.path().join(B3SUMS), "\n").unwrap();
    assert!(!verify(home.path()).passed());
}

#[test]
fn files_that_are_not_listed_are_notes() {
    let home = sample();
    fs::write(home.path().join("sub/more"), "").unwrap();
    fs::write(home.path().join(".gitattributes"), "").unwrap();
    let verification = verify(home.path());
    assert!(verification.passed());
    assert!(verification.findings.iter().all(|f| f.level == Level::Note && f.problem == Problem::Unlisted));
    let names: Vec<_> = verification.findings.iter().filter_map(|f| f.name.as_deref()).collect();
    assert_eq!(names, [".gitattributes", "sub/more"]);
}

#[test]
fn links_are_followed_as_far_as_they_are_listed() {
    let blobs = tempdir().unwrap();
    fs::write(blobs.path().join("blob"), "b").unwrap();
    let home = listed(&[("linked", b"b"), ("folder/blob", b"b"), (".hidden/file", b"h")]);
    fs::remove_file(home.path().join("linked")).unwrap();
    fs::remove_dir_all(home.path().join("folder")).unwrap();
    symlink(blobs.path().join("blob"), home.path().join("linked")).unwrap();
    symlink(blobs.path(), home.path().join("folder")).unwrap();
    symlink(home.path(), home.path().join("circle")).unwrap();
    assert_eq!(verify(home.path()).findings, []);
    fs::remove_file(blobs.path().join("blob")).unwrap();
    let missing = |name: &str| (Problem::Missing, name.to_owned());
    assert_eq!(found(home.path()), [missing("folder/blob"), missing("linked")]);
}

#[test]
fn the_sums_of_other_tools_pass_too() {
    let home = listed(&[("a", b"a")]);
    let text = fs::read_to_string(home.path().join(B3SUMS)).unwrap();
    fs::write(home.path().join(B3SUMS), text.replace("  a", "  ./a")).unwrap();
    assert_eq!(verify(home.path()).findings, []);
    fs::write(home.path().join(B3SUMS), text.clone() + &text.replace("  a", "  ./a")).unwrap();
    assert_eq!(found(home.path()), [(Problem::Duplicate, "./a".to_owned())]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_name_comes_back(name in "[^/\\x00\\r\u{fffd}]{1,20}") {
        prop_assume!(name != "." && name != ".." && name != B3SUMS);
        let home = tempdir().unwrap();
        let sums = BTreeMap::from([(name.clone(), blake3::hash(name.as_bytes()))]);
        write(home.path(), &sums).unwrap();
        let read = Checksums::read(home.path()).unwrap();
        prop_assert_eq!(read.entries().len(), 1);
        prop_assert_eq!(&read.entries()[0].name, &name);
        prop_assert_eq!(read.entries()[0].blake3, sums[&name]);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let home = tempdir().unwrap();
        fs::write(home.path().join(B3SUMS), &bytes).unwrap();
        prop_assert!(!verify(home.path()).passed());
    }
}

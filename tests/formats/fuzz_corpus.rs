//! The corpus of the fuzz targets (tests/fuzz), replayed: hostile headers and configs end in a verdict, and soon.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use trephine::Error;
use trephine::checkpoint::Checkpoint;
use trephine::durable::{Checksums, Level};
use trephine::lora::read::PeftConfig;
use trephine::report::{Report, report};

/// The cases of a target, by name.
fn cases(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let case =
        |path: PathBuf| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap());
    paths.into_iter().map(case).collect()
}

/// Reads every case of `target`, and holds against the list which of them are taken; the others are refused as bad
/// input.
fn replay(target: &str, taken: &[&str], mut read: impl FnMut(&[u8]) -> trephine::Result<()>) {
    let cases = cases(target);
    assert!(cases.len() > taken.len() && taken.iter().all(|name| cases.iter().any(|(case, _)| case == name)));
    let mut wrong = Vec::new();
    for (name, bytes) in cases {
        let started = Instant::now();
        let result = read(&bytes);
        assert!(started.elapsed() < Duration::from_secs(10), "{target}/{name} took {:?}", started.elapsed());
        if result.is_ok() != taken.contains(&name.as_str()) {
            wrong.push(format!("{name}: {result:?}"));
        }
        if let Err(error) = result {
            assert_eq!(error.kind(), trephine::Kind::Input, "{target}/{name}: {error}");
            let text = error.to_string();
            assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{target}/{name}: {text:?}");
        }
    }
    assert!(wrong.is_empty(), "{target}: {wrong:#?}");
}

/// A checkpoint with these files, opened.
fn open(files: &[(&str, &[u8])]) -> trephine::Result<()> {
    let home = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, bytes)| fs::write(home.path().join(name), bytes).unwrap());
    Checkpoint::open(home.path().to_str().unwrap()).map(drop)
}

#[test]
fn headers_of_safetensors() {
    let taken = ["good", "control", "empty_header", "empty_tensors"];
    replay("safetensors_header", &taken, |bytes| open(&[("model.safetensors", bytes)]));
}

#[test]
fn headers_of_gguf() {
    let taken = ["good", "two_tensors", "alignment_64", "list_type"];
    let mut without_architecture = 0;
    replay("gguf_header", &taken, |bytes| {
        let opened = open(&[("model.gguf", bytes)]);
        without_architecture +=
            u32::from(opened.as_ref().is_err_and(|e| e.to_string().contains("does not say its general")));
        opened
    });
    // Every other case is refused for the mistake that it is named after.
    assert_eq!(without_architecture, 1);
}

#[test]
fn configs_of_models() {
    let header = br#"{"a.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;
    let weights = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 16]].concat();
    let taken = ["good", "fp8", "block_huge", "compressed", "awq", "nested", "list", "number", "patterns"];
    replay("config_json", &taken, |bytes| open(&[("config.json", bytes), ("model.safetensors", &weights)]));
}

#[test]
fn indexes() {
    let header = br#"{"a.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;
    let weights = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 16]].concat();
    let taken = ["good", "twice", "without_the_tensor"];
    replay("index_json", &taken, |bytes| {
        open(&[("model.safetensors.index.json", bytes), ("model.safetensors", &weights)])
    });
}

#[test]
fn configs_of_adapters() {
    let taken = ["good", "patterns", "many", "huge_rank", "null", "targets_pattern", "twice"];
    replay("adapter_config", &taken, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let config = PeftConfig::parse(&text, Path::new("adapter_config.json"))?;
        let scale = config.scale_of("model.layers.1.mlp.up_proj", config.rank_of("q_proj"));
        assert!(!scale.is_nan());
        Ok(())
    });
}

#[test]
fn spectra_beside_adapters() {
    let home = tempfile::tempdir().unwrap();
    let numbers = ["no_values", "shape_huge", "values_negative", "values_rising"];
    let taken = [&["good", "control", "no_lines", "two_frames"][..], &numbers].concat();
    replay("spectra", &taken, |bytes| {
        fs::write(home.path().join("spectra.jsonl.zst"), bytes).unwrap();
        let out = home.path().join("report.html");
        let job = Report { folders: vec![home.path().to_owned()], out: out.clone(), svg: None };
        report(&job)?;
        let page = fs::read_to_string(&out).unwrap();
        assert!(!page.contains(|c: char| c.is_control() && c != '\n' || c == '\u{202e}'), "{page}");
        Ok(())
    });
}

#[test]
fn journals() {
    let home = tempfile::tempdir().unwrap();
    let state = home.path().join(".trephine");
    fs::create_dir(&state).unwrap();
    // What a journal holds is judged by the run that reads it; this is about its lines.
    let taken = [
        "absolute",
        "bytes_huge",
        "bytes_negative",
        "control",
        "digest_short",
        "dots",
        "empty",
        "good",
        "no_beginning",
        "no_newline",
        "of_zeros",
        "outside",
        "torn",
        "twice",
        "two_beginnings",
        "unknown_record",
    ];
    replay("journal", &taken, |bytes| {
        fs::write(state.join("journal"), bytes).unwrap();
        if let Err(error) = trephine::run::status(home.path()) {
            let text = error.to_string();
            assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
        }
        trephine::durable::journal::replay::<Value>(&state.join("journal")).map(drop)
    });
}

#[test]
fn lists_of_checksums() {
    let home = tempfile::tempdir().unwrap();
    // The digest in every list is that of no bytes.
    fs::write(home.path().join("a"), "").unwrap();
    fs::write(home.path().join("a\nb"), "").unwrap();
    replay("checksums", &["good", "with_a_dot", "escaped"], |bytes| {
        fs::write(home.path().join("B3SUMS"), bytes).unwrap();
        let verification = Checksums::read(home.path())?.verify(&[], &|_| ());
        let failed = verification.findings.iter().find(|finding| finding.level == Level::Error);
        failed.map_or(Ok(()), |finding| Err(Error::input(finding.to_string())))
    });
}

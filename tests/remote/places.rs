//! The same adapter from every place, byte for byte, and no secret in anything that is written.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::tempdir;

use crate::common::pair::{Tensor, changed, read_file, values, write_file};
use crate::common::{contents, data, extract, run};
use crate::stores::{KEY, SECRET, SESSION, TOKEN, bucket, hub, secure_web, web};

const MODEL: [&str; 4] = ["--rank", "8", "--base-model-name", "the-base"];

/// What the adapter's loader reads, and the digests of what was read for it.
fn adapter(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = contents(out);
    let manifest: serde_json::Value = serde_json::from_slice(&files["extraction.json"]).unwrap();
    let keep = ["adapter_model.safetensors", "adapter_config.json", "spectra.jsonl.zst"];
    files.retain(|name, _| keep.contains(&name.as_str()));
    for part in ["tensors", "inputs", "modules"] {
        files.insert(part.to_owned(), manifest[part].to_string().into_bytes());
    }
    files
}

/// An extraction whose environment knows the stores.
fn asked(base: &str, tuned: &str, out: &Path, store: &str) -> Command {
    let mut command = extract(base, tuned, out);
    known(command.args(MODEL), store);
    command
}

/// Lets a command know the stores.
fn known<'c>(command: &'c mut Command, store: &str) -> &'c mut Command {
    command
        .env("HF_ENDPOINT", store)
        .env("HF_TOKEN", TOKEN)
        .env("AWS_ENDPOINT_URL", store)
        .env("AWS_REGION", "eu-test-1")
        .env("AWS_ACCESS_KEY_ID", KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("AWS_SESSION_TOKEN", SESSION)
}

fn no_secret(text: &[u8], at: &str) {
    let text = String::from_utf8_lossy(text);
    for secret in [TOKEN, SECRET, SESSION, KEY, "Signature="] {
        assert!(!text.contains(secret), "'{secret}' is in {at}");
    }
}

#[test]
fn byte_equal_from_disk_and_from_every_store_by_both_methods() {
    let home = tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    for base in ["base", "base-fp8"] {
        let on_disk = home.path().join(format!("{base}-disk"));
        run(extract(&data(base), &data("tuned"), &on_disk).args(MODEL)).code(0);
        let expected = adapter(&on_disk);
        let (plain, models, store) = (web(&root, |_, reply| reply), hub(&root, 3), bucket(&root));
        let places: [(&str, String, String, String); 4] = [
            ("web", plain.url(&format!("{base}/")), plain.url("tuned/model.safetensors"), plain.url("")),
            ("hub", format!("hf://test/{base}"), "hf://test/tuned@main".into(), models.url("")),
            ("bucket", format!("s3://models/{base}"), "s3://models/tuned/".into(), store.url("")),
            ("mixed", format!("hf://test/{base}"), data("tuned"), models.url("")),
        ];
        for (place, base_at, tuned_at, endpoint) in places {
            let out = home.path().join(format!("{base}-{place}"));
            let mut command = asked(&base_at, &tuned_at, &out, &endpoint);
            let ended = run(command.arg("--keep-shards")).code(0);
            for (name, bytes) in adapter(&out) {
                assert!(bytes == expected[&name], "{base}, {place}: {name} differs");
            }
            for (name, bytes) in contents(&out) {
                no_secret(&bytes, &name);
            }
            no_secret(ended.stderr.as_bytes(), "stderr");
            no_secret(ended.stdout.as_bytes(), "stdout");
            assert!(ended.stdout.contains("hf upload OWNER/NAME "), "{}", ended.stdout);
            let card = fs::read_to_string(out.join("README.md")).unwrap();
            assert!(card.contains("`hf upload OWNER/NAME PATH_OF_THIS_FOLDER`"), "{card}");
            let mut verify = crate::common::trephine();
            verify.args(["verify", "--base", &base_at, "--tuned", &tuned_at]).arg(&out);
            let ended = run(known(&mut verify, &endpoint)).code(0);
            no_secret(ended.stderr.as_bytes(), "stderr");
        }
    }
}

#[test]
fn what_is_fetched_is_what_is_needed() {
    let home = tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let server = web(&root, |_, reply| reply);
    let (base, tuned) = (server.url("base-fp8/"), server.url("tuned/"));
    let out = home.path().join("out");
    // Two files of a size are on the disk: whatever else is fetched is headers and configs.
    let files =
        ["base-fp8", "tuned"].map(|name| fs::metadata(root.join(name).join("model.safetensors")).unwrap());
    let needed: u64 = files.iter().map(std::fs::Metadata::len).sum();
    run(extract(&base, &tuned, &out).args(MODEL)).code(0);
    let share = server.sent() as f64 / needed as f64;
    assert!(share < 1.06, "{} bytes sent of {needed}: {share}", server.sent());
}

#[test]
fn a_plan_says_what_will_cross_the_link_and_how_long_that_takes() {
    let home = tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let server = web(&root, |_, reply| reply);
    let planned = |more: &[&str]| {
        let mut command = extract(&server.url("base-fp8/"), &server.url("tuned/"), &home.path().join("out"));
        run(command.args(MODEL).arg("--dry-run").args(more)).code(0)
    };
    let plan: serde_json::Value = serde_json::from_str(&planned(&["--json"]).stdout).unwrap();
    let bytes = plan["link_bytes"].as_u64().unwrap();
    // Headers alone were fetched for it.
    assert!(server.sent() < bytes / 4, "{} of {bytes}", server.sent());
    let seconds = (bytes as f64 / 1000.0).ceil() as u64;
    let time = humantime::format_duration(std::time::Duration::from_secs(seconds));
    planned(&["--link-rate", "1kB"])
        .shows(&format!("({bytes} bytes) to fetch, each once: {time} at "))
        .shows("/s (--link-rate)");
    let before = server.sent();
    run(extract(&server.url("base-fp8/"), &server.url("tuned/"), &home.path().join("out")).args(MODEL))
        .code(0);
    let fetched = server.sent() - before;
    assert!((bytes..bytes + bytes / 16).contains(&fetched), "{fetched} fetched, {bytes} planned");
    // What lies here crosses no link.
    let mut local = extract(&data("base-fp8"), &data("tuned"), &home.path().join("local"));
    let ended = run(local.args(MODEL).arg("--dry-run")).code(0);
    assert!(!ended.stdout.contains("to fetch"), "{}", ended.stdout);
}

#[test]
fn a_bad_token_and_a_bad_key_are_named_and_not_printed() {
    let home = tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let (models, store) = (hub(&root, 3), bucket(&root));
    let out = home.path().join("out");
    let mut command = asked("hf://test/base", "hf://test/tuned", &out, &models.url(""));
    let ended = run(command.env("HF_TOKEN", "hf_wrong_token")).code(2).says("access is denied");
    assert!(!ended.stderr.contains("hf_wrong_token"), "{}", ended.stderr);
    let mut command = asked("s3://models/base", "s3://models/tuned", &out, &store.url(""));
    let ended = run(command.env("AWS_SECRET_ACCESS_KEY", "wrong+secret")).code(2).says("access is denied");
    assert!(
        !ended.stderr.contains("wrong+secret") && !ended.stderr.contains("Signature="),
        "{}",
        ended.stderr
    );
    let mut command = asked("hf://test/nothing", "hf://test/tuned", &out, &models.url(""));
    run(&mut command).code(3).says("no such model");
}

#[test]
fn gguf_and_every_command_that_reads_a_checkpoint() {
    let home = tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let server = web(&root, |_, reply| reply);
    let trephine = crate::common::trephine;
    // A quantized GGUF as the base, and the other way round, with a dense side that differs.
    let models = home.path().join("models");
    fs::create_dir(&models).unwrap();
    for name in ["llama", "qwen2"] {
        let fixture = |end: &str| root.join("fixtures/gguf_models").join(format!("{name}.{end}"));
        fs::copy(fixture("gguf"), models.join(format!("{name}.gguf"))).unwrap();
        let mut tensors = read_file(&fixture("safetensors"));
        for (seed, tensor) in tensors.iter_mut().enumerate().filter(|(_, tensor)| tensor.shape.len() == 2) {
            let shape = [tensor.shape[0], tensor.shape[1]];
            let before: Vec<f32> = values(tensor).into_iter().map(|value| value as f32).collect();
            *tensor = Tensor::f32(&tensor.name, &shape, &changed(&before, shape, 2, 0.05, seed as u64));
        }
        write_file(&models.join(format!("{name}.safetensors")), &tensors);
    }
    let server_of_models = web(&models, |_, reply| reply);
    for (base, tuned) in [("llama.gguf", "llama.safetensors"), ("qwen2.safetensors", "qwen2.gguf")] {
        let [there, here] = [server_of_models.url(""), models.display().to_string()].map(|place| {
            let out = home.path().join("gguf");
            let _ = fs::remove_dir_all(&out);
            run(extract(&format!("{place}/{base}"), &format!("{place}/{tuned}"), &out)
                .args(MODEL)
                .arg("--allow-quantized-tuned"))
            .code(0);
            adapter(&out)
        });
        assert!(there == here, "{base}");
    }
    let out = home.path().join("merged");
    let adapter = home.path().join("adapter");
    run(extract(&server.url("data/base"), &server.url("data/tuned"), &adapter).args(MODEL)).code(0);
    let kept = web(home.path(), |_, reply| reply);
    let merge = |base: &str, adapter: &str| {
        let _ = fs::remove_dir_all(&out);
        run(trephine().args(["merge", "-q", "--base", base, "--adapter", adapter, "--out"]).arg(&out))
            .code(0);
        let mut files = contents(&out);
        files.retain(|name, _| !name.ends_with("conversion.json") && !name.ends_with("B3SUMS"));
        files
    };
    let here = merge(&data("base"), adapter.to_str().unwrap());
    let there = merge(&server.url("data/base"), &kept.url("adapter/"));
    assert_eq!(here.keys().collect::<Vec<_>>(), there.keys().collect::<Vec<_>>());
    assert!(here == there);
    let verify = ["verify", "-q", adapter.to_str().unwrap(), "--base"];
    run(trephine().args(verify).arg(server.url("data/base")).arg("--tuned").arg(server.url("data/tuned")))
        .code(0);
    run(trephine().args(["probe", &kept.url("adapter/")])).code(0);
    let against = ["autopsy", "-q", &server.url("data/tuned"), "--against", &server.url("data/base")];
    run(trephine().args(against)).code(0).shows("distance from the other checkpoint");
}

#[test]
fn of_an_adapter_its_two_files_are_fetched_and_no_other() {
    let home = tempdir().unwrap();
    let adapter = home.path().join("adapter");
    run(extract(&data("base"), &data("tuned"), &adapter).args(MODEL)).code(0);
    for name in ["optimizer.pt", "model.safetensors", "checkpoint.bin"] {
        fs::write(adapter.join(name), vec![0; 1 << 20]).unwrap();
    }
    let server = hub(home.path(), 100);
    let mut probe = crate::common::trephine();
    let ended = run(known(probe.args(["probe", "hf://test/adapter"]), &server.url("")));
    assert!(ended.stdout.contains("21 modules"), "{ended:?}");
    // The others' names are judged all the same.
    assert!(ended.stdout.contains("is next to the weights"), "{}", ended.stdout);
    let asked: Vec<String> = server.requests().into_iter().map(|request| request.path).collect();
    assert!(asked.iter().all(|path| !path.contains("optimizer") && !path.ends_with("/model.safetensors")));
    let weights = fs::metadata(adapter.join("adapter_model.safetensors")).unwrap().len();
    assert!(server.sent() < weights + (128 << 10), "{} of {weights}: {asked:?}", server.sent());
}

#[test]
fn a_certificate_that_nobody_knows_is_refused_and_one_that_is_named_is_taken() {
    let home = tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let server = secure_web(&root);
    let base = format!("https://localhost:{}/base-fp8/", server.address.port());
    let out = home.path().join("out");
    let mut command = extract(&base, &data("tuned"), &out);
    run(command.args(MODEL).args(["--retries", "1"])).code(1).says("no secure connection");
    let certificate = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/remote/certificate.pem");
    let mut command = extract(&base, &data("tuned"), &out);
    run(command.args(MODEL).env("SSL_CERT_FILE", certificate)).code(0);
    let on_disk = home.path().join("disk");
    run(extract(&data("base-fp8"), &data("tuned"), &on_disk).args(MODEL)).code(0);
    assert!(adapter(&out) == adapter(&on_disk));
}

//! Inputs that are made to do harm: small files that stand for gigabytes, pipes and devices in their place, names
//! that write to the terminal, numbers that are none. And limits that the system sets.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::common::adapter::{config as adapter_config, lora, write_adapter};
use crate::common::pair::{Tensor, config, noise, pair, write};
use crate::common::{Ended, copied, data, extract_with, run, trephine};

/// The program with at most so much address space: one that takes gigabytes does not end with 3.
pub fn within(mebibytes: u64, arguments: &[&str]) -> Ended {
    let mut command = Command::new("sh");
    let limited = format!("ulimit -v {}; exec \"$@\"", mebibytes << 10);
    command.args(["-c", &limited, "sh", env!("CARGO_BIN_EXE_trephine")]).args(arguments);
    command.env("RAYON_NUM_THREADS", "2");
    let started = Instant::now();
    let ended = run(&mut command);
    assert!(started.elapsed() < Duration::from_secs(60), "{arguments:?} took {:?}", started.elapsed());
    ended
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A safetensors file whose header is `json`, with no bytes behind it.
fn with_header(home: &Path, name: &str, json: &str) -> PathBuf {
    let folder = home.join(name);
    fs::create_dir(&folder).unwrap();
    let bytes = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat();
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
    folder
}

#[test]
fn headers_that_stand_for_gigabytes() {
    let home = tempdir().unwrap();
    let objects = format!("{{\"a\":{{{}\"z\":1}}}}", "\"x\":{},".repeat(5_000_000));
    let shape = format!(
        "{{\"a\":{{\"dtype\":\"U8\",\"shape\":[{}1],\"data_offsets\":[0,1]}}}}",
        "1,".repeat(15_000_000)
    );
    let empty = |i: u32| format!("\"{i}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}");
    let many = format!("{{{}}}", (0..450_000).map(empty).collect::<Vec<_>>().join(","));
    for (name, json, words) in [
        ("objects", objects, "the header's entry has no dtype"),
        ("shape", shape, "shape has 15000001 dimensions"),
        ("many", many, "more than 400000 tensors"),
    ] {
        let folder = with_header(home.path(), name, &json);
        within(500, &["dequantize", text(&folder), "--out", text(&home.path().join("out"))])
            .code(3)
            .says(words);
    }
    let folder = home.path().join("gguf");
    fs::create_dir(&folder).unwrap();
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(2_600_000u64.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    fs::write(folder.join("model.gguf"), bytes).unwrap();
    within(500, &["probe", text(&folder)]).code(3).says("claims 2600000 tensors");
}

#[test]
fn patterns_that_stand_for_gigabytes() {
    let home = tempdir().unwrap();
    let patterns: serde_json::Map<String, Value> =
        (0..2000).map(|i| (format!("(x{{99}}){{99}}{i}"), json!(1))).collect();
    let mut adapter = adapter_config(&["q_proj"]);
    adapter["rank_pattern"] = Value::Object(patterns.clone());
    let folder = write_adapter(&home.path().join("adapter"), &lora("a.q_proj", [8, 8], 4, 1), &adapter);
    within(700, &["probe", text(&folder)]).code(3).says("2000 patterns are too large");
    let ignore: Vec<String> = patterns.keys().map(|pattern| format!("re:{pattern}")).collect();
    let weight = Tensor::bf16("a.q_proj.weight", &[8, 8], &noise(1, 64));
    let quantization = json!({"quant_method": "compressed-tensors", "format": "dense", "ignore": ignore});
    let folder = write(&home.path().join("model"), &[weight], &json!({"quantization_config": quantization}));
    within(700, &["dequantize", text(&folder), "--out", text(&home.path().join("out"))])
        .code(3)
        .says("2000 patterns are too large");
}

#[test]
fn spectra_that_stand_for_gigabytes() {
    let home = tempdir().unwrap();
    let out = home.path().join("adapter");
    extract_with(&data("base"), &data("tuned"), &out, &["--rank", "4"]).code(0);
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.write_all(b"{\"module\":\"").unwrap();
    for _ in 0..64 {
        encoder.write_all(&[b'x'; 1 << 20]).unwrap();
    }
    let bytes = encoder.finish().unwrap();
    assert!(bytes.len() < 100_000);
    fs::write(out.join("spectra.jsonl.zst"), bytes).unwrap();
    let page = home.path().join("page.html");
    within(700, &["report", text(&out), "--out", text(&page)])
        .code(3)
        .says("line 1 of the spectra has more than 1048576 bytes");
}

/// Puts a pipe, and then a link to `/dev/zero`, in place of a file, and runs a command on it.
pub fn replaced(file: &Path, command: &[&str], codes: &[i32]) {
    let _ = fs::remove_file(file);
    for (what, place) in [("pipe", 0), ("zero", 1), ("folder", 2)] {
        match place {
            0 => rustix::fs::mkfifoat(rustix::fs::CWD, file, rustix::fs::Mode::RUSR).unwrap(),
            1 => symlink("/dev/zero", file).unwrap(),
            _ => fs::create_dir(file).unwrap(),
        }
        let ended = within(700, command);
        assert!(
            ended.code.is_some_and(|code| codes.contains(&code)),
            "{what} {} {command:?}: {ended:?}",
            file.display()
        );
        let removed = if place < 2 { fs::remove_file(file) } else { fs::remove_dir(file) };
        removed.unwrap();
    }
}

#[test]
fn pipes_and_devices_in_place_of_files() {
    let home = tempdir().unwrap();
    let path = |name: &str| home.path().join(name);
    let fresh = || {
        let _ = fs::remove_dir_all(path("base-fp8"));
        copied("base-fp8", home.path())
    };
    for name in ["config.json", "model.safetensors", "model.safetensors.index.json", "hf_quant_config.json"] {
        let folder = fresh();
        if name == "hf_quant_config.json" {
            fs::remove_file(folder.join("config.json")).unwrap();
        }
        replaced(&folder.join(name), &["dequantize", text(&folder), "--out", text(&path("out"))], &[3]);
    }
    let adapter = path("adapter");
    extract_with(&data("base"), &data("tuned"), &adapter, &["--rank", "4"]).code(0);
    for (name, command) in [
        ("adapter_config.json", "probe"),
        ("adapter_model.safetensors", "probe"),
        ("extraction.json", "report"),
        ("spectra.jsonl.zst", "report"),
        ("B3SUMS", "verify"),
        ("README.md", "verify"),
    ] {
        let copy = path("copy");
        let _ = fs::remove_dir_all(&copy);
        crate::common::copy(&adapter, &copy);
        let page = path("page.html");
        let more: &[&str] = if command == "report" { &["--out", text(&page)] } else { &[] };
        replaced(&copy.join(name), &[&[command, text(&copy)], more].concat(), &[3, 4]);
    }
    // A pipe where a run keeps its state is no journal.
    let out = path("state");
    fs::create_dir_all(out.join(".trephine")).unwrap();
    let command = ["dequantize", &data("base-fp8"), "--out", text(&out)];
    for name in ["journal", "lock"] {
        replaced(&out.join(".trephine").join(name), &command, &[1, 2, 3]);
    }
}

#[test]
fn names_write_nothing_to_the_terminal_or_the_log() {
    let home = tempdir().unwrap();
    let nasty = "model.layers.0.self_attn.\x1b[2J\u{9b}31m\nerror: forged\u{202e}.q_proj";
    let (base, tuned) = pair(home.path(), &[(nasty, [16, 16]), ("a\x07.k_proj", [16, 16])]);
    let out = home.path().join("out\x1b[2J");
    let clean = |ended: &Ended| {
        for said in [&ended.stdout, &ended.stderr] {
            let bad = |c: char| (c.is_control() && !matches!(c, '\n' | '\t')) || c == '\u{202e}';
            assert!(!said.contains(bad), "{said:?}");
            assert!(!said.lines().any(|line| line.starts_with("error: forged")), "{said}");
        }
    };
    let commands: [Vec<&str>; 6] = [
        vec!["probe", &base],
        vec!["probe", &base, "--json"],
        vec!["extract", "--base", &base, "--tuned", &tuned, "--rank", "4", "--out", text(&out)],
        vec!["verify", text(&out)],
        vec!["status", text(&out), "--json"],
        vec!["extract", "--base", &base, "--tuned", "no\x1b[2Jthing", "--out", text(&out)],
    ];
    for command in &commands {
        let ended = run(trephine().args(command));
        clean(&ended);
        if command.contains(&"--json") {
            let _: Value = serde_json::from_str(&ended.stdout).unwrap();
        }
    }
    let log = fs::read_to_string(out.join("extraction.log")).unwrap();
    assert!(!log.contains(|c: char| c.is_control() && c != '\n'), "{log:?}");
    assert!(log.lines().all(|line| line.starts_with("20")), "{log}");
}

#[test]
fn the_cards_commands_are_quoted() {
    let home = tempdir().unwrap();
    let (base, tuned) = pair(home.path(), &[("model.layers.0.self_attn.q_proj", [16, 16])]);
    let out = home.path().join("out");
    let name = "a b; touch c #\n```\n# \"x\"";
    extract_with(&base, &tuned, &out, &["--rank", "4", "--base-model-name", name]).code(0);
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    // What a shell makes of it is one word.
    let line = card.lines().find(|line| line.starts_with("vllm serve ")).unwrap();
    let word = line.strip_prefix("vllm serve ").and_then(|rest| rest.split_once(" --enable-lora")).unwrap().0;
    let printed = Command::new("sh").args(["-c", &format!("printf '%s|' {word}")]).output().unwrap().stdout;
    assert_eq!(String::from_utf8(printed).unwrap(), "a b; touch c #\\n```\\n# \"x\"|", "{line}");
    assert!(card.contains("from_pretrained(\"a b; touch c #\\n```\\n# \\\"x\\\"\", dtype="), "{card}");
    assert_eq!(card.lines().filter(|line| line.starts_with("```")).count(), 4, "{card}");
    assert!(card.lines().all(|line| !line.starts_with("# \"x\"")), "{card}");
}

#[test]
fn what_non_finite_zero_does_is_said_and_bounded() {
    let home = tempdir().unwrap();
    let (shape, name) = ([32, 32], "model.layers.0.self_attn.q_proj.weight");
    let values = noise(1, 1024);
    let with = |count: usize, folder: &str| {
        let mut values = crate::common::pair::changed(&values, shape, 3, 0.05, 2);
        values[..count].fill(f32::NAN);
        write(&home.path().join(folder), &[Tensor::bf16(name, &shape, &values)], &config())
    };
    let base = write(&home.path().join("base"), &[Tensor::bf16(name, &shape, &values)], &config());
    let (few, all) = (with(3, "few"), with(1024, "all"));
    let zero = ["--rank", "4", "--non-finite", "zero"];
    let out = home.path().join("out");
    let mut command = trephine();
    command.args(["extract", "--base", text(&base), "--tuned", text(&few), "--out", text(&out)]).args(zero);
    let ended = run(&mut command).code(0);
    let sentence = "3 elements in 1 modules were taken as unchanged";
    assert!(ended.stdout.contains(sentence), "{}", ended.stdout);
    assert!(fs::read_to_string(out.join("README.md")).unwrap().contains(sentence));
    extract_with(text(&base), text(&all), &home.path().join("none"), &zero)
        .code(3)
        .says("1024 of 1024 elements of a weight are NaN or infinite (100.0 %)");
}

#[test]
fn a_measurement_of_numbers_that_are_none_is_none() {
    let home = tempdir().unwrap();
    let module = "model.layers.0.self_attn.q_proj";
    let (base, tuned) = pair(home.path(), &[(module, [16, 16])]);
    let mut tensors = lora(module, [16, 16], 4, 1);
    tensors[0].bytes[..2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    let adapter = write_adapter(&home.path().join("adapter"), &tensors, &adapter_config(&["q_proj"]));
    let command = ["fidelity", "--served", &base, "--tuned", &tuned, "--adapter", text(&adapter)];
    run(trephine().args(command)).code(3).says("a factor of the adapter, with its scale, is NaN or infinite");
}

#[test]
fn factors_that_vanish_in_their_type_are_refused() {
    let home = tempdir().unwrap();
    let (shape, name) = ([32, 32], "model.layers.0.self_attn.q_proj.weight");
    let after: Vec<f32> = crate::common::pair::changed(&[0.0; 1024], shape, 3, 1e-14, 2);
    let base = write(&home.path().join("base"), &[Tensor::f32(name, &shape, &[0.0; 1024])], &config());
    let tuned = write(&home.path().join("tuned"), &[Tensor::f32(name, &shape, &after)], &config());
    let [f16, bf16] = ["f16", "bf16"].map(|dtype| {
        let out = home.path().join(dtype);
        extract_with(text(&base), text(&tuned), &out, &["--rank", "4", "--dtype", dtype])
    });
    f16.code(3).says("storing the factors as F16 costs").says("--dtype bf16");
    bf16.code(0);
}

#[test]
fn limits_of_the_system_are_errors() {
    let home = tempdir().unwrap();
    let limited = |limit: &str, out: &str| {
        let mut command = Command::new("sh");
        let line = format!("ulimit {limit}; exec \"$@\"");
        command.args([
            "-c",
            &line,
            "sh",
            env!("CARGO_BIN_EXE_trephine"),
            "extract",
            "--quiet",
            "--rank",
            "4",
        ]);
        command
            .args(["--base", &data("base"), "--tuned", &data("tuned"), "--out"])
            .arg(home.path().join(out));
        let output = command.output().unwrap();
        assert_eq!(output.status.signal(), None, "{limit}: {}", String::from_utf8_lossy(&output.stderr));
        Ended::of(output)
    };
    limited("-f 4", "file").code(1).says("it may not grow so large").says("ulimit -f");
    let left = fs::read_dir(home.path().join("file")).unwrap().flatten();
    assert!(left.into_iter().all(|entry| !entry.file_name().to_string_lossy().starts_with(".tmp-")));
    // Too little for threads, or for the work: whatever it is that fails first.
    for mebibytes in [60, 120] {
        let ended = limited(&format!("-v {}", mebibytes << 10), &mebibytes.to_string());
        assert!(matches!(ended.code, Some(1 | 2)), "{ended:?}");
        assert!(ended.stderr.contains("hint: ") && !ended.stderr.contains("panicked"), "{ended:?}");
    }
    limited("-Sn 8", "files").code(0);
}

/// Not a test by itself: in a process that [`a_file_that_is_cut_short_is_named`] starts it reads behind the end of
/// a file.
#[test]
fn child_that_reads_a_cut_file() {
    let Ok(folder) = std::env::var("TREPHINE_TEST_CUT") else { return };
    trephine::storage::tell_of_cut_files();
    let checkpoint = trephine::checkpoint::Checkpoint::open(&folder).unwrap();
    let tensor = checkpoint.tensors().max_by_key(|tensor| tensor.size()).unwrap();
    let window = checkpoint.read(tensor, 0..tensor.size()).unwrap();
    let file = fs::OpenOptions::new().write(true).open(checkpoint.path(tensor.file)).unwrap();
    file.set_len(4096).unwrap();
    println!("{}", window[window.len() - 1]);
    panic!("there was a byte behind the file's end");
}

#[test]
fn a_file_that_is_cut_short_is_named() {
    let home = tempdir().unwrap();
    let folder = copied("base", home.path());
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "hostile_inputs::child_that_reads_a_cut_file", "--nocapture"]);
    let output = command.env("TREPHINE_TEST_CUT", &folder).output().unwrap();
    assert_eq!(output.status.signal(), None);
    Ended::of(output)
        .code(1)
        .says("error: the file was cut short while it was read")
        .says("base/model.safetensors");
}

#[test]
fn a_watch_ends_when_nobody_reads_it() {
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    let part = ["--rank", "4", "--part", "1/2"];
    extract_with(&data("base"), &data("tuned"), &out, &part).code(0);
    let mut command = trephine();
    let mut child = command.args(["status", "--watch=1"]).arg(&out).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < Duration::from_secs(30), "it watches on");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_weights_have_to_be_among_the_sums() {
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    extract_with(&data("base"), &data("tuned"), &out, &["--rank", "4"]).code(0);
    let sums = fs::read_to_string(out.join("B3SUMS")).unwrap();
    let without: String = sums.split_inclusive('\n').filter(|line| !line.contains("adapter_model")).collect();
    fs::write(out.join("B3SUMS"), without).unwrap();
    run(trephine().arg("verify").arg(&out)).code(4).says("found");
}

#[test]
fn gguf_that_is_one_of_no_parts() {
    let home = tempdir().unwrap();
    let path = home.path().join("x-00000-of-00000.gguf");
    fs::write(&path, "anything").unwrap();
    for spec in [text(&path), text(home.path())] {
        run(trephine().args(["probe", spec])).code(3).says("one of no parts");
    }
}

#[test]
fn an_output_inside_the_input_is_no_part_of_it() {
    let home = tempdir().unwrap();
    let input = copied("base-fp8", home.path());
    let out = input.join("o");
    for _ in 0..2 {
        run(trephine().arg("dequantize").arg(&input).arg("--out").arg(&out)).code(0);
        assert!(!out.join("o").exists());
    }
    run(trephine().arg("dequantize").arg(&input).args(["--overwrite", "--out"]).arg(&out)).code(0);
    assert!(!out.join("o").exists());
}

/// A control group of this process's own with a limit on memory; `None` where none can be made. Removed when dropped.
struct Group(PathBuf);

impl Group {
    fn with_limit(bytes: u64) -> Option<Group> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = |prefix: &str| groups.lines().find_map(|line| Some(line.split_once(prefix)?.1.to_owned()));
        let v1 = path(":memory:/")
            .map(|own| (Path::new("/sys/fs/cgroup/memory").join(own), "memory.limit_in_bytes"));
        let v2 = path("0::/").map(|own| (Path::new("/sys/fs/cgroup").join(own), "memory.max"));
        let (own, limit) = v1.or(v2)?;
        let group = own.join(format!("trephine-test-{}", std::process::id()));
        fs::create_dir(&group).ok()?;
        let group = Group(group);
        fs::write(group.0.join(limit), bytes.to_string()).ok()?;
        Some(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_group_with_little_memory_is_heeded() {
    const LIMIT: u64 = 512 << 20;
    let Some(group) = Group::with_limit(LIMIT) else {
        eprintln!("skipped: no control group can be made here");
        return;
    };
    let home = tempdir().unwrap();
    let names: Vec<String> = (0..4).map(|i| format!("model.layers.{i}.mlp.up_proj")).collect();
    let weights: Vec<(&str, [usize; 2])> = names.iter().map(|name| (name.as_str(), [2048, 1024])).collect();
    let (base, tuned) = pair(home.path(), &weights);
    let run_inside = |more: &[&str]| {
        let mut command = Command::new("sh");
        let line = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", group.0.display());
        command.args([
            "-c",
            &line,
            "sh",
            env!("CARGO_BIN_EXE_trephine"),
            "extract",
            "--rank",
            "8",
            "--threads",
            "2",
        ]);
        command.args(["--base", &base, "--tuned", &tuned, "--out"]).arg(home.path().join("out")).args(more);
        run(&mut command).code(0)
    };
    let plan: Value = serde_json::from_str(&run_inside(&["--dry-run", "--json"]).stdout).unwrap();
    let allowed = plan["memory"].as_u64().unwrap();
    assert!(allowed <= LIMIT / 2 && allowed > LIMIT / 4, "{allowed}");
    run_inside(&[]);
}

#[test]
fn very_many_tensors_are_counted_before_they_are_planned() {
    let home = tempdir().unwrap();
    let entry = |at: usize| {
        let name = format!("model.layers.{}.mlp.experts.{}.up_proj.weight", at / 256, at % 256);
        format!(
            "\"{name}\":{{\"dtype\":\"BF16\",\"shape\":[1,1],\"data_offsets\":[{},{}]}}",
            2 * at,
            2 * at + 2
        )
    };
    let checkpoint = |folder: &str| {
        let header = format!("{{{}}}", (0..60_000).map(entry).collect::<Vec<_>>().join(","));
        let folder = with_header(home.path(), folder, &header);
        let file = fs::OpenOptions::new().write(true).open(folder.join("model.safetensors")).unwrap();
        file.set_len(8 + header.len() as u64 + 120_000).unwrap();
        folder
    };
    let [base, tuned] = ["base", "tuned"].map(checkpoint);
    let out = home.path().join("out");
    let (base, tuned, out) = (text(&base), text(&tuned), text(&out));
    let extract = ["extract", "--base", base, "--tuned", tuned, "--rank", "1", "--out", out];
    let commands: [(&[&str], u64); 3] =
        [(&extract, 60), (&["dequantize", base, "--out", out], 60), (&["autopsy", base], 20)];
    for (command, mebibytes) in commands {
        let memory = format!("{mebibytes}MiB");
        let given = [command, &["--threads", "1", "--memory", &memory]].concat();
        // The first of the checkpoints alone is too much.
        let ended = run(trephine().args(given)).code(2).says("its 60000 tensors alone take as much");
        let words = format!("not enough memory: {mebibytes} MiB given, at least ");
        let least = ended.stderr.split_once(&words).unwrap().1.split_once(" MiB").unwrap().0;
        // What is named is given; what the work needs is more, and exact.
        let least = format!("{}MiB", least.parse::<u64>().unwrap().max(2 * mebibytes));
        let ended = run(trephine().args([command, &["--threads", "1", "--memory", &least]].concat()));
        assert!(ended.code == Some(0) || ended.code == Some(2), "{ended:?}");
    }
}

//! Killed and resumed runs: whenever a run is killed and however it is run, the bytes are those of an
//! uninterrupted one.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime};

use crate::common::pair::{Tensor, noise, write};
use crate::common::runs::{FILES, Reference, killed_at, unassembled};
use crate::common::{assert_same, contents, copy, extract_with, flip, run, shards};
use safetensors::Dtype;
use tempfile::tempdir;
use trephine::durable::journal::Journal;

#[test]
fn killed_at_random_instants() {
    let reference = Reference::real();
    let started = Instant::now();
    let home = tempdir().unwrap();
    reference.goes_on(&home.path().join("once"), "uninterrupted");
    let whole = started.elapsed();
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let (mut caught, mut amid) = (0, 0);
    for (attempt, share) in crate::common::pair::noise(seed, 200).into_iter().enumerate() {
        let out = home.path().join(attempt.to_string());
        let mut process = reference.extract(&out).spawn().unwrap();
        std::thread::sleep(whole.mul_f32(share.abs()));
        process.kill().unwrap();
        if process.wait().unwrap().success() {
            continue;
        }
        caught += 1;
        amid += usize::from(out.join(".trephine/journal").exists());
        reference.goes_on(&out, &format!("seed {seed}, attempt {attempt}"));
        if caught == 20 {
            println!("{amid} of them amid the work");
            return;
        }
    }
    panic!("only {caught} runs were caught before they ended");
}

#[test]
fn killed_after_every_record() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let mut records = 0;
    loop {
        let out = home.path().join(records.to_string());
        if !killed_at(&reference.job, &out, &format!("record {records}")) {
            break;
        }
        let (_, entries) = Journal::<serde_json::Value>::open(&out.join(".trephine/journal")).unwrap();
        assert_eq!(entries.len(), records + 1);
        reference.goes_on(&out, &format!("killed after record {records}"));
        records += 1;
    }
    // The identity, 21 modules, and the comparisons.
    assert!(records > 22, "{records}");
}

#[test]
fn killed_again_and_again() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    let mut kills = 0;
    while killed_at(&reference.job, &out, "record 5") {
        kills += 1;
    }
    assert!(kills >= 4, "{kills}");
    assert_same(&out, &reference.files, "five records at a time");
}

#[test]
fn killed_while_assembling() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let killed = unassembled(&reference, home.path());
    for count in 0..=FILES.len() {
        let out = home.path().join(count.to_string());
        copy(&killed, &out);
        for file in &FILES[..count] {
            fs::write(out.join(file), &reference.files[*file]).unwrap();
        }
        // The file that a kill leaves half written.
        if count < FILES.len() {
            fs::write(out.join(".tmp-4194305-0"), "half of it").unwrap();
            fs::write(out.join(".trephine/shards/.tmp-4194305-1"), "half of it").unwrap();
        }
        reference.goes_on(&out, &format!("killed after {count} of the files"));
    }
    let out = home.path().join("truncated");
    copy(&killed, &out);
    fs::write(out.join(FILES[0]), &reference.files[FILES[0]][..1000]).unwrap();
    reference.goes_on(&out, "truncated weights without checksums");
}

#[test]
fn killed_while_tidying_up() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let killed = unassembled(&reference, home.path());
    FILES.iter().for_each(|file| fs::write(killed.join(file), &reference.files[*file]).unwrap());
    for gone in ["journal", "shards", "lock"] {
        let path = killed.join(".trephine").join(gone);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
        let out = home.path().join(gone);
        copy(&killed, &out);
        reference.goes_on(&out, &format!("killed after {gone} was removed"));
    }
}

#[test]
fn threads_change_no_byte() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    for threads in ["1", "4"] {
        let out = home.path().join(threads);
        let more = ["--rank", "8", "--threads", threads];
        extract_with(&reference.job.base, &reference.job.tuned, &out, &more).code(0);
        assert_same(&out, &reference.files, threads);
    }
}

#[test]
fn memory_changes_no_byte() {
    let home = tempdir().unwrap();
    let weights =
        [("model.layers.0.mlp.down_proj", [1500, 1210]), ("model.layers.0.self_attn.o_proj", [900, 1400])];
    let (base, tuned) = crate::common::pair::pair(home.path(), &weights);
    for (method, precision) in [("krylov", "f32"), ("krylov", "int8"), ("gram", "auto")] {
        let out = |name: &str| home.path().join(format!("{method}-{precision}-{name}"));
        let way = ["--rank", "8", "--method", method, "--precision", precision, "--memory"];
        let plan = |memory: &str| {
            let more = [way.as_slice(), &[memory, "--dry-run", "--json"]].concat();
            let ended = extract_with(&base, &tuned, &out("plan"), &more).code(0);
            serde_json::from_str::<serde_json::Value>(&ended.stdout).unwrap()
        };
        let held = |plan: &serde_json::Value| -> Vec<bool> {
            plan["modules"].as_array().unwrap().iter().map(|m| m["held"].as_bool().unwrap()).collect()
        };
        let ample = plan("2GiB");
        assert_eq!(held(&ample), [true, true]);
        let least = ample["least_memory"].as_u64().unwrap().to_string();
        assert!(held(&plan(&least)).contains(&false), "{method}: nothing is recomputed");
        let extracted = |memory: &str, threads: &str| {
            let out = out(&format!("{memory}-{threads}"));
            let more = [way.as_slice(), &[memory, "--threads", threads]].concat();
            extract_with(&base, &tuned, &out, &more).code(0);
            out
        };
        let first = extracted("2GiB", "2");
        let manifest = crate::common::manifest(&first);
        let in_bytes = manifest["modules"].as_array().unwrap().iter().all(|m| m["precision"] == "int8");
        assert_eq!(in_bytes, precision == "int8", "{method} {precision}");
        let expected = contents(&first);
        assert_same(&extracted(&least, "2"), &expected, &format!("{method} recomputed"));
        assert_same(&extracted("2GiB", "1"), &expected, &format!("{method} on one thread"));
        assert_same(&extracted(&least, "1"), &expected, &format!("{method} recomputed on one thread"));
    }
}

/// With `--precision int8` the adapter is that of any processor, and parts of one run may come from several.
#[test]
fn vectors_change_no_byte_of_what_is_multiplied_in_bytes() {
    let home = tempdir().unwrap();
    let weights =
        [("model.layers.0.mlp.down_proj", [150, 290]), ("model.layers.0.self_attn.o_proj", [130, 270])];
    let (base, tuned) = crate::common::pair::pair(home.path(), &weights);
    let extract = |out: &Path, level: &str, more: &[&str]| {
        let mut command = crate::common::extract(&base, &tuned, out);
        command.args(["--rank", "6", "--method", "krylov", "--precision", "int8"]).args(more);
        run(command.env("TREPHINE_SIMD", level)).code(0)
    };
    let whole = home.path().join("whole");
    extract(&whole, "widest", &[]);
    let expected = contents(&whole);
    let manifest = crate::common::manifest(&whole);
    assert!(manifest["modules"].as_array().unwrap().iter().all(|m| m["precision"] == "int8"));
    for level in ["portable", "avx2"] {
        let out = home.path().join(level);
        extract(&out, level, &[]);
        assert_same(&out, &expected, level);
    }
    let parts = home.path().join("parts");
    extract(&parts, "portable", &["--part", "1/2"]);
    extract(&parts, "widest", &["--part", "2/2"]);
    run(crate::common::trephine().arg("assemble").arg(&parts).arg("-q")).code(0);
    assert_same(&parts, &expected, "parts of two processors");
    let mut command = crate::common::extract(&base, &tuned, &home.path().join("other"));
    run(command.env("TREPHINE_SIMD", "best")).code(2).says("portable, avx2 or widest");
}

/// A module that bytes are too coarse for is read again, and has the bytes that f32 gives it, whatever the memory.
#[test]
fn modules_that_are_done_again_in_f32_have_its_bytes() {
    let home = tempdir().unwrap();
    let [m, n] = [300, 280];
    let zero = vec![0.0; m * n];
    // Of rank 6 in bf16: bytes miss far more of it than the best approximation does.
    let low: Vec<f32> =
        (0..m * n).map(|at| (((at / n) % 3 * 4 + 1) as f32) * ((at % n) % 2 * 16 + 1) as f32).collect();
    let noisy = crate::common::pair::noise(5, m * n);
    let names = ["model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.up_proj.weight"];
    let checkpoint = |name: &str, first: &[f32], second: &[f32]| {
        let tensors = [Tensor::bf16(names[0], &[m, n], first), Tensor::bf16(names[1], &[m, n], second)];
        write(&home.path().join(name), &tensors, &crate::common::pair::config()).display().to_string()
    };
    let (base, tuned) = (checkpoint("base", &zero, &zero), checkpoint("tuned", &low, &noisy));
    let extracted = |name: &str, more: &[&str]| {
        let out = home.path().join(name);
        let more = [&["--rank", "8", "--method", "krylov", "--precision", "auto"], more].concat();
        extract_with(&base, &tuned, &out, &more).code(0);
        out
    };
    let auto = extracted("auto", &["--memory", "2GiB"]);
    let manifest = crate::common::manifest(&auto);
    let used: Vec<&str> =
        manifest["modules"].as_array().unwrap().iter().map(|m| m["precision"].as_str().unwrap()).collect();
    assert_eq!(used, ["f32", "int8"]);
    assert!(manifest["modules"][0]["missed_by_bytes"].as_f64().unwrap() > 0.0);
    let expected = contents(&auto);
    assert_same(&extracted("one thread", &["--threads", "1", "--memory", "2GiB"]), &expected, "one thread");
    assert_same(&extracted("little", &["--threads", "4", "--memory", "160MiB"]), &expected, "recomputed");
    let all_f32 = home.path().join("f32");
    let in_f32 = ["--rank", "8", "--method", "krylov", "--precision", "f32"];
    extract_with(&base, &tuned, &all_f32, &in_f32).code(0);
    let digest = |out: &Path| crate::common::manifest(out)["modules"][0]["blake3"].clone();
    assert_eq!(digest(&auto), digest(&all_f32));
}

/// A base that is packed along columns is mapped once, for all slices and threads: it takes exactly the memory in the
/// plan, for any number of threads.
#[test]
fn columns_are_kept_packed_within_the_memory() {
    let home = tempdir().unwrap();
    let [m, n] = [1536, 1024];
    let name = "model.layers.0.mlp.down_proj";
    let words = |seed: u64, count: usize| -> Vec<u8> {
        noise(seed, count).iter().flat_map(|v| ((v * 2f32.powi(31)) as i32).to_le_bytes()).collect()
    };
    let part = |part: &str, dtype, shape: [usize; 2], bytes| Tensor {
        name: format!("{name}.{part}"),
        dtype,
        shape: shape.into(),
        bytes,
    };
    let scales =
        noise(3, n / 128 * m).iter().flat_map(|v| half::f16::from_f32(v / 300.0).to_le_bytes()).collect();
    let base = [
        part("qweight", Dtype::I32, [n / 8, m], words(1, n / 8 * m)),
        part("qzeros", Dtype::I32, [n / 128, m / 8], words(2, n / 128 * m / 8)),
        part("scales", Dtype::F16, [n / 128, m], scales),
    ];
    let packed: u64 = base.iter().map(|tensor| tensor.bytes.len() as u64).sum();
    let mut config = crate::common::pair::config();
    config["quantization_config"] = serde_json::json!({"quant_method": "gptq", "bits": 4, "group_size": 128});
    let base = write(&home.path().join("base"), &base, &config);
    let tuned = Tensor::bf16(&format!("{name}.weight"), &[m, n], &noise(4, m * n));
    let tuned = write(&home.path().join("tuned"), &[tuned], &crate::common::pair::config());
    let dense = Tensor::bf16(&format!("{name}.weight"), &[m, n], &noise(5, m * n));
    let dense = write(&home.path().join("dense"), &[dense], &crate::common::pair::config());
    let (base, tuned) = (base.to_str().unwrap(), tuned.to_str().unwrap());
    let dense = dense.to_str().unwrap();
    let plan = |base: &str, threads: &str, memory: u64| {
        let memory = memory.to_string();
        let more = ["--rank", "8", "--method", "krylov", "--threads", threads, "--memory", &memory];
        let more = [more.as_slice(), &["--dry-run", "--json"]].concat();
        let ended = extract_with(base, tuned, &home.path().join("plan"), &more).code(0);
        serde_json::from_str::<serde_json::Value>(&ended.stdout).unwrap()
    };
    let least = |base: &str, threads: &str| plan(base, threads, 2 << 30)["least_memory"].as_u64().unwrap();
    let (one, nine) = (least(base, "1"), least(base, "9"));
    let module = |base: &str| plan(base, "1", least(base, "1"))["modules"][0]["memory"].as_u64().unwrap();
    assert_eq!(module(base), module(dense) + packed, "the packed bytes count once");
    // Its slices are decoded whole, which takes 9 MiB more in each of a reading and a factorizing thread; a side that
    // is not packed along columns is mapped slice by slice by both.
    let decoded = (9 - 1) * 2 * (9 << 20);
    let (packed_threads, other_threads) = (nine - one - decoded, least(dense, "9") - least(dense, "1"));
    assert!(packed_threads < other_threads, "and no thread maps them again");
    let extracted = |memory: u64, threads: &str| {
        let out = home.path().join(format!("{memory}-{threads}"));
        let memory = memory.to_string();
        let more = ["--rank", "8", "--method", "krylov", "--memory", &memory, "--threads", threads];
        extract_with(base, tuned, &out, &more).code(0);
        out
    };
    let expected = contents(&extracted(2 << 30, "2"));
    assert_same(&extracted(one, "1"), &expected, "recomputed on one thread");
    assert_same(&extracted(nine, "9"), &expected, "recomputed on nine threads");
}

type Damage = fn(&Path);

#[test]
fn damaged_shards_are_done_again() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let killed = unassembled(&reference, home.path());
    let middle = shards(&killed).len() / 2;
    let damages: [(&str, Damage); 4] = [
        ("a flipped bit", |shard| flip(shard, fs::metadata(shard).unwrap().len() as usize - 9)),
        ("truncated", |shard| File::options().write(true).open(shard).unwrap().set_len(100).unwrap()),
        ("deleted", |shard| fs::remove_file(shard).unwrap()),
        ("emptied", |shard| fs::write(shard, "").unwrap()),
    ];
    for (name, damage) in damages {
        let out = home.path().join(name);
        copy(&killed, &out);
        damage(&shards(&out)[middle]);
        let mut command = crate::common::trephine();
        command.args(["extract", "--rank", "8", "--base", &reference.job.base, "--tuned"]);
        let ended = run(command.arg(&reference.job.tuned).arg("--out").arg(&out)).code(0);
        ended.says(" is done again: the shard is ").says("resuming: 20 of 21 modules are done");
        assert_same(&out, &reference.files, name);
    }
}

#[test]
fn a_torn_journal_line_costs_its_module_only() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let killed = unassembled(&reference, home.path());
    let journal = killed.join(".trephine/journal");
    let length = fs::metadata(&journal).unwrap().len();
    File::options().write(true).open(&journal).unwrap().set_len(length - 3).unwrap();
    reference.goes_on(&killed, "torn line");
}

#[test]
fn a_damaged_journal_is_not_believed() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let killed = unassembled(&reference, home.path());
    let journal = killed.join(".trephine/journal");
    flip(&journal, fs::metadata(&journal).unwrap().len() as usize / 2);
    run(&mut reference.extract(&killed)).code(3).says("the journal is damaged").says("--overwrite");
    run(reference.extract(&killed).arg("--overwrite")).code(0);
    assert_same(&killed, &reference.files, "anew");
}

/// Starts a run and sends it `signal` as soon as its journal has more than the identity.
fn stopped_by(
    reference: &Reference,
    out: &Path,
    signal: rustix::process::Signal,
) -> Option<crate::common::Ended> {
    let mut command = reference.extract(out);
    command.arg("--overwrite").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let journal = out.join(".trephine/journal");
    let lines = || fs::read_to_string(&journal).map_or(0, |text| text.lines().count());
    while lines() < 3 && process.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    if process.try_wait().unwrap().is_none() {
        let id = rustix::process::Pid::from_child(&process);
        rustix::process::kill_process(id, signal).unwrap();
    }
    let ended = crate::common::Ended::of(process.wait_with_output().unwrap());
    (ended.code != Some(0)).then_some(ended)
}

#[test]
fn signals_stop_with_the_command_to_go_on() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let out = home.path().join("it's here");
    use rustix::process::Signal;
    for signal in [Signal::INT, Signal::TERM] {
        // A run that finished before the signal is run again.
        let stopped = (0..50).find_map(|_| stopped_by(&reference, &out, signal));
        let ended = stopped.expect("every run ended before the signal").code(75);
        assert!(
            ["To resume:", "To start again:"].iter().any(|word| ended.stderr.contains(word)),
            "{}",
            ended.stderr
        );
        let line = ended.stderr.lines().last().unwrap().trim();
        let words = shlex::split(line).unwrap();
        assert!(!words.iter().any(|word| word == "--overwrite"), "{line}");
        assert!(out.join(".trephine/journal").exists() && !out.join("B3SUMS").exists());
        run(Command::new(&words[0]).args(&words[1..])).code(0);
        assert_same(&out, &reference.files, "stopped by a signal");
    }
}

//! Adapters for one program, and what PEFT cannot do with some models.

use std::path::Path;

use crate::common::pair::dense;
use crate::common::{extract_with, run, trephine};
use serde_json::Value;
use tempfile::tempdir;

use crate::module_trees::{checkpoint, fixture, small, small_for};

/// Zamba's layers share a block, and PEFT applies an adapter of it in the first of them alone until it is merged: the
/// adapter is as good as it can be, which `verify` confirms, and `probe` does not say that all of it works.
#[test]
fn a_block_that_layers_share_acts_in_one_of_them() {
    let home = tempdir().unwrap();
    let names = [
        ("model.layers.2.shared_transf.self_attn.o_proj.weight", &[8usize, 8][..]),
        ("model.layers.2.linear.weight", &[8, 8]),
    ];
    let found = small(home.path(), "ZambaForCausalLM", "zamba", &names, &names);
    let [adapter, base, tuned] =
        ["adapter", "base", "tuned"].map(|name| home.path().join(name).to_str().unwrap().to_owned());
    let notes = crate::common::manifest(Path::new(&adapter))["notes"].to_string();
    assert!(notes.contains("'model.layers.2.shared_transf.self_attn.o_proj'"), "{notes}");
    let verified = run(trephine().args(["verify", "-q", &adapter, "--base", &base, "--tuned", &tuned]));
    assert_eq!(verified.code, Some(0), "{}{}", verified.stdout, verified.stderr);
    let works = |probed: &Value| {
        let all = probed["consumers"].as_array().unwrap().iter();
        all.map(|one| (one["loads"].as_bool().unwrap(), one["works"].as_bool().unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(works(&found), [(true, false), (true, true), (true, true), (true, true)], "{found}");
    // The block's name alone tells, where no base is given.
    let alone = run(trephine().args(["probe", &adapter, "--json"])).code(4);
    assert!(!alone.stderr.contains("sanitize"), "which mends nothing here: {}", alone.stderr);
    assert_eq!(works(&serde_json::from_str(&alone.stdout).unwrap())[0], (true, false));
    // It is made fit for other programs like any other, and what PEFT does is no reason to refuse.
    let clean = home.path().join("clean");
    for loader in ["peft", "vllm"] {
        let sanitized = ["sanitize", &adapter, "--for", loader, "--base", &base, "--overwrite", "--out"];
        run(trephine().args(sanitized).arg(&clean)).code(0);
    }
    run(trephine().args(["sanitize", &adapter, "--check", "--for", "vllm", "--base", &base])).code(0);
    run(trephine().args(["sanitize", &adapter, "--check", "--for", "peft", "--base", &base])).code(4);
    // The same name in another model is nothing of the kind.
    let other = tempdir().unwrap();
    let found = small(other.path(), "LlamaForCausalLM", "llama", &names, &names);
    assert_eq!(works(&found)[0], (true, true), "{found}");
}

/// `--for` one program: experts singly where only PEFT wants stacks, and no setting that only PEFT needs.
#[test]
fn an_adapter_for_one_program() {
    let of = &fixture()["NemotronHForCausalLM"];
    let home = tempdir().unwrap();
    let base = checkpoint(&home.path().join("base"), of, 1.0);
    let tuned = checkpoint(&home.path().join("tuned"), of, 1.25);
    let extracted = |program: &str| {
        let out = home.path().join(program);
        let ended = extract_with(&base, &tuned, &out, &["--rank", "2", "--for", program]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let of_both = ["--base", &base, "--tuned", &tuned, "-q"];
        let verified = run(trephine().args(["verify", out.to_str().unwrap()]).args(of_both));
        assert_eq!(verified.code, Some(0), "{program}: {}{}", verified.stdout, verified.stderr);
        dense(&out.join("adapter_model.safetensors"))
    };
    let [stacks, singles] = ["peft", "vllm"].map(extracted);
    for (kind, wrapper) in [("up_proj", "experts.base_layer"), ("down_proj", "experts")] {
        let mixer = "base_model.model.model.layers.1.mixer";
        for expert in 0..4 {
            let single = |factor: &str| &singles[&format!("{mixer}.experts.{expert}.{kind}.{factor}.weight")];
            let stack = |factor: &str| &stacks[&format!("{mixer}.{wrapper}.{factor}.weight")];
            // Rows `2 e` and `2 e + 1` of lora_A, columns `e` and `4 + e` of lora_B are the expert's.
            let inner = single("lora_A").0[1];
            assert_eq!(single("lora_A").1, stack("lora_A").1[2 * expert * inner..2 * (expert + 1) * inner]);
            let b = stack("lora_B").1.chunks_exact(8).flat_map(|row| [row[expert], row[4 + expert]]);
            assert_eq!(single("lora_B").1, b.collect::<Vec<_>>());
        }
        assert!(!singles.contains_key(&format!("{mixer}.{wrapper}.lora_A.weight")));
    }
    let config = |program: &str| -> Value {
        let text = std::fs::read(home.path().join(program).join("adapter_config.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    // Each is refused or without effect where it is not for, and that is said.
    let verdicts = |program: &str| {
        let out = home.path().join(program);
        let probed = run(trephine().args(["probe", out.to_str().unwrap(), "--base", &base, "--json"]));
        let probed: Value = serde_json::from_str(&probed.stdout).unwrap();
        let of = |name: &str| {
            let all = probed["consumers"].as_array().unwrap();
            all.iter().find(|one| one["consumer"] == name).unwrap()["works"].as_bool().unwrap()
        };
        [of("peft"), of("vllm")]
    };
    assert_eq!([verdicts("peft"), verdicts("vllm")], [[true, false], [false, true]]);
    // Either is merged into the same weights.
    let merged = |program: &str| {
        let (adapter, out) = (home.path().join(program), home.path().join(format!("merged-{program}")));
        let paths = [adapter.to_str().unwrap(), "--out", out.to_str().unwrap()];
        run(trephine().args(["merge", "-q", "--base", &base, "--adapter"]).args(paths)).code(0);
        dense(&out.join("model.safetensors"))
    };
    assert!(merged("peft") == merged("vllm"));
    assert!(config("vllm")["target_parameters"].is_null());
    assert!(config("vllm")["target_modules"].as_array().unwrap().contains(&"up_proj".into()));
    assert_eq!(config("peft")["target_parameters"][0], "mixer.experts.down_proj");
}

/// Where PEFT needs a rank of its own for gate and up, or dense layers as parameters, other programs do not.
#[test]
fn settings_that_only_peft_needs() {
    for (class, kind, path) in
        [("JambaForCausalLM", "jamba", "feed_forward"), ("DeepseekV3ForCausalLM", "deepseek_v3", "mlp")]
    {
        let expert = |layer: usize, kind: &str| format!("model.layers.{layer}.{path}.{kind}.weight");
        let kinds = ["gate_proj", "up_proj", "down_proj"];
        let names: Vec<String> = kinds
            .iter()
            .flat_map(|kind| [expert(0, kind), expert(1, &format!("experts.0.{kind}"))])
            .collect();
        let weights: Vec<(&str, &[usize])> =
            names.iter().map(|name| (name.as_str(), &[8usize, 8][..])).collect();
        let config = |program: &str| {
            let home = tempdir().unwrap();
            let mut found = small_for(home.path(), class, kind, &weights, &weights, &["--for", program]);
            found["config"]["base_model_name_or_path"].take();
            found["config"].take()
        };
        let of_peft = config("all");
        let told = !of_peft["rank_pattern"].as_object().unwrap().is_empty();
        assert!(told || of_peft["target_parameters"].is_array(), "{class}: {of_peft}");
        assert_eq!(of_peft, config("peft"));
        let other = config("sglang");
        assert!(other["target_parameters"].is_null(), "{class}: {other}");
        assert!(other["rank_pattern"].as_object().unwrap().is_empty(), "{class}: {other}");
        assert_eq!(other["target_modules"], serde_json::json!(["down_proj", "gate_proj", "up_proj"]));
    }
}

//! `trephine evaluate` against transformers and PEFT (scripts/fixtures_decoders.py).

use serde_json::Value;
use trephine::commands::evaluate::{Evaluated, Evaluation, evaluate};
use trephine::corpus::Corpus;
use trephine::run::Silent;

use super::calibrate::{fixture, json, numbers, text};
use crate::common::{data, trephine};

fn job(model: &str, adapters: Vec<String>, corpus: Corpus) -> Evaluation {
    let (model, scratch) = (model.to_owned(), std::env::temp_dir());
    Evaluation { model, adapters, corpus, threads: 2, memory: 1 << 30, scratch }
}

#[track_caller]
fn assert_losses(what: &str, found: &[f64], expected: &Value) {
    let expected = numbers(expected);
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 2e-4, "{what}: {found} {expected}");
    }
}

#[test]
fn losses_with_and_without_adapters_are_those_of_peft() {
    for (case, adapters) in
        [("llama", &["linear", "ends"][..]), ("gemma3", &["linear"]), ("phi3", &["linear"])]
    {
        let expected = json(&fixture(case).join("expected.json"));
        let specs =
            adapters.iter().map(|name| fixture(case).join(name).to_str().unwrap().to_owned()).collect();
        let found = evaluate(&job(fixture(case).to_str().unwrap(), specs, text(case)), &Silent).unwrap();
        assert_losses(case, &found.variants[0].by_sequence, &expected["losses"]);
        for (name, variant) in adapters.iter().zip(&found.variants[1..]) {
            assert_losses(&format!("{case} {name}"), &variant.by_sequence, &expected["adapters"][name]);
            let change = variant.change.unwrap();
            assert!((change.difference - (variant.loss - found.variants[0].loss)).abs() < 1e-12);
            assert!(change.standard_error.unwrap() > 0.0);
        }
        assert_eq!(found.pairs.len(), adapters.len() * (adapters.len() - 1) / 2);
        assert_eq!(found.predicted, 40 + 23 + 9 - 3);
    }
}

#[test]
fn a_model_by_itself_has_the_loss_of_transformers_whatever_memory_and_threads() {
    let expected = json(&fixture("pair.json"));
    let corpus = Corpus { files: Vec::new(), tokenizer: None, sequence: 128, tokens: 1000 };
    let plain = evaluate(&job(&data("base"), Vec::new(), corpus.clone()), &Silent).unwrap();
    assert_losses("base", &plain.variants[0].by_sequence, &expected["base"]["losses"]);
    assert!(plain.variants[0].change.is_none());
    let small = Evaluation { memory: 56 << 20, threads: 1, ..job(&data("base"), Vec::new(), corpus) };
    assert_eq!(evaluate(&small, &Silent).unwrap(), plain);
}

#[test]
fn the_command_prints_a_table_or_json() {
    let adapter = |name| fixture("llama").join(name);
    let mut command = trephine();
    command.arg("evaluate").arg("--model").arg(fixture("llama")).args(["--quiet", "--tokens", "100"]);
    command.arg("--text").arg(fixture("llama").join("text.jsonl")).arg("--tokenizer").arg(fixture(""));
    command.arg("--adapter").arg(adapter("linear")).arg("--adapter").arg(adapter("ends"));
    let table = command.output().unwrap();
    assert!(table.status.success(), "{}", String::from_utf8_lossy(&table.stderr));
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("no adapter") && table.contains("69 tokens of 3 sequences"), "{table}");
    assert!(table.contains("ends minus"), "{table}");
    let json = command.arg("--json").output().unwrap();
    let found: Evaluated = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((found.variants.len(), found.pairs.len()), (3, 1));
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let corpus = Corpus { files: Vec::new(), tokenizer: None, sequence: 64, tokens: 100 };
    let adapter = fixture("phi3").join("linear").to_str().unwrap().to_owned();
    let error = evaluate(&job(&data("base"), vec![adapter], corpus.clone()), &Silent).unwrap_err();
    assert!(error.to_string().contains("a module that the model does not have"), "{error}");
    let adapter = fixture("llama").join("linear").to_str().unwrap().to_owned();
    let error = evaluate(&job(&data("base"), vec![adapter], corpus), &Silent).unwrap_err();
    assert!(error.to_string().contains("do not fit a weight"), "{error}");
}

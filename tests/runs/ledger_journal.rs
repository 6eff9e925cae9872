//! The journal against kills and damage: a replay gives a prefix of what was written, or an error.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use tempfile::tempdir;
use trephine::Kind;
use trephine::durable::journal::Journal;
use trephine::durable::journal::{replay, replay_prefix};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Record {
    Began { options: Vec<String>, seed: u64 },
    Done { module: String, error: f64, digest: String, spectrum: Vec<f32> },
}

fn record() -> impl Strategy<Value = Record> {
    let finite = any::<u64>().prop_map(f64::from_bits).prop_filter("JSON has no NaN", |v| v.is_finite());
    let narrow = any::<u32>().prop_map(f32::from_bits).prop_filter("JSON has no NaN", |v| v.is_finite());
    prop_oneof![
        (prop::collection::vec(any::<String>(), 0..3), any::<u64>())
            .prop_map(|(options, seed)| Record::Began { options, seed }),
        (any::<String>(), finite, "[0-9a-f]{16}", prop::collection::vec(narrow, 0..4))
            .prop_map(|(module, error, digest, spectrum)| Record::Done { module, error, digest, spectrum }),
    ]
}

fn written(path: &Path, records: &[Record]) {
    let (mut journal, before) = Journal::open(path).unwrap();
    assert_eq!(before, []);
    records.iter().for_each(|r| journal.append(r).unwrap());
    assert_eq!(journal.len(), records.len() as u64);
}

fn sample() -> Vec<Record> {
    let done = |module: &str, error| Record::Done {
        module: module.into(),
        error,
        digest: "0123456789abcdef".into(),
        spectrum: vec![1.5, 0.1],
    };
    vec![
        Record::Began { options: vec!["--rank".into(), "16\n".into()], seed: 7 },
        done("model.layers.0.q_proj", 0.1),
        done("model.layers.0.ü", 1e-300),
        done("", 0.0),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn records_come_back_with_their_bits(records in prop::collection::vec(record(), 0..6)) {
        let home = tempdir().unwrap();
        let path = home.path().join("journal");
        written(&path, &records);
        let bytes = fs::read(&path).unwrap();
        prop_assert_eq!(&replay::<Record>(&path).unwrap(), &records);
        let (journal, again) = Journal::<Record>::open(&path).unwrap();
        prop_assert_eq!(journal.is_empty(), records.is_empty());
        prop_assert_eq!(again, records);
        prop_assert_eq!(fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn damage_never_makes_a_record(records in prop::collection::vec(record(), 1..5), at: prop::sample::Index,
                                   cut: prop::sample::Index,
                                   junk in prop::collection::vec(any::<u8>(), 0..40)) {
        let home = tempdir().unwrap();
        let path = home.path().join("journal");
        written(&path, &records);
        let mut bytes = fs::read(&path).unwrap();
        let (from, to) = (at.index(bytes.len()), cut.index(bytes.len()));
        bytes.splice(from.min(to)..from.max(to), junk);
        fs::write(&path, &bytes).unwrap();
        if let Ok(found) = replay::<Record>(&path) {
            prop_assert_eq!(found.as_slice(), &records[..found.len()]);
        }
    }
}

#[test]
fn a_kill_at_every_byte_leaves_a_prefix_and_the_run_goes_on() {
    let home = tempdir().unwrap();
    let path = home.path().join("journal");
    let records = sample();
    written(&path, &records);
    let whole = fs::read(&path).unwrap();
    for length in 0..=whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let lines = whole[..length].iter().filter(|&&b| b == b'\n').count();
        let (mut journal, found) = Journal::open(&path).unwrap();
        assert_eq!(found, records[..lines], "cut after byte {length}");
        let rest = whole[..length].iter().rev().take_while(|&&b| b != b'\n').count();
        assert_eq!(journal.torn(), rest as u64);
        records[lines..].iter().for_each(|r| journal.append(r).unwrap());
        drop(journal);
        assert_eq!(fs::read(&path).unwrap(), whole, "cut after byte {length}");
    }
}

#[test]
fn every_flipped_bit_is_an_error_or_a_strict_prefix() {
    let home = tempdir().unwrap();
    let path = home.path().join("journal");
    let records = sample();
    written(&path, &records);
    let whole = fs::read(&path).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &bytes).unwrap();
        // A process that another test starts at this moment holds a copy of the journal's lock for an instant.
        let opened = std::iter::repeat_with(|| Journal::<Record>::open(&path))
            .find(|opened| !opened.as_ref().is_err_and(|e| e.kind() == Kind::Decide));
        match opened.unwrap() {
            Ok((_, found)) => {
                assert!(found.len() < records.len(), "bit {bit} unnoticed");
                assert_eq!(found, records[..found.len()], "bit {bit}");
            }
            Err(e) => assert_eq!(e.kind(), Kind::Input, "bit {bit}: {e}"),
        }
    }
}

#[test]
fn removed_doubled_and_moved_lines_are_noticed() {
    let home = tempdir().unwrap();
    let path = home.path().join("journal");
    written(&path, &sample());
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    for order in [vec![1, 2, 3], vec![0, 2, 3], vec![0, 0, 1, 2, 3], vec![0, 2, 1, 3]] {
        fs::write(&path, order.iter().map(|&i| lines[i]).collect::<String>()).unwrap();
        let error = Journal::<Record>::open(&path).unwrap_err();
        assert_eq!(error.kind(), Kind::Input);
        assert!(error.to_string().starts_with("the journal is damaged: line "), "{error}");
        assert!(error.cure().unwrap().contains("--overwrite"));
    }
}

#[test]
fn there_is_one_writer_and_readers_do_not_disturb_it() {
    let home = tempdir().unwrap();
    let path = home.path().join("journal");
    let (mut journal, _) = Journal::<u32>::open(&path).unwrap();
    assert_eq!(Journal::<u32>::open(&path).unwrap_err().kind(), Kind::Decide);
    journal.append(&1).unwrap();
    assert_eq!(replay::<u32>(&path).unwrap(), [1]);
    journal.append(&2).unwrap();
    assert_eq!(replay::<u32>(&path).unwrap(), [1, 2]);
}

#[test]
fn what_could_not_be_replayed_is_refused_when_it_is_written() {
    let home = tempdir().unwrap();
    let path = home.path().join("journal");
    let (mut journal, _) = Journal::<f64>::open(&path).unwrap();
    journal.append(&0.1).unwrap();
    assert!(journal.append(&f64::NAN).is_err());
    journal.append(&0.2).unwrap();
    drop(journal);
    assert_eq!(replay::<f64>(&path).unwrap(), [0.1, 0.2]);
    let error = replay::<String>(&path).unwrap_err();
    assert!(error.to_string().contains("line 1 was written by a different version"), "{error}");
}

#[test]
fn what_stands_before_the_damage_is_still_told() {
    let home = tempdir().unwrap();
    let path = home.path().join("journal");
    written(&path, &sample());
    let whole = fs::read(&path).unwrap();
    let third = whole.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(1).unwrap().0;
    let mut bytes = whole.clone();
    bytes[third + 30] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let read = replay_prefix::<Record>(&path).unwrap();
    assert_eq!(read.records, sample()[..2]);
    assert!(read.damage.unwrap().to_string().contains("line 3 does not match its checksum"));
    assert_eq!(fs::read(&path).unwrap(), bytes);
    fs::write(&path, &whole).unwrap();
    let read = replay_prefix::<Record>(&path).unwrap();
    assert_eq!((read.records, read.damage.is_none()), (sample(), true));
}

#[test]
fn a_journal_of_ones_own_is_begun_once() {
    let home = tempdir().unwrap();
    let path = home.path().join("journal");
    let mut journal = Journal::create(&path).unwrap();
    sample().iter().for_each(|record| journal.append(record).unwrap());
    assert_eq!(replay::<Record>(&path).unwrap(), sample());
    assert!(Journal::<Record>::create(&path).unwrap_err().to_string().contains("cannot begin the journal"));
}

//! Shards and the streaming writer: readable by the safetensors crate, reproducible, and checked for damage.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors};
use tempfile::tempdir;
use trephine::Kind;
use trephine::container::safetensors::writer::SafetensorsWriter;
use trephine::durable::digest::Written;
use trephine::durable::digest::hash_file;
use trephine::lora::write::shard;
use trephine::lora::write::shard::Shard;
use trephine::quant::TensorInfo;

fn stored(name: &str, dtype: Dtype, shape: &[usize]) -> TensorInfo {
    TensorInfo { name: name.into(), dtype, shape: shape.into() }
}

fn bytes(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|i| ((i * 31 + seed) % 251) as u8).collect()
}

type Tensors = Vec<(TensorInfo, Vec<u8>)>;

fn factors() -> Tensors {
    vec![
        (stored("m.lora_B.weight", Dtype::BF16, &[7, 3]), bytes(42, 1)),
        (stored("m.lora_A.weight", Dtype::BF16, &[3, 5]), bytes(30, 2)),
        (stored("spectrum", Dtype::F32, &[3]), bytes(12, 3)),
        (stored("nothing", Dtype::F32, &[0, 4]), Vec::new()),
    ]
}

fn metadata() -> BTreeMap<String, String> {
    ["module", "method", "relative_error", "z", "a"]
        .iter()
        .map(|k| ((*k).into(), format!("{k} = \"1\"")))
        .collect()
}

fn write(path: &Path, tensors: &Tensors) -> Written {
    let borrowed: Vec<_> = tensors.iter().map(|(s, b)| (s.clone(), b.as_slice())).collect();
    shard::write(path, &borrowed, &metadata()).unwrap()
}

fn assert_holds(path: &Path, tensors: &Tensors) {
    let file = fs::read(path).unwrap();
    let read = SafeTensors::deserialize(&file).unwrap();
    assert_eq!(read.len(), tensors.len());
    for (stored, bytes) in tensors {
        let view = read.tensor(&stored.name).unwrap();
        assert_eq!((view.dtype(), view.shape(), view.data()), (stored.dtype, &stored.shape[..], &bytes[..]));
    }
}

#[test]
fn a_shard_comes_back_whole_and_in_pieces() {
    let home = tempdir().unwrap();
    let path = home.path().join(shard::file_name("model.layers.0.q_proj"));
    assert!(path.extension().is_some_and(|e| e == "shard"));
    let tensors = factors();
    let written = write(&path, &tensors);
    assert_eq!(hash_file(&path).unwrap(), written);
    assert_holds(&path, &tensors);

    let shard = Shard::open(&path, written).unwrap();
    assert_eq!(shard.metadata(), &metadata());
    let whole = fs::read(&path).unwrap();
    for (stored, bytes) in &tensors {
        let placed = shard.tensor(&stored.name).unwrap();
        assert_eq!(&placed.stored, stored);
        assert_eq!(&whole[placed.range.start as usize..placed.range.end as usize], &bytes[..]);
        let mut copied = Vec::new();
        let take = |piece: &[u8]| {
            copied.extend_from_slice(piece);
            Ok(())
        };
        shard.copy(&stored.name, take).unwrap();
        assert_eq!(&copied, bytes);
    }
    let mut middle = [0; 4];
    shard.read("spectrum", 8, &mut middle).unwrap();
    assert_eq!(middle, tensors[2].1[8..]);
    assert!(shard.read("spectrum", 9, &mut middle).is_err());
    assert!(shard.read("spectrum", u64::MAX, &mut middle).is_err());
    assert_eq!(shard.tensor("absent").unwrap_err().kind(), Kind::Input);
}

#[test]
fn the_order_of_tensors_does_not_change_the_bytes() {
    let home = tempdir().unwrap();
    let (one, two) = (home.path().join("one"), home.path().join("two"));
    let mut tensors = factors();
    let first = write(&one, &tensors);
    tensors.reverse();
    assert_eq!(write(&two, &tensors), first);
    assert_eq!(fs::read(one).unwrap(), fs::read(two).unwrap());
}

#[test]
fn a_damaged_shard_is_never_opened() {
    let home = tempdir().unwrap();
    let path = home.path().join("s.shard");
    let written = write(&path, &factors());
    let whole = fs::read(&path).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(Shard::open(&path, written).unwrap_err().kind(), Kind::Input, "bit {bit}");
    }
    fs::write(&path, &whole[1..]).unwrap();
    assert_eq!(Shard::open(&path, written).unwrap_err().kind(), Kind::Input);
    fs::remove_file(&path).unwrap();
    let error = Shard::open(&path, written).unwrap_err();
    assert_eq!(error.kind(), Kind::Input);
    assert!(error.to_string().starts_with("the shard is missing"), "{error}");
}

#[test]
fn a_header_that_lies_is_refused_even_with_its_digest() {
    let home = tempdir().unwrap();
    let path = home.path().join("s.shard");
    let entry = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;
    let file =
        |length: u64, json: &str, data: &[u8]| [&length.to_le_bytes()[..], json.as_bytes(), data].concat();
    let length = entry.len() as u64;
    for bytes in [
        Vec::new(),
        vec![1; 7],
        file(u64::MAX, entry, b"xy"),
        file(200_000_000, entry, b"xy"),
        file(length + 3, entry, b"xy"),
        file(length, entry, b"xyz"),
        file(length, entry, b"x"),
        file(length, &entry.replace("[2]", "[3]"), b"xy"),
        file(length + 38, &entry.replace("[2]", "[4294967296,4294967296,4294967296,2]"), b"xy"),
        file(5, "[1,2]", b""),
    ] {
        fs::write(&path, &bytes).unwrap();
        let error = Shard::open(&path, hash_file(&path).unwrap()).unwrap_err();
        assert_eq!(error.kind(), Kind::Input, "{error}");
        assert!(error.to_string().contains("header is damaged"), "{error}");
    }
}

#[test]
fn the_adapter_is_laid_out_as_the_crate_does_it() {
    let home = tempdir().unwrap();
    let path = home.path().join("adapter_model.safetensors");
    let mut tensors = factors();
    tensors.retain(|(s, _)| s.dtype == Dtype::BF16);
    let headers = tensors.iter().map(|(s, _)| s.clone()).collect();
    let mut writer = SafetensorsWriter::create(&path, headers).unwrap();
    tensors.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    for (stored, bytes) in &tensors {
        bytes.chunks(7).for_each(|piece| writer.put(&stored.name, piece).unwrap());
    }
    assert!(!path.exists());
    writer.finish().unwrap();
    assert_holds(&path, &tensors);
    let views = tensors.iter().map(|(s, b)| {
        (s.name.to_string(), safetensors::tensor::TensorView::new(s.dtype, s.shape.to_vec(), b).unwrap())
    });
    let format = [("format".to_owned(), "pt".to_owned())].into();
    assert_eq!(fs::read(&path).unwrap(), safetensors::serialize(views, Some(format)).unwrap());
}

#[test]
fn data_that_do_not_fit_are_refused_and_leave_nothing() {
    let home = tempdir().unwrap();
    let path = home.path().join("m.safetensors");
    let begin = || {
        let tensors = vec![stored("a", Dtype::U8, &[2]), stored("b", Dtype::U8, &[2])];
        SafetensorsWriter::create(&path, tensors).unwrap()
    };
    assert!(begin().put("b", b"xy").unwrap_err().to_string().contains("the next is 'a'"));
    assert!(begin().put("a", b"xyz").unwrap_err().to_string().contains("2 bytes was given 3"));
    let mut short = begin();
    short.put("a", b"xy").unwrap();
    short.put("b", b"x").unwrap();
    assert!(short.finish().unwrap_err().to_string().contains("given only 1"));
    for tensors in [
        vec![stored("a", Dtype::U8, &[2]), stored("a", Dtype::F32, &[2])],
        vec![stored("__metadata__", Dtype::U8, &[2])],
        vec![stored("a", Dtype::F32, &[usize::MAX, 2])],
        vec![stored("a", Dtype::F4, &[3])],
    ] {
        assert!(SafetensorsWriter::create(&path, tensors).is_err());
    }
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn a_file_without_tensors_is_a_file() {
    let home = tempdir().unwrap();
    let path = home.path().join("none");
    let written = shard::write(&path, &[], &BTreeMap::new()).unwrap();
    assert_holds(&path, &Vec::new());
    assert_eq!(Shard::open(&path, written).unwrap().tensors().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_tensors_come_back(shapes in prop::collection::btree_map(
        any::<String>(), (prop::sample::select(vec![Dtype::U8, Dtype::BF16, Dtype::F32, Dtype::F64]),
                          prop::collection::vec(0usize..5, 0..4)), 0..6)) {
        let home = tempdir().unwrap();
        let path = home.path().join("s");
        let tensors: Tensors = shapes.into_iter().map(|(name, (dtype, shape))| {
            let length = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            (stored(&name, dtype, &shape), bytes(length, name.len()))
        }).collect();
        let written = write(&path, &tensors);
        assert_holds(&path, &tensors);
        let shard = Shard::open(&path, written).unwrap();
        for placed in shard.tensors() {
            prop_assert_eq!(placed.range.start * 8 % placed.stored.dtype.bitsize() as u64, 0);
        }
    }
}

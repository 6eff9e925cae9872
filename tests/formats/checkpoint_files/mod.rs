//! Checkpoints built byte by byte, so that they can be wrong in any way.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use trephine::checkpoint::Checkpoint;
use trephine::{Kind, Result};

/// A tensor: name, dtype, shape, bytes.
pub type Entry<'a> = (&'a str, &'a str, &'a [usize], Vec<u8>);

/// `n` numbers, 0.5, 1.5, 2.5 ..., as the bytes of F32.
pub fn f32s(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| (i as f32 + 0.5).to_le_bytes()).collect()
}

/// A whole file.
pub fn safetensors(tensors: &[Entry]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert((*name).into(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        data.extend(bytes);
    }
    with_header(&Value::Object(header).to_string(), &data)
}

/// A file with any header.
pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A temporary folder.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub fn write_json(&self, name: &str, value: &Value) {
        self.write(name, value.to_string().as_bytes());
    }

    pub fn index(&self, map: &[(&str, &str)]) {
        let map: serde_json::Map<_, _> = map.iter().map(|(t, f)| ((*t).to_owned(), json!(f))).collect();
        self.write_json("model.safetensors.index.json", &json!({"metadata": {}, "weight_map": map}));
    }

    pub fn open(&self) -> Result<Checkpoint> {
        Checkpoint::open(self.path().to_str().unwrap())
    }

    /// The message and hint of a result that must be refused as bad input, with the folder's own path replaced.
    pub fn refusal<T: std::fmt::Debug>(&self, result: Result<T>) -> String {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), Kind::Input, "{error}");
        let message = format!("{error}\n  {}", error.cure().expect("a cure"));
        message.replace(self.path().to_str().unwrap(), "[folder]")
    }
}

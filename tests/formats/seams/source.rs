//! The conformance suite of [`Storage`], the memory-mapped file that passes it, and a toy source that keeps its
//! bytes in memory.

use std::fs;
use std::ops::Range;
use std::path::Path;

use trephine::checkpoint::{Checkpoint, Config, ModuleReader};
use trephine::storage::{MappedFile, Storage, Version, Window};
use trephine::{Error, Result};

#[cfg(feature = "remote")]
use super::server::{Reply, Server, part};

/// Whether `storage` holds exactly `content`, however it is asked.
fn conforms(storage: &dyn Storage, content: &[u8]) {
    let length = content.len() as u64;
    assert_eq!(storage.length(), length);
    assert!(!storage.name().is_empty() && !storage.location().as_os_str().is_empty());
    assert_eq!(storage.version(), storage.version(), "an object that nobody touches has one version");
    let ranges = [0..length, 0..0, length..length, 1..2, 4095..4098.min(length), length - 1..length];
    for range in &ranges {
        storage.prefetch(range.clone());
        let window = storage.read_range(range.clone()).unwrap();
        assert_eq!(window[..], content[range.start as usize..range.end as usize], "{range:?}");
    }
    let windows = storage.read_ranges(&ranges).unwrap();
    assert_eq!(windows.len(), ranges.len());
    for (window, range) in windows.iter().zip(&ranges) {
        assert_eq!(window[..], content[range.start as usize..range.end as usize], "{range:?} of several");
    }
    // A pass, of which a part is read, gives the digest of all of it or leaves that to the reader.
    for range in &ranges {
        storage.begin_pass(range.clone());
        storage.read_range(range.start..range.start + (range.end - range.start) / 2).unwrap();
        if let Some(digest) = storage.end_pass(range.clone()).unwrap() {
            let bytes = &content[range.start as usize..range.end as usize];
            assert_eq!(digest, blake3::hash(bytes), "{range:?}");
        }
    }
    let mut header = [0; 9];
    storage.read_into(3, &mut header).unwrap();
    assert_eq!(header, content[3..12]);
    // Beyond the end is an error, never zeros.
    assert!(storage.read_range(length - 1..length + 1).is_err());
    assert!(storage.read_range(length + 1..length + 2).is_err());
    assert!(storage.read_into(length - 1, &mut header).is_err());
    // Any number of threads.
    std::thread::scope(|scope| {
        for start in 0..4 {
            scope.spawn(move || {
                for at in (start..length - 8).step_by(997) {
                    let window = storage.read_range(at..at + 8).unwrap();
                    assert_eq!(window[..], content[at as usize..at as usize + 8]);
                }
            });
        }
    });
}

// The toy.

#[derive(Debug)]
struct InMemory {
    name: String,
    bytes: Vec<u8>,
}

impl Storage for InMemory {
    fn name(&self) -> &str {
        &self.name
    }

    fn location(&self) -> &Path {
        Path::new("memory:")
    }

    fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn version(&self) -> Option<Version> {
        Some(Version::Tag(blake3::hash(&self.bytes).to_string()))
    }

    fn read_range(&self, range: Range<u64>) -> Result<Window> {
        let bytes = self.bytes.get(range.start as usize..range.end as usize);
        bytes.map(|bytes| bytes.to_vec().into()).ok_or_else(|| Error::input("a range beyond the end"))
    }
}

// Its trial.

#[test]
fn every_source_conforms() {
    let content: Vec<u8> = (0..20_011u32).map(|i| (i * 7 % 251) as u8).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("object");
    fs::write(&path, &content).unwrap();
    conforms(&MappedFile::open("object", &path).unwrap(), &content);
    conforms(&InMemory { name: "object".into(), bytes: content.clone() }, &content);
    #[cfg(feature = "remote")]
    {
        let served = content.clone();
        let server = Server::start(move |request| match request.path.as_str() {
            "/m/object.safetensors" => part(request, &served, "\"1\""),
            _ => Reply::of(404, ""),
        });
        let opened = trephine::storage::remote::open(&server.url("m/object.safetensors")).unwrap();
        let object = opened.folder.open(&opened.file.unwrap()).unwrap();
        conforms(&*object, &content);
        assert!(object.is_remote() && opened.folder.open("other.safetensors").is_err());
    }
}

#[test]
fn a_checkpoint_from_a_new_source_is_the_one_on_disk() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/base-fp8");
    let on_disk = Checkpoint::open(folder.to_str().unwrap()).unwrap();
    let files = on_disk.identity().files.iter().filter(|file| file.name.ends_with(".safetensors"));
    let in_memory = files.map(|file| {
        let bytes = fs::read(folder.join(&file.name)).unwrap();
        Box::new(InMemory { name: file.name.clone(), bytes }) as Box<dyn Storage>
    });
    let config = Config::load(&folder).unwrap();
    let opened = Checkpoint::from_storage(Path::new("memory:"), config, in_memory.collect()).unwrap();
    assert_eq!(opened.scheme().kind(), on_disk.scheme().kind());
    assert_eq!(opened.modules().len(), on_disk.modules().len());
    for (ours, theirs) in opened.modules().zip(on_disk.modules()) {
        assert_eq!((ours.name(), ours.shape()), (theirs.name(), theirs.shape()));
        let decoded = [(&opened, ours), (&on_disk, theirs)].map(|(checkpoint, module)| {
            let [rows, columns] = module.shape();
            let mut values = vec![0f32; rows * columns];
            ModuleReader::open(checkpoint, module).unwrap().panel(0..rows, &mut values).unwrap();
            values
        });
        assert_eq!(decoded[0], decoded[1], "{}", ours.name());
    }
}

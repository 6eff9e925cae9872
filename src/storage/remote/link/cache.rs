//! An optional folder of blocks that were fetched before, each with its digest, and with a limit on all together.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::storage::remote::http::object::Object;
use crate::storage::remote::settings::settings;

/// Bytes of a digest.
const DIGEST: usize = 32;

/// The block `range` of an object, if the cache has it intact. A damaged one is removed.
pub(crate) fn get(object: &Object, range: &Range<u64>) -> Option<Vec<u8>> {
    let (folder, _) = settings().cache.as_ref()?;
    let path = path_of(folder, object, range)?;
    let mut file = File::open(&path).ok()?;
    match read(&mut file, range) {
        Some(bytes) => {
            // The time of use decides what goes first; a cache on a disk that is read-only works as well.
            let _ = file.set_modified(SystemTime::now());
            Some(bytes)
        }
        None => {
            let _ = fs::remove_file(&path);
            None
        }
    }
}

fn read(file: &mut File, range: &Range<u64>) -> Option<Vec<u8>> {
    let length = range.end - range.start;
    if file.metadata().ok()?.len() != length + DIGEST as u64 {
        return None;
    }
    let (mut digest, mut bytes) = ([0; DIGEST], vec![0; length as usize]);
    file.read_exact(&mut digest).ok()?;
    file.read_exact(&mut bytes).ok()?;
    (blake3::hash(&bytes) == digest).then_some(bytes)
}

/// Keeps a block. A cache that cannot be written to costs time only.
pub(crate) fn put(object: &Object, range: &Range<u64>, bytes: &[u8]) {
    let Some((folder, limit)) = &settings().cache else { return };
    let Some(path) = path_of(folder, object, range) else { return };
    let size = (bytes.len() + DIGEST) as u64;
    if size > *limit {
        return;
    }
    static USED: Mutex<Option<u64>> = Mutex::new(None);
    // Held until the block is there: what another thread is about to write would not be counted.
    let mut used = USED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut total = used.unwrap_or_else(|| listed(folder).iter().map(|file| file.bytes).sum());
    if total + size > *limit {
        total = trim(folder, limit - size);
    }
    let written = write(&path, bytes).is_ok();
    *used = Some(if written { total + size } else { total });
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    let draft = path.with_extension(format!("{}-{:?}", std::process::id(), std::thread::current().id()));
    let mut file = File::create(&draft)?;
    file.write_all(blake3::hash(bytes).as_bytes())?;
    file.write_all(bytes)?;
    fs::rename(&draft, path)
}

/// The file of a block: named after the object, its version and the range. An object without a version has none.
fn path_of(folder: &Path, object: &Object, range: &Range<u64>) -> Option<PathBuf> {
    let version = serde_json::to_string(object.version.as_ref()?).ok()?;
    let mut hasher = blake3::Hasher::new();
    for text in [object.location.to_string_lossy().as_bytes(), version.as_bytes()] {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    for number in [object.length, range.start, range.end] {
        hasher.update(&number.to_le_bytes());
    }
    Some(folder.join(format!("{}.block", hasher.finalize().to_hex())))
}

struct CachedFile {
    used: SystemTime,
    path: PathBuf,
    bytes: u64,
}

/// The blocks in the folder. Other files in it are not ours.
fn listed(folder: &Path) -> Vec<CachedFile> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.filter_map(|entry| {
        let path = entry.path();
        let data = entry.metadata().ok().filter(|_| path.extension().is_some_and(|end| end == "block"))?;
        Some(CachedFile { used: data.modified().ok()?, path, bytes: data.len() })
    });
    files.collect()
}

/// Removes the blocks that were not used for longest until at most `limit` bytes are left, and a tenth less: this is
/// not done for every block. Returns what is left.
fn trim(folder: &Path, limit: u64) -> u64 {
    let mut files = listed(folder);
    files.sort_by_key(|file| file.used);
    let mut total: u64 = files.iter().map(|file| file.bytes).sum();
    for file in files {
        if total <= limit - limit / 10 {
            break;
        }
        if fs::remove_file(&file.path).is_ok() {
            total -= file.bytes;
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_block_is_none_and_the_oldest_go_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = |number: u32| folder.path().join(format!("{number}.block"));
        for number in 0..5 {
            write(&path(number), &vec![number as u8; 1000]).unwrap();
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(u64::from(number));
            File::options().write(true).open(path(number)).unwrap().set_modified(time).unwrap();
        }
        fs::write(folder.path().join("theirs"), vec![0; 9999]).unwrap();
        let open = |number| File::open(path(number)).unwrap();
        assert_eq!(read(&mut open(3), &(0..1000)).unwrap(), vec![3; 1000]);
        assert!(read(&mut open(3), &(0..999)).is_none());
        let mut bytes = fs::read(path(4)).unwrap();
        bytes[500] ^= 1;
        fs::write(path(4), bytes).unwrap();
        assert!(read(&mut open(4), &(0..1000)).is_none());
        assert!(trim(folder.path(), 3 * 1032) <= 3 * 1032);
        let left: Vec<u32> = (0..5).filter(|number| path(*number).exists()).collect();
        assert_eq!(left, [3, 4]);
        assert!(folder.path().join("theirs").exists());
    }
}

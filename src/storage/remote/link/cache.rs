//! An optional folder of blocks that were fetched before, each with its digest, and with a limit on all together.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::storage::regular_file;
use crate::storage::remote::http::object::Object;
use crate::storage::remote::settings::settings;

/// Bytes of a digest.
const DIGEST: usize = 32;

/// The block `range` of an object, if the cache has it intact. A damaged one is removed.
pub(crate) fn get(object: &Object, range: &Range<u64>) -> Option<Vec<u8>> {
    let (folder, _) = settings().cache.as_ref()?;
    let path = path_of(folder, object, range)?;
    let mut file = regular_file::open(&path).ok()?;
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
    let written = File::create_new(&draft).and_then(|mut file| {
        file.write_all(blake3::hash(bytes).as_bytes())?;
        file.write_all(bytes)
    });
    let written = written.and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        // On a full disk each block would leave one; and one of a process that had this number may lie there.
        let _ = fs::remove_file(&draft);
    }
    written
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

/// Whether a file is a block, or what a process that was killed has left of one. Other files are not ours.
fn is_ours(path: &Path) -> bool {
    let stem = path.file_stem().map(OsStr::as_encoded_bytes).unwrap_or_default();
    let is_named = stem.len() == 2 * DIGEST && stem.iter().all(u8::is_ascii_hexdigit);
    is_named && path.extension().is_some()
}

/// The blocks in the folder, and what was left of others: that is never used, and goes first.
fn listed(folder: &Path) -> Vec<CachedFile> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.filter_map(|entry| {
        let path = entry.path();
        let data = entry.metadata().ok().filter(|data| data.is_file() && is_ours(&path))?;
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
        let path = |number: u32| folder.path().join(format!("{number:064x}.block"));
        for number in 0..5 {
            write(&path(number), &vec![number as u8; 1000]).unwrap();
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(u64::from(number));
            File::options().write(true).open(path(number)).unwrap().set_modified(time).unwrap();
        }
        let theirs = ["theirs.block", "theirs"].map(|name| folder.path().join(name));
        theirs.iter().for_each(|path| fs::write(path, vec![0; 9999]).unwrap());
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
        assert!(theirs.iter().all(|path| path.exists()));
    }

    #[test]
    fn what_was_begun_is_not_left_and_counts() {
        let folder = tempfile::tempdir().unwrap();
        let block = folder.path().join(format!("{:064x}.block", 1));
        // A folder of the block's name: the last step fails, as every one may on a full disk.
        fs::create_dir(&block).unwrap();
        assert!(write(&block, &[1; 1000]).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        // What a killed process has left.
        let left = folder.path().join(format!("{:064x}.4711-ThreadId(3)", 2));
        fs::write(&left, [0; 5000]).unwrap();
        write(&folder.path().join(format!("{:064x}.block", 3)), &[3; 1000]).unwrap();
        assert_eq!(trim(folder.path(), 2000), 1032);
        assert!(!left.exists());
    }
}

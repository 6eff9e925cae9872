//! Direct I/O: writing a large file without the page cache.
//!
//! A file of many gigabytes that is not read soon should not be in the cache: it displaces other data, and each of its
//! pages is allocated, copied to and written back, which can cost more CPU time than computing its content. With
//! `O_DIRECT` the disk takes the bytes from our buffer while the next one is filled and hashed. On a file system
//! without direct writes the same code writes through the cache.

use std::fs::File;
use std::io::{self, Write};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};

/// Bytes that are written at a time.
const CHUNK: usize = 4 << 20;
/// Number of buffers: one is being filled, one is being written, one is ready in between.
const BUFFERS: usize = 3;
/// Alignment of positions, lengths and addresses of direct writes: at least the block size of any disk.
const ALIGNMENT: usize = 4096;

/// Memory in bytes for a file with direct writes.
pub const DIRECT_BYTES: u64 = (BUFFERS * (CHUNK + ALIGNMENT)) as u64;

/// A file that is written front to back and hashed.
#[derive(Debug)]
pub(crate) struct Direct {
    filling: Buffer,
    full: Sender<Buffer>,
    empty: Receiver<Buffer>,
    // None once its error is known.
    writer: Option<JoinHandle<io::Result<File>>>,
    hasher: blake3::Hasher,
    bytes: u64,
}

/// A buffer of `CHUNK` bytes at an aligned address, partly filled.
#[derive(Debug)]
struct Buffer {
    memory: Vec<u8>,
    start: usize,
    filled: usize,
}

impl Buffer {
    fn new() -> Buffer {
        let memory = vec![0; CHUNK + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Buffer { memory, start, filled: 0 }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.filled]
    }

    /// Takes as many of `bytes` as there is room for, and returns their number.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(CHUNK - self.filled);
        self.memory[self.start + self.filled..][..count].copy_from_slice(&bytes[..count]);
        self.filled += count;
        count
    }
}

impl Direct {
    /// Starts a thread that writes to the empty file `file`.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub(crate) fn over(file: File) -> io::Result<Direct> {
        let (full, to_write) = bounded::<Buffer>(BUFFERS);
        let (give_back, empty) = bounded(BUFFERS);
        for _ in 1..BUFFERS {
            // This cannot block: the channel has room for all buffers.
            let _ = give_back.send(Buffer::new());
        }
        let writer = thread::Builder::new().name("direct writer".to_owned()).spawn(move || {
            let mut file = file;
            let mut past_the_cache = set_direct(&file, true);
            for mut buffer in to_write {
                write(&mut file, buffer.bytes(), &mut past_the_cache)?;
                buffer.filled = 0;
                let _ = give_back.send(buffer);
            }
            Ok(file)
        })?;
        let hasher = blake3::Hasher::new();
        Ok(Direct { filling: Buffer::new(), full, empty, writer: Some(writer), hasher, bytes: 0 })
    }

    /// Writes the rest. Returns the file, its length and its checksum.
    ///
    /// # Errors
    /// A failed write, now or earlier.
    pub(crate) fn finish(mut self) -> io::Result<(File, u64, blake3::Hash)> {
        self.hasher.update(self.filling.bytes());
        // If the writer has ended, `outcome` returns its error.
        let _ = self.full.send(self.filling);
        drop(self.full);
        Ok((outcome(self.writer)?, self.bytes, self.hasher.finalize()))
    }

    /// Exchanges the full buffer for an empty one from the writer; `None` if the writer has ended.
    fn pass_on(&mut self) -> Option<()> {
        let full = std::mem::replace(&mut self.filling, self.empty.recv().ok()?);
        self.hasher.update(full.bytes());
        self.full.send(full).ok()
    }
}

impl Write for Direct {
    /// Takes some of `bytes`. A failed write may be reported a few writes later, or by [`finish`](Direct::finish).
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.filling.filled == CHUNK && self.pass_on().is_none() {
            return Err(outcome(self.writer.take()).err().unwrap_or_else(gone));
        }
        let taken = self.filling.take(bytes);
        self.bytes += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes all of `bytes` at the end of `file`.
fn write(file: &mut File, mut bytes: &[u8], past_the_cache: &mut bool) -> io::Result<()> {
    while !bytes.is_empty() {
        // The last bytes of a file, or the rest of a partial write to a disk that ran full.
        if *past_the_cache && !bytes.len().is_multiple_of(ALIGNMENT) {
            *past_the_cache = false;
            set_direct(file, false);
        }
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(taken) => bytes = &bytes[taken..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // Some file systems accept the flag and refuse the write.
            Err(e) if *past_the_cache && e.kind() == io::ErrorKind::InvalidInput => {
                *past_the_cache = false;
                set_direct(file, false);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The file, or the writer's error, once the writer has ended.
fn outcome(writer: Option<JoinHandle<io::Result<File>>>) -> io::Result<File> {
    writer.and_then(|writer| writer.join().ok()).unwrap_or_else(|| Err(gone()))
}

fn gone() -> io::Error {
    io::Error::other("the writer thread has ended")
}

/// Turns direct writes on or off, where they exist. Returns whether it succeeded.
#[cfg(target_os = "linux")]
fn set_direct(file: &File, on: bool) -> bool {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let set =
        |flags: OFlags| fcntl_setfl(file, if on { flags | OFlags::DIRECT } else { flags - OFlags::DIRECT });
    fcntl_getfl(file).and_then(set).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn set_direct(_: &File, _: bool) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    #[test]
    fn the_file_holds_what_was_given() {
        let folder = tempfile::tempdir().unwrap();
        for length in
            [0, 1, ALIGNMENT, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK, 6 * CHUNK + 3 * ALIGNMENT + 17]
        {
            let path = folder.path().join(length.to_string());
            let bytes: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let mut direct = Direct::over(File::create(&path).unwrap()).unwrap();
            bytes.chunks(1_000_003).for_each(|piece| direct.write_all(piece).unwrap());
            let (_, written, hash) = direct.finish().unwrap();
            assert_eq!((written, hash), (length as u64, blake3::hash(&bytes)));
            assert!(std::fs::read(&path).unwrap() == bytes, "{length}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_disks_own_error_is_reported() {
        let full = || Direct::over(OpenOptions::new().write(true).open("/dev/full").unwrap()).unwrap();
        let mut direct = full();
        let error = (0..2 * BUFFERS).find_map(|_| direct.write_all(&[0; CHUNK]).err()).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let mut direct = full();
        direct.write_all(b"little").unwrap();
        assert_eq!(direct.finish().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}

//! The factors of one finished module, on disk until the adapter is assembled.
//!
//! A shard has the contents of a safetensors file but another extension, so that a tool that globs for `*.safetensors`
//! does not take an unfinished run for a checkpoint.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::container::safetensors::layout;
use crate::container::safetensors::layout::Placed;
use crate::container::safetensors::writer::SafetensorsWriter;
use crate::durable::digest::{PIECE, Written, digest};
use crate::quant::weight::TensorInfo;
use crate::shared::Name;
use crate::storage::positioned::read_exact_at;
use crate::storage::regular_file;
use crate::{Error, Result};

/// The file name of a module's shard: 16 hex digits of the name's BLAKE3, because a module's own name may be longer
/// than a file system allows.
pub fn file_name(module: &str) -> String {
    format!("{}.shard", &blake3::hash(module.as_bytes()).to_hex()[..16])
}

/// Writes `tensors` and `metadata` to the shard `path`, durably. Their order does not change the bytes.
///
/// # Errors
/// A tensor given twice, or with more or fewer bytes than its shape has; a full disk.
pub fn write(
    path: &Path,
    tensors: &[(TensorInfo, &[u8])],
    metadata: &BTreeMap<String, String>,
) -> Result<Written> {
    let headers = tensors.iter().map(|(stored, _)| stored.clone()).collect();
    let mut writer = SafetensorsWriter::with_metadata(path, headers, metadata)?;
    let data: HashMap<&str, &[u8]> = tensors.iter().map(|(s, bytes)| (s.name.as_str(), *bytes)).collect();
    let order: Vec<Name> = writer.layout().iter().map(|t| t.stored.name.clone()).collect();
    for name in order {
        writer.put(&name, data.get(name.as_str()).copied().unwrap_or_default())?;
    }
    writer.finish()
}

/// An open shard whose digest has been checked. Any number of threads may read from it at once.
#[derive(Debug)]
pub struct Shard {
    file: File,
    path: PathBuf,
    tensors: BTreeMap<Name, Placed>,
    metadata: BTreeMap<String, String>,
}

impl Shard {
    /// Opens the shard `path` that was written as `expected`: reads it once to compare its digest, in fixed
    /// memory.
    ///
    /// # Errors
    /// [`Kind::Input`](crate::Kind::Input) when the shard is missing or is not what was written, so that its
    /// module has to be done again; [`Kind::Unexpected`](crate::Kind::Unexpected) when it cannot be read.
    pub fn open(path: &Path, expected: Written) -> Result<Shard> {
        let failed = |e: io::Error| Error::unexpected("cannot read the shard").path(path).because(e);
        let bad = |what: String| {
            Error::input(what)
                .path(path)
                .hint("run the same command again: the module will be computed again")
        };
        let file = regular_file::open(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => bad("the shard is missing".to_owned()),
            _ => failed(e),
        })?;
        let length = file.metadata().map_err(failed)?.len();
        // The cheap comparison first: a file that is too short need not be read.
        if length != expected.bytes {
            return Err(bad(format!("the shard is damaged: {length} bytes instead of {}", expected.bytes)));
        }
        let found = digest(&file, &|_| ()).map_err(failed)?;
        if found != expected {
            let (found, expected) = (found.blake3.to_hex(), expected.blake3.to_hex());
            return Err(bad(format!("the shard is damaged: its BLAKE3 is {found} instead of {expected}")));
        }
        io::Seek::rewind(&mut &file).map_err(failed)?;
        let header = layout::parse(&file, length).map_err(|e| e.path(path))?;
        let tensors = header.layout.into_iter().map(|t| (t.stored.name.clone(), t)).collect();
        Ok(Shard { file, path: path.to_path_buf(), tensors, metadata: header.metadata })
    }

    /// The shard's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The strings that were stored with the tensors.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = &Placed> {
        self.tensors.values()
    }

    /// The tensor `name` and its place in [`path`](Self::path).
    ///
    /// # Errors
    /// [`Kind::Input`](crate::Kind::Input) when the shard does not hold it.
    pub fn tensor(&self, name: &str) -> Result<&Placed> {
        self.tensors
            .get(name)
            .ok_or_else(|| Error::input("the shard holds no such tensor").tensor(name).path(&self.path))
    }

    /// Reads the bytes of the tensor `name` from `offset` on, as many as `out` holds.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor); a range beyond the tensor; what the file system refuses.
    pub fn read(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        let placed = self.tensor(name)?;
        let failed = |what: &str| Error::unexpected(what).tensor(name).path(&self.path);
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > placed.len()) {
            return Err(failed("a read beyond the end of the tensor"));
        }
        read_exact_at(&self.file, out, placed.range.start + offset)
            .map_err(|e| failed("cannot read from the shard").because(e))
    }

    /// Passes the bytes of the tensor `name` to `take`, in order, in pieces of at most 1 MiB.
    ///
    /// # Errors
    /// As [`read`](Self::read); what `take` returns.
    pub fn copy(&self, name: &str, take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.copy_first(name, self.tensor(name)?.len(), take)
    }

    /// The same with the first `length` bytes.
    ///
    /// # Errors
    /// Those of [`copy`](Self::copy).
    pub fn copy_first(
        &self,
        name: &str,
        length: u64,
        mut take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut piece = vec![0; PIECE.min(usize::try_from(length).unwrap_or(PIECE))];
        let mut offset = 0;
        while offset < length {
            let rest = length - offset;
            let part = usize::try_from(rest).map_or(piece.len(), |rest| rest.min(piece.len()));
            self.read(name, offset, &mut piece[..part])?;
            take(&piece[..part])?;
            offset += part as u64;
        }
        Ok(())
    }
}

//! The hidden states of all groups, in memory or, if memory is short, in an unnamed scratch file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::kernel::Activations;
use crate::storage::regular_file;
use crate::{Error, Result};

/// One matrix `[features, tokens]` per group.
#[derive(Debug)]
pub struct Hidden {
    features: usize,
    /// Tokens of each group.
    tokens: Vec<usize>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Memory(Vec<Vec<f32>>),
    Scratch(File),
}

impl Hidden {
    /// Zeros for groups with these numbers of tokens; in a file in the folder `scratch`, if given.
    ///
    /// # Errors
    /// The folder is not writable or has not enough space.
    pub fn zeros(features: usize, tokens: Vec<usize>, scratch: Option<&Path>) -> Result<Hidden> {
        let bytes: u64 = tokens.iter().map(|&tokens| (features * tokens * 4) as u64).sum();
        let place = match scratch {
            None => Place::Memory(tokens.iter().map(|tokens| vec![0.0; features * tokens]).collect()),
            Some(folder) => {
                let file = nameless(folder).and_then(|file| file.set_len(bytes).map(|()| file));
                Place::Scratch(file.map_err(|e| {
                    Error::unexpected(format!("cannot create a scratch file of {} MiB", bytes >> 20))
                        .path(folder)
                        .because(e)
                        .hint("a larger --memory keeps hidden states in memory")
                })?)
            }
        };
        Ok(Hidden { features, tokens, place })
    }

    /// The size of all hidden states in bytes.
    pub fn bytes(&self) -> u64 {
        self.tokens.iter().map(|tokens| (4 * self.features * tokens) as u64).sum()
    }

    /// A copy of one group's hidden states.
    ///
    /// # Errors
    /// The scratch file cannot be read.
    pub fn read(&self, group: usize) -> Result<Activations> {
        let mut copy = Activations::zeros(self.features, self.tokens[group]);
        match &self.place {
            Place::Memory(groups) => copy.values.copy_from_slice(&groups[group]),
            Place::Scratch(file) => {
                let bytes = bytemuck::cast_slice_mut(&mut copy.values);
                seek(file, self.offset(group)).and_then(|mut file| file.read_exact(bytes)).map_err(failed)?;
            }
        }
        Ok(copy)
    }

    /// Replaces one group's hidden states.
    ///
    /// # Errors
    /// The scratch file cannot be written.
    ///
    /// # Panics
    /// If the shape differs.
    pub fn write(&mut self, group: usize, values: &Activations) -> Result<()> {
        assert_eq!((values.features, values.tokens), (self.features, self.tokens[group]), "a group's states");
        let offset = self.offset(group);
        match &mut self.place {
            Place::Memory(groups) => groups[group].copy_from_slice(&values.values),
            Place::Scratch(file) => {
                let bytes = bytemuck::cast_slice(&values.values);
                seek(file, offset).and_then(|mut file| file.write_all(bytes)).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Copies some columns of a group into the columns of `out`, starting at column `first`.
    ///
    /// # Errors
    /// See [`read`](Self::read).
    pub fn gather(&self, group: usize, columns: &[usize], out: &mut Activations, first: usize) -> Result<()> {
        let copy;
        let values = match &self.place {
            Place::Memory(groups) => &groups[group],
            Place::Scratch(_) => {
                copy = self.read(group)?;
                &copy.values
            }
        };
        let (width, to) = (self.tokens[group], out.tokens);
        for (row, out) in values.chunks(width.max(1)).zip(out.values.chunks_mut(to.max(1))) {
            columns.iter().zip(&mut out[first..]).for_each(|(&column, out)| *out = row[column]);
        }
        Ok(())
    }

    /// Adds columns of `from`, starting at column `first` and each multiplied by its weight, to some columns of a
    /// group.
    ///
    /// # Errors
    /// See [`write`](Self::write).
    pub fn scatter(
        &mut self,
        group: usize,
        columns: &[(usize, f32)],
        from: &Activations,
        first: usize,
    ) -> Result<()> {
        let width = self.tokens[group];
        let add = |values: &mut [f32]| {
            for (row, from) in values.chunks_mut(width.max(1)).zip(from.values.chunks(from.tokens.max(1))) {
                let from = &from[first..];
                columns.iter().zip(from).for_each(|(&(column, weight), value)| row[column] += weight * value);
            }
        };
        if let Place::Memory(groups) = &mut self.place {
            add(&mut groups[group]);
            return Ok(());
        }
        let mut copy = self.read(group)?;
        add(&mut copy.values);
        self.write(group, &copy)
    }

    /// Sets all values to zero.
    ///
    /// # Errors
    /// See [`write`](Self::write).
    pub fn clear(&mut self) -> Result<()> {
        for group in 0..self.tokens.len() {
            self.write(group, &Activations::zeros(self.features, self.tokens[group]))?;
        }
        Ok(())
    }

    /// Writes all values to `out`, group by group.
    ///
    /// # Errors
    /// Any error from `out`.
    pub fn save(&self, out: &mut dyn Write) -> io::Result<()> {
        for group in 0..self.tokens.len() {
            let states = self.read(group).map_err(io::Error::other)?;
            out.write_all(bytemuck::cast_slice(&states.values))?;
        }
        Ok(())
    }

    /// Reads what [`save`](Self::save) wrote for groups of the same shape.
    ///
    /// # Errors
    /// A file that cannot be read or has another length.
    pub fn load(&mut self, path: &Path) -> Result<()> {
        let cannot = |e: io::Error| Error::unexpected("cannot read the hidden states").path(path).because(e);
        let mut file = regular_file::open(path).map_err(cannot)?;
        if file.metadata().map_err(cannot)?.len() != self.bytes() {
            return Err(Error::input("these hidden states belong to another text").path(path));
        }
        for group in 0..self.tokens.len() {
            let mut states = Activations::zeros(self.features, self.tokens[group]);
            file.read_exact(bytemuck::cast_slice_mut(&mut states.values)).map_err(cannot)?;
            self.write(group, &states)?;
        }
        Ok(())
    }

    fn offset(&self, group: usize) -> u64 {
        self.tokens[..group].iter().map(|tokens| (4 * self.features * tokens) as u64).sum()
    }
}

fn seek(file: &File, offset: u64) -> io::Result<&File> {
    let mut place = file;
    place.seek(SeekFrom::Start(offset)).map(|_| file)
}

fn failed(e: io::Error) -> Error {
    Error::unexpected("cannot use the scratch file of hidden states")
        .because(e)
        .hint("the disk may be full: free some space, or give a larger --memory")
}

/// A file that is deleted when it is closed.
fn nameless(folder: &Path) -> io::Result<File> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".tmp-scratch-{}-{count}", std::process::id()));
        match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
            Ok(file) => {
                fs::remove_file(&path)?;
                return Ok(file);
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_scratch_hold_the_same() {
        let folder = tempfile::tempdir().unwrap();
        for scratch in [None, Some(folder.path())] {
            let mut hidden = Hidden::zeros(3, vec![2, 0, 4], scratch).unwrap();
            let states = Activations { features: 3, tokens: 4, values: (0..12).map(|v| v as f32).collect() };
            hidden.write(2, &states).unwrap();
            assert_eq!(hidden.read(2).unwrap(), states);
            assert!(hidden.read(0).unwrap().values.iter().all(|v| *v == 0.0));
            let path = folder.path().join("saved");
            hidden.save(&mut File::create(&path).unwrap()).unwrap();
            hidden.clear().unwrap();
            assert_eq!(hidden.read(2).unwrap(), Activations::zeros(3, 4));
            hidden.load(&path).unwrap();
            assert_eq!(hidden.read(2).unwrap(), states);
            assert!(Hidden::zeros(2, vec![4], None).unwrap().load(&path).is_err());
            fs::remove_file(path).unwrap();
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the scratch file has no name");
    }
}

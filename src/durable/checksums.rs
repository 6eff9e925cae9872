//! `B3SUMS`: the digests of a folder's files, in the format of `b3sum` and `b3sum --check`.
//!
//! A line is 64 lowercase hex digits, two spaces, and the name relative to the folder, with `/` between its components.
//! A name with a backslash or a newline is escaped (`\\`, `\n`), and its line begins with a backslash.

use crate::durable::finding::{B3SUMS, FileEntry};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::durable::atomic_file;
use crate::durable::digest::Written;
use crate::durable::finding::{Finding, Problem};
use crate::durable::inside;
use crate::storage::regular_file;
use crate::{Error, Result};

/// The largest `B3SUMS` that is read, in bytes: a longer file is something else, and must not fill the memory.
const LONGEST: u64 = 256 << 20;

/// A parsed `B3SUMS`: its entries, and the errors in its text.
#[derive(Clone, Debug)]
pub struct Checksums {
    pub(crate) folder: PathBuf,
    pub(crate) entries: Vec<FileEntry>,
    pub(crate) findings: Vec<Finding>,
}

impl Checksums {
    /// Reads the `B3SUMS` of `folder`. Bad lines become findings, which [`verify`](Checksums::verify) reports. It opens
    /// no other file.
    ///
    /// # Errors
    /// [`Kind::Input`](crate::Kind::Input) if there is none; one that cannot be read.
    pub fn read(folder: &Path) -> Result<Checksums> {
        let path = folder.join(B3SUMS);
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory if !folder.is_dir() => {
                let what = if folder.exists() { "this is a file, not a folder" } else { "no such folder" };
                Error::input(what)
                    .path(folder)
                    .hint("give a folder with a B3SUMS, for example a command's --out")
            }
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                Error::input("the folder has no B3SUMS")
                    .path(folder)
                    .hint("only a folder with checksums can be verified; `b3sum * > B3SUMS` creates them")
            }
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                Error::input("the checksums cannot be read").path(&path).because(e)
            }
            _ => Error::unexpected("cannot read the checksums").path(&path).because(e),
        };
        Ok(parse(folder, &regular_file::read_within(&path, LONGEST).map_err(failed)?))
    }

    /// The listed files, each name once, in the order of the lines.
    pub fn entries(&self) -> &[FileEntry] {
        &self.entries
    }

    /// Total bytes of the listed files that exist, which [`verify`](Checksums::verify) will read.
    pub fn bytes(&self) -> u64 {
        let length =
            |e: &FileEntry| fs::metadata(self.folder.join(&e.name)).ok().filter(fs::Metadata::is_file);
        self.entries.iter().filter_map(length).map(|m| m.len()).sum()
    }
}

/// The checksums in `bytes`, for the files of `folder`.
pub(crate) fn parse(folder: &Path, bytes: &[u8]) -> Checksums {
    let mut sums = Checksums { folder: folder.to_path_buf(), entries: Vec::new(), findings: Vec::new() };
    let mut lines = BTreeMap::new();
    for (index, line) in bytes.split_inclusive(|&b| b == b'\n').enumerate() {
        let number = index + 1;
        let at =
            |problem, name: Option<&str>, detail: String| Finding::new(problem, name, Some(number), detail);
        match parse_line(line) {
            Err(why) => sums.findings.push(at(Problem::Malformed, None, why.to_owned())),
            Ok((name, _)) if !is_inside(&name) => {
                sums.findings.push(at(
                    Problem::Outside,
                    Some(&name),
                    "is not a name inside the folder".to_owned(),
                ));
            }
            Ok((name, blake3)) => match lines.insert(tidy(&name).to_owned(), number) {
                None => sums.entries.push(FileEntry { line: number, name, blake3 }),
                Some(first) => {
                    let why = format!("was listed before, in line {first}");
                    sums.findings.push(at(Problem::Duplicate, Some(&name), why));
                    lines.insert(tidy(&name).to_owned(), first);
                }
            },
        }
    }
    if bytes.is_empty() {
        let why = "lists nothing, so nothing was checked".to_owned();
        sums.findings.push(Finding::new(Problem::Empty, None, None, why));
    }
    sums
}

/// Parses a line with its newline. It is strict: a line that `b3sum` would not have written is refused, so that no
/// flipped bit passes.
fn parse_line(line: &[u8]) -> std::result::Result<(String, blake3::Hash), &'static str> {
    let line = std::str::from_utf8(line).map_err(|_| "is not UTF-8")?;
    let line = line.strip_suffix('\n').ok_or("has no newline at its end")?;
    if line.ends_with('\r') {
        return Err("ends with a carriage return: something has changed its ends of lines");
    }
    let (escaped, line) = line.strip_prefix('\\').map_or((false, line), |rest| (true, rest));
    let (digits, rest) = line.split_at_checked(64).ok_or("is too short")?;
    if !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err("does not begin with 64 lowercase hex digits");
    }
    let blake3 = blake3::Hash::from_hex(digits).map_err(|_| "does not begin with 64 hex digits")?;
    let name = rest.strip_prefix("  ").ok_or("has no two spaces after the digest")?;
    let name = if escaped { unescape(name).ok_or("has a wrong escape")? } else { name.to_owned() };
    if name.is_empty() {
        return Err("has no name");
    }
    // As in b3sum: the first ends a name early, the second replaces bytes that are not UTF-8.
    if name.contains(['\0', '\u{fffd}']) {
        return Err("has a character that no name can have");
    }
    Ok((name, blake3))
}

fn escape(name: &str) -> Option<String> {
    name.contains(['\\', '\n']).then(|| name.replace('\\', "\\\\").replace('\n', "\\n"))
}

fn unescape(text: &str) -> Option<String> {
    let (mut name, mut chars) = (String::with_capacity(text.len()), text.chars());
    while let Some(c) = chars.next() {
        name.push(match c {
            '\\' => match chars.next()? {
                '\\' => '\\',
                'n' => '\n',
                _ => return None,
            },
            c => c,
        });
    }
    Some(name)
}

/// Whether `name` by itself stays inside the folder: relative and without `..`. Links are followed.
fn is_inside(name: &str) -> bool {
    // `a//b` and `a/./b` are refused too: each file has one name. A leading `./` is what `b3sum ./*` writes.
    inside::is_inside(tidy(name))
}

/// The name without a leading `./`.
pub(crate) fn tidy(name: &str) -> &str {
    name.strip_prefix("./").unwrap_or(name)
}

/// Whether a `B3SUMS` can list a file of this name, relative to its folder.
pub(crate) fn can_be_listed(name: &str) -> bool {
    is_inside(name) && !name.contains(['\0', '\r', '\u{fffd}'])
}

/// Writes the `B3SUMS` of `folder`, sorted by name, durably.
///
/// # Errors
/// No files, a name that `B3SUMS` cannot hold or that leaves the folder; a full disk.
pub fn write(folder: &Path, files: &BTreeMap<String, blake3::Hash>) -> Result<Written> {
    let path = folder.join(B3SUMS);
    if let Some(name) = files.keys().find(|name| !can_be_listed(name) || *name == B3SUMS) {
        return Err(Error::unexpected(format!("checksums cannot list a file named {name:?}")).path(&path));
    }
    if files.is_empty() {
        return Err(Error::unexpected("there are no files to write checksums of").path(&path));
    }
    atomic_file::write(&path, |out| {
        files.iter().try_for_each(|(name, blake3)| match escape(name) {
            None => writeln!(out, "{}  {name}", blake3.to_hex()),
            Some(escaped) => writeln!(out, "\\{}  {escaped}", blake3.to_hex()),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_b3sum() {
        let home = tempfile::tempdir().unwrap();
        let hash = blake3::hash(b"");
        let names = ["z", "a b", "back\\slash", "new\nline", "sub/file"];
        let files: BTreeMap<_, _> = names.iter().map(|n| ((*n).to_owned(), hash)).collect();
        write(home.path(), &files).unwrap();
        let text = fs::read_to_string(home.path().join(B3SUMS)).unwrap();
        let h = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(
            text,
            format!("{h}  a b\n\\{h}  back\\\\slash\n\\{h}  new\\nline\n{h}  sub/file\n{h}  z\n")
        );
        let sums = Checksums::read(home.path()).unwrap();
        assert!(sums.findings.is_empty());
        let found: BTreeMap<_, _> = sums.entries.into_iter().map(|e| (e.name, e.blake3)).collect();
        assert_eq!(found, files);
    }

    #[test]
    fn names_that_leave_the_folder_are_not_written() {
        let home = tempfile::tempdir().unwrap();
        for name in ["/etc/passwd", "../up", "a/../../up", "", "a//b", "a/./b", "a/", "cr\r", "nul\0", B3SUMS]
        {
            let files = BTreeMap::from([(name.to_owned(), blake3::hash(b""))]);
            assert!(write(home.path(), &files).is_err(), "{name:?}");
        }
        assert!(write(home.path(), &BTreeMap::new()).is_err());
        assert!(!home.path().join(B3SUMS).exists());
    }
}

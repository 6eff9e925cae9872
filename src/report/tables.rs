//! Reads the tables that other commands wrote. Names in these files are untrusted; [`clean`] makes them safe to draw.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::commands::analyze::record::{ANALYSIS, ANALYSIS_VERSION, Analysis};
use crate::commands::autopsy::record::{AUTOPSY, AUTOPSY_VERSION, Autopsy};
use crate::commands::extract::output::files::{MANIFEST, SPECTRA};
use crate::commands::extract::output::manifest::{Manifest, Spectrum};
use crate::commands::fidelity::record::{FIDELITY, FIDELITY_VERSION, Fidelity};
use crate::delta::module_record::ModuleRecord;
use crate::report::plot::place::Spot;
use crate::report::words::clean;
use crate::storage::regular_file;
use crate::{Error, Result};

/// Bytes of one table above which it is none of ours: that of a mixture of 30,000 experts has some hundred megabytes.
const MOST: u64 = 1 << 30;

/// Unpacked bytes of the spectra above which they are none of ours.
const SPECTRA_BYTES: u64 = 1 << 30;

/// Bytes of one line of them: some thousand singular values.
const SPECTRUM_BYTES: u64 = 1 << 20;

/// Singular values in all lines together.
const SINGULAR_VALUES: usize = 48 << 20;

const OTHER_VERSION: &str = "write it again with this version, or make the report with that one";

/// Everything that a report is made from.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// The output of `extract`, in the order of the folders.
    pub adapters: Vec<Adapter>,
    /// The output of `fidelity`.
    pub fidelities: Vec<Labelled<Fidelity>>,
    /// The output of `analyze`.
    pub analyses: Vec<Labelled<Analysis>>,
    /// The output of `autopsy`.
    pub autopsies: Vec<Labelled<Autopsy>>,
    /// The label of each folder, and the files that were read from it.
    pub read: Vec<(String, Vec<&'static str>)>,
}

/// A table and its label in the report, which comes from its folder.
#[derive(Clone, Debug)]
pub struct Labelled<T> {
    /// The folder's label.
    pub label: String,
    /// The table.
    pub table: T,
}

/// The output of `extract` in one folder.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// Its label in the report.
    pub label: String,
    /// `extraction.json`.
    pub manifest: Option<Manifest>,
    /// `spectra.jsonl.zst`.
    pub spectra: Vec<Spectrum>,
}

impl Adapter {
    /// The modules whose delta was factorized, without those that only complete a fused set.
    pub fn modules(&self) -> impl Iterator<Item = &ModuleRecord> {
        self.manifest.iter().flat_map(|manifest| &manifest.modules).filter(|module| module.method != "none")
    }

    /// The spectra by kind of module.
    pub fn spectra_by_kind(&self) -> BTreeMap<String, Vec<&Spectrum>> {
        let mut kinds: BTreeMap<String, Vec<&Spectrum>> = BTreeMap::new();
        for spectrum in &self.spectra {
            kinds.entry(Spot::of(&spectrum.module).kind).or_default().push(spectrum);
        }
        kinds
    }

    /// The modules by kind.
    pub fn modules_by_kind(&self) -> BTreeMap<String, Vec<&ModuleRecord>> {
        let mut kinds: BTreeMap<String, Vec<&ModuleRecord>> = BTreeMap::new();
        for module in self.modules() {
            kinds.entry(Spot::of(&module.name).kind).or_default().push(module);
        }
        kinds
    }
}

impl Tables {
    /// Reads the tables in each folder.
    ///
    /// # Errors
    /// A folder without any of the files; a file that cannot be read; a file that another version wrote.
    pub fn read(folders: &[PathBuf]) -> Result<Tables> {
        let mut tables = Tables::default();
        for (folder, label) in folders.iter().zip(labels(folders)) {
            if !folder.is_dir() {
                let what = if folder.exists() { "not a folder" } else { "no such folder" };
                return Err(Error::input(what)
                    .path(folder)
                    .hint("give folders that extract, fidelity, analyze or autopsy wrote"));
            }
            let mut found = Vec::new();
            tables.read_extraction(folder, &label, &mut found)?;
            let place = (folder.as_path(), label.as_str());
            read_table(place, FIDELITY, FIDELITY_VERSION, &mut tables.fidelities, &mut found)?;
            read_table(place, ANALYSIS, ANALYSIS_VERSION, &mut tables.analyses, &mut found)?;
            read_table(place, AUTOPSY, AUTOPSY_VERSION, &mut tables.autopsies, &mut found)?;
            if found.is_empty() {
                return Err(nothing(folder));
            }
            tables.read.push((label, found));
        }
        Ok(tables)
    }

    fn read_extraction(&mut self, folder: &Path, label: &str, found: &mut Vec<&'static str>) -> Result<()> {
        let (manifest, spectra) = (folder.join(MANIFEST), folder.join(SPECTRA));
        let mut adapter = Adapter { label: label.to_owned(), manifest: None, spectra: Vec::new() };
        if manifest.exists() {
            adapter.manifest = Some(read_manifest(&manifest)?);
            found.push(MANIFEST);
        }
        if spectra.exists() {
            adapter.spectra = unpack_spectra(open(&spectra)?, &spectra)?;
            found.push(SPECTRA);
        }
        if manifest.exists() || spectra.exists() {
            self.adapters.push(adapter);
        }
        Ok(())
    }
}

/// Reads one table if the folder has it; refuses a table of another version.
fn read_table<T: DeserializeOwned>(
    (folder, label): (&Path, &str),
    name: &'static str,
    version: u32,
    tables: &mut Vec<Labelled<T>>,
    found: &mut Vec<&'static str>,
) -> Result<()> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
        trephine: String,
    }
    let path = folder.join(name);
    if !path.exists() {
        return Ok(());
    }
    let head: Head = read_json(&path)?;
    if head.version != version {
        let (by, ours) = (clean(&head.trephine), env!("CARGO_PKG_VERSION"));
        let what = format!(
            "{name} has version {}, written by trephine {by}; trephine {ours} reads version {version}",
            head.version
        );
        return Err(Error::input(what).path(path).hint(OTHER_VERSION));
    }
    tables.push(Labelled { label: label.to_owned(), table: read_json(&path)? });
    found.push(name);
    Ok(())
}

fn nothing(folder: &Path) -> Error {
    let files = [MANIFEST, SPECTRA, FIDELITY, ANALYSIS, AUTOPSY].join(", ");
    let error = Error::input(format!("nothing to report on: the folder has none of {files}")).path(folder);
    match folder.join(crate::run::layout::STATE).exists() {
        true => {
            error.hint("an extraction there is not finished: run the same extract again until it is done")
        }
        false => error.hint("give folders that extract, fidelity, analyze or autopsy wrote"),
    }
}

/// The last part of each path; the whole path as given if several have the same last part.
fn labels(folders: &[PathBuf]) -> Vec<String> {
    let last = |path: &PathBuf| {
        // `.` and `..` have no last part, but the folders they refer to do.
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        name.or_else(|| Some(path.canonicalize().ok()?.file_name()?.to_string_lossy().into_owned()))
    };
    let last: Vec<String> =
        folders.iter().map(|path| last(path).unwrap_or_else(|| path.display().to_string())).collect();
    let label = |(at, path): (usize, &PathBuf)| {
        let others = last.iter().filter(|other| **other == last[at]).count();
        clean(&if others > 1 { path.display().to_string() } else { last[at].clone() })
    };
    folders.iter().enumerate().map(label).collect()
}

fn open(path: &Path) -> Result<BufReader<File>> {
    let file = regular_file::open(path);
    let file = file.map_err(|e| Error::input("cannot open the file").path(path).because(e))?;
    Ok(BufReader::with_capacity(1 << 18, file))
}

/// Reads a JSON table. The error for an unreadable table names the version that wrote it, if the table has one.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let mut text = String::new();
    let e = |e| Error::input("cannot read the file").path(path).because(e);
    open(path)?.take(MOST).read_to_string(&mut text).map_err(e)?;
    serde_json::from_str(&text).map_err(|e| {
        #[derive(Deserialize)]
        struct Author {
            trephine: String,
        }
        let author = serde_json::from_str(&text).map(|author: Author| clean(&author.trephine));
        let by = author
            .map_or("not written by trephine".into(), |version| format!("written by trephine {version}"));
        let what = format!("the file cannot be read by trephine {} ({by})", env!("CARGO_PKG_VERSION"));
        Error::input(what).path(path).because(e).hint(OTHER_VERSION)
    })
}

fn read_manifest(path: &Path) -> Result<Manifest> {
    let manifest: Manifest = read_json(path)?;
    // Before 1.0, the second number determines compatibility.
    let line =
        |version: &str| version.split('.').take(2).map(|n| n.parse().ok()).collect::<Option<Vec<u64>>>();
    if line(&manifest.trephine).is_none_or(|theirs| line(env!("CARGO_PKG_VERSION")) < Some(theirs)) {
        let (theirs, ours) = (clean(&manifest.trephine), env!("CARGO_PKG_VERSION"));
        return Err(Error::input(format!("written by trephine {theirs}, which trephine {ours} cannot read"))
            .path(path)
            .hint(OTHER_VERSION));
    }
    Ok(manifest)
}

/// The spectra in packed form, as far as `packed` goes. `path` is for messages.
///
/// # Errors
/// [`Kind::Input`](crate::Kind::Input) for what is damaged, or more than any extraction has.
pub(crate) fn unpack_spectra(packed: impl BufRead, path: &Path) -> Result<Vec<Spectrum>> {
    let bad = |e: std::io::Error| Error::input("cannot read the spectra").path(path).because(e);
    let decoder = zstd::Decoder::with_buffer(packed).map_err(bad)?;
    // One byte more than is allowed tells that there is more.
    let mut reader = BufReader::new(decoder.take(SPECTRA_BYTES + 1));
    let (mut spectra, mut line, mut total, mut values) = (Vec::new(), Vec::new(), 0, 0);
    loop {
        line.clear();
        let taken =
            reader.by_ref().take(SPECTRUM_BYTES + 1).read_until(b'\n', &mut line).map_err(bad)? as u64;
        total += taken;
        let number = spectra.len() + 1;
        let long = |what: String| Error::input(what).path(path).hint("this was hardly written by trephine");
        if taken > SPECTRUM_BYTES {
            let what = format!("line {number} of the spectra has more than {SPECTRUM_BYTES} bytes");
            return Err(long(what));
        }
        if total > SPECTRA_BYTES {
            return Err(long(format!("the spectra have more than {SPECTRA_BYTES} bytes")));
        }
        if taken == 0 {
            return Ok(spectra);
        }
        let spectrum: Spectrum = serde_json::from_slice(&line).map_err(|e| {
            Error::input(format!("line {number} of the spectra cannot be read")).path(path).because(e)
        })?;
        values += spectrum.singular_values.len();
        if values > SINGULAR_VALUES {
            return Err(long(format!("the spectra have more than {SINGULAR_VALUES} singular values")));
        }
        spectra.push(spectrum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_called_by_what_tells_them_apart() {
        let paths = |paths: &[&str]| labels(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(paths(&["runs/a", "runs/b/"]), ["a", "b"]);
        assert_eq!(paths(&["one/a", "two/a", "b"]), ["one/a", "two/a", "b"]);
        assert_eq!(
            paths(&["."]),
            [Path::new(".").canonicalize().unwrap().file_name().unwrap().to_str().unwrap()]
        );
    }
}

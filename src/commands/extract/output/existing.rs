//! A finished run in the output folder: whether it is this run's, and still as it was.

use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use crate::commands::extract::attempts::completed::check_touched;

use crate::commands::extract::output::files::{FILES, MANIFEST};
use crate::commands::extract::output::manifest::Manifest;
use crate::commands::extract::plan::Inputs;
use crate::commands::extract::run_identity::Begin;
use crate::delta::record::Side;
use crate::durable::checksums::Checksums;
use crate::durable::finding::Level;
use crate::run::identity::changed;
use crate::run::layout::LOG;
use crate::{Error, Result};

/// A folder with checksums was whole; it is this run's if its manifest says so, and still whole if its files agree.
///
/// # Errors
/// A run of other inputs or options; a file that was removed or damaged since; a checkpoint that was changed since.
pub fn finished(out: &Path, begin: &Begin, inputs: &Inputs, other_simd: bool) -> Result<Manifest> {
    let (path, manifest) = (out.join(MANIFEST), manifest(out)?);
    let before = Begin {
        trephine: manifest.trephine.clone(),
        options: manifest.options.clone(),
        simd: manifest.simd.clone(),
        inputs: manifest.inputs.clone(),
    };
    if let Some(text) = begin.difference(&before, other_simd) {
        return Err(changed(out, &text));
    }
    check_whole(out)?;
    check_touched(inputs, &written_since(begin, &path), manifest.tensors.iter(), out)?;
    Ok(manifest)
}

/// The manifest of whatever finished run is in `out`, if that is still as it was.
///
/// # Errors
/// No run's manifest; a file that was removed or damaged since.
pub fn whole(out: &Path) -> Result<Manifest> {
    let manifest = manifest(out)?;
    check_whole(out)?;
    Ok(manifest)
}

/// The manifest in `out`.
///
/// # Errors
/// None, or one that cannot be read.
pub fn manifest(out: &Path) -> Result<Manifest> {
    let path = out.join(MANIFEST);
    let text = fs::read_to_string(&path).map_err(|e| {
        Error::decide("the folder holds checksums, but no run's")
            .path(&path)
            .because(e)
            .hint("give the folder that --out of `trephine extract` named")
    })?;
    serde_json::from_str(&text).map_err(|e| {
        Error::input("the manifest of the finished run cannot be read")
            .path(&path)
            .because(e)
            .hint("--overwrite starts anew")
    })
}

/// A file of a finished run may have been removed or damaged since.
fn check_whole(out: &Path) -> Result<()> {
    let damaged = |what: String| {
        Error::decide(format!("the folder holds a finished run that is no longer whole: {what}"))
            .path(out)
            .hint("give another --out, or --overwrite to start anew")
    };
    let checksums = Checksums::read(out)?;
    let listed = |file: &str| checksums.entries().iter().any(|entry| entry.name == file);
    if let Some(file) = FILES[..5].iter().find(|file| !listed(file)) {
        return Err(damaged(format!("its checksums do not list {file}")));
    }
    let found = checksums.verify(&[LOG], &|_| ()).findings.into_iter().find(|f| f.level == Level::Error);
    found.map_or(Ok(()), |finding| Err(damaged(finding.to_string())))
}

/// Files of the checkpoints that were written to after the run had ended with its manifest.
fn written_since(begin: &Begin, manifest: &Path) -> Vec<(Side, String)> {
    let ended = fs::metadata(manifest).and_then(|data| data.modified()).ok();
    let ended = ended.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_nanos());
    let files = begin.inputs.iter().flat_map(|(side, now)| now.files.iter().map(|file| (*side, file)));
    let later = files.filter(|(_, file)| file.modified.map(u128::from) >= ended);
    later.map(|(side, file)| (side, file.name.clone())).collect()
}

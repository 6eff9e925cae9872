//! Turns the tables that other commands wrote into plots and one self-contained page.
//!
//! A figure is a value: axes and marks in the units of the data, one line that says what to look for, and tables
//! with the numbers. Plotters draws the marks as SVG; maud writes the page, with every name escaped. The page has
//! no script and loads nothing; its content security policy says so, and browsers enforce it. The same tables
//! give the same bytes.

pub mod figures;
pub(crate) mod page;
pub mod plot;
pub(crate) mod served;
pub(crate) mod summary;
pub(crate) mod tables;
pub(crate) mod words;
pub use self::summary::{AdapterSummary, AnalysisSummary, AutopsySummary, Remaining, ServedSummary, Summary};

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::durable::{atomic_file, folder};
use crate::report::plot::draw::Picture;
use crate::report::tables::Tables;
use crate::{Error, Result};

/// What to report on, and where to write it.
#[derive(Clone, Debug)]
pub struct Report {
    /// Folders that hold any of the tables.
    pub folders: Vec<PathBuf>,
    /// The HTML file to write.
    pub out: PathBuf,
    /// A folder for the plots as separate SVG files.
    pub svg: Option<PathBuf>,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Reported {
    /// The summary at the top of the page.
    pub summary: Summary,
    /// Size of the page in bytes.
    pub bytes: u64,
    /// The plots that were written as files.
    pub plots: Vec<PathBuf>,
}

/// Writes a report.
///
/// # Errors
/// A folder with none of the tables, a table that cannot be read or that another version wrote, a failing disk.
/// [`Kind::Decide`](crate::Kind::Decide) if `out` exists and is not a report.
pub fn report(job: &Report) -> Result<Reported> {
    refuse_foreign(&job.out)?;
    let tables = Tables::read(&job.folders)?;
    let (summary, figures) = (Summary::of(&tables), figures::all(&tables));
    let pictures =
        figures.iter().map(|figure| figure.plots.iter().map(Picture::of).collect::<Result<Vec<_>>>());
    let pictures = pictures.collect::<Result<Vec<_>>>()?;
    let page = page::page(&tables, &summary, &figures, &pictures);
    folder::create(folder::parent(&job.out))?;
    let bytes = write(&job.out, &page)?;
    let mut plots = Vec::new();
    if let Some(svg) = &job.svg {
        folder::create(svg)?;
        for (figure, pictures) in figures.iter().zip(&pictures) {
            for (plot, picture) in figure.plots.iter().zip(pictures) {
                let path = svg.join(format!("{}.svg", plot.id));
                write(&path, &picture.file(plot, &figure.see))?;
                plots.push(path);
            }
        }
    }
    Ok(Reported { summary, bytes, plots })
}

/// Refuses to replace anything but an earlier report or an empty file: a slip such as
/// `--out adapter_model.safetensors` must cost nothing.
fn refuse_foreign(out: &Path) -> Result<()> {
    let refused =
        |what: &str| Err(Error::decide(what).path(out).hint("give another --out; nothing was changed"));
    match fs::metadata(out) {
        Err(_) => return Ok(()),
        Ok(data) if data.is_dir() => return refused("the page must be a file, but this is a folder"),
        Ok(data) if !data.is_file() => {
            return refused("the page must be a regular file, but this is not one");
        }
        Ok(_) => {}
    }
    let mut start = Vec::new();
    match File::open(out).and_then(|file| file.take(1024).read_to_end(&mut start)) {
        Err(e) => Err(Error::decide("the existing file cannot be read")
            .path(out)
            .because(e)
            .hint("give another --out")),
        Ok(0) => Ok(()),
        Ok(_) if page::is_page(&start) => Ok(()),
        Ok(_) => refused("the existing file is not a report"),
    }
}

fn write(path: &Path, text: &str) -> Result<u64> {
    Ok(atomic_file::write(path, |file| file.write_all(text.as_bytes()))?.bytes)
}

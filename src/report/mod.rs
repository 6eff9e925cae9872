//! From the tables that the other commands wrote to plots, and to one page that needs nothing but itself.
//!
//! A figure is a value: axes and marks in the units of the data, the one line that says what to see, and
//! tables with the numbers. Plotters draws the marks as SVG; maud writes the page, with every name escaped. The page has no
//! script, loads nothing and says so by its content security policy, which a browser holds it to. The same tables give the same
//! bytes.

mod axis;
mod draw;
mod figures;
mod legend;
mod page;
mod palette;
mod place;
mod plot;
mod served;
mod summary;
mod tables;
mod words;

pub use summary::{AdapterSummary, AnalysisSummary, AutopsySummary, Remaining, ServedSummary, Summary};

use std::path::{Path, PathBuf};

use self::draw::Picture;
use self::tables::Tables;
use crate::Result;
use crate::ledger::{durable, folder};

/// What to draw from, and where to.
#[derive(Clone, Debug)]
pub struct Report {
    /// Folders that hold any of the tables.
    pub folders: Vec<PathBuf>,
    /// The page.
    pub out: PathBuf,
    /// A folder for every plot as a file of its own.
    pub svg: Option<PathBuf>,
}

/// What was drawn.
#[derive(Clone, Debug)]
pub struct Reported {
    /// What the page says at its top.
    pub summary: Summary,
    /// Bytes of the page.
    pub bytes: u64,
    /// The plots that were written as files.
    pub plots: Vec<PathBuf>,
}

/// Draws a report.
///
/// # Errors
/// A folder with none of the tables, a table that cannot be read or that another version wrote, a failing disk.
pub fn report(job: &Report) -> Result<Reported> {
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

fn write(path: &Path, text: &str) -> Result<u64> {
    Ok(durable::write(path, |file| file.write_all(text.as_bytes()))?.bytes)
}

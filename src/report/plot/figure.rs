//! A plot as a value: axes and marks in the units of the data. [`draw`](super::draw) draws it.

use crate::report::plot::axis::Axis;
use crate::report::plot::palette::Colour;

/// A point in the units of the data.
pub type Point = (f64, f64);

/// A mark in a plot; marks are drawn from back to front.
#[derive(Clone, Debug, PartialEq)]
pub enum Mark {
    /// A line through points.
    Line {
        /// The points.
        points: Vec<Point>,
        /// Its colour.
        colour: Colour,
        /// Whether it is dashed, for values that are bounds or have not converged.
        dashed: bool,
    },
    /// The area between two lines.
    Band {
        /// `x`, lower and upper `y`.
        points: Vec<(f64, f64, f64)>,
        /// Its colour, drawn faintly.
        colour: Colour,
    },
    /// Points.
    Dots {
        /// The points.
        points: Vec<Point>,
        /// Their colour.
        colour: Colour,
        /// Whether to draw rings instead of dots.
        hollow: bool,
    },
    /// A filled rectangle between two corners.
    Cell {
        /// The corners.
        corners: [Point; 2],
        /// Its colour.
        colour: Colour,
    },
    /// A vertical line through the whole plot.
    Upright {
        /// Its position.
        x: f64,
        /// Its colour.
        colour: Colour,
    },
    /// A short text centred on a point.
    Text {
        /// The point.
        at: Point,
        /// The text.
        text: String,
        /// Their colour.
        colour: Colour,
    },
}

/// The symbol of a legend entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swatch {
    /// A line.
    Line,
    /// A dashed line.
    Dashed,
    /// A dot.
    Dot,
    /// A ring.
    Ring,
    /// A faint area.
    Area,
}

/// The legend: what the colours mean.
#[derive(Clone, Debug, PartialEq)]
pub enum Legend {
    /// Named entries.
    Keys(Vec<(Swatch, Colour, String)>),
    /// A colour ramp: the name of its quantity, and the values at its ends.
    Ramp(String, [String; 2]),
}

/// One plot.
#[derive(Clone, Debug, PartialEq)]
pub struct Plot {
    /// A unique id of letters, digits and dashes.
    pub id: String,
    /// Its title.
    pub title: String,
    /// Height in pixels, for a width of [`WIDTH`].
    pub height: u32,
    /// The horizontal axis, below the plot.
    pub x: Axis,
    /// The vertical axis, on the left.
    pub y: Axis,
    /// The legend.
    pub legend: Legend,
    /// The marks.
    pub marks: Vec<Mark>,
}

/// Width of every plot in pixels: that of a phone, so that text keeps its size there.
pub const WIDTH: u32 = 360;

/// A table beneath a plot.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The caption.
    pub caption: String,
    /// Number of leading columns that contain words; the others contain numbers.
    pub words: usize,
    /// The headings.
    pub headings: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<String>>,
}

/// Plots on one subject, what to look for in them, and their numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// A unique id.
    pub id: String,
    /// Its title.
    pub title: String,
    /// What to look for, in one line.
    pub see: String,
    /// The plots.
    pub plots: Vec<Plot>,
    /// Further notes needed to read it.
    pub notes: Vec<String>,
    /// Tables with the numbers.
    pub tables: Vec<Table>,
}

//! A plot as a value: axes and marks, in the units of the data. How it is drawn is [`draw`](super::draw)'s matter.

use crate::report::plot::axis::Axis;
use crate::report::plot::palette::Colour;

/// A point in the units of the data.
pub type Point = (f64, f64);

/// What stands in a plot, from the back to the front.
#[derive(Clone, Debug, PartialEq)]
pub enum Mark {
    /// A line through points.
    Line {
        /// The points.
        points: Vec<Point>,
        /// Its colour.
        colour: Colour,
        /// Dashed: for values that are bounds or have not converged.
        dashed: bool,
    },
    /// What lies between two lines.
    Band {
        /// `x`, lower and upper `y`.
        points: Vec<(f64, f64, f64)>,
        /// Its colour, which is drawn faint.
        colour: Colour,
    },
    /// Points.
    Dots {
        /// The points.
        points: Vec<Point>,
        /// Their colour.
        colour: Colour,
        /// Rings instead.
        hollow: bool,
    },
    /// A filled rectangle between two corners.
    Cell {
        /// The corners.
        corners: [Point; 2],
        /// Its colour.
        colour: Colour,
    },
    /// A line through the whole plot, at `x`.
    Upright {
        /// Where.
        x: f64,
        /// Its colour.
        colour: Colour,
    },
    /// A few letters around a point.
    Text {
        /// Where.
        at: Point,
        /// The letters.
        text: String,
        /// Their colour.
        colour: Colour,
    },
}

/// How a line of the legend shows what it names.
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

/// What the colours mean.
#[derive(Clone, Debug, PartialEq)]
pub enum Legend {
    /// Names.
    Keys(Vec<(Swatch, Colour, String)>),
    /// A ramp from the first number to the second; the name says of what.
    Ramp(String, [String; 2]),
}

/// One plot.
#[derive(Clone, Debug, PartialEq)]
pub struct Plot {
    /// Distinguishes it from every other; letters, digits and dashes.
    pub id: String,
    /// Its title.
    pub title: String,
    /// Height in pixels beside a width of [`WIDTH`].
    pub height: u32,
    /// The axis below.
    pub x: Axis,
    /// The axis at the left.
    pub y: Axis,
    /// What the colours mean.
    pub legend: Legend,
    /// What it shows.
    pub marks: Vec<Mark>,
}

/// Width of every plot in pixels: that of a phone, so that letters keep their size there.
pub const WIDTH: u32 = 360;

/// A table beneath a plot.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// What it shows.
    pub caption: String,
    /// How many columns hold words; those behind hold numbers.
    pub words: usize,
    /// The headings.
    pub headings: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<String>>,
}

/// Plots that show one thing, what to see in them, and their numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Distinguishes it from every other.
    pub id: String,
    /// Its title.
    pub title: String,
    /// What to see in it, in one line.
    pub see: String,
    /// The plots.
    pub plots: Vec<Plot>,
    /// What else must be known to read it.
    pub notes: Vec<String>,
    /// The numbers.
    pub tables: Vec<Table>,
}

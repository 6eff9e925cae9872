//! How lines and letters look, whatever they draw.

use crate::report::plot::palette;
use crate::report::plot::palette::Colour;
use plotters::coord::Shift;
use plotters::prelude::*;

/// Units of the drawing to a pixel.
pub const FINE: i32 = 10;

/// Height of letters in pixels.
pub const LETTERS: f64 = 11.0;

/// Their mean width, estimated from above: which font shows them is not known.
pub const LETTER_WIDTH: i32 = 6;

/// The sheet a plot is drawn on.
pub type Sheet<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// How drawing fails: never, into memory.
pub type Drawn<'a> =
    std::result::Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

/// For plotters.
pub fn rgb((r, g, b): Colour) -> RGBColor {
    RGBColor(r, g, b)
}

/// Letters of so many pixels.
pub fn letters(pixels: f64, colour: Colour) -> TextStyle<'static> {
    coloured(("sans-serif", size_of(pixels)).into_font(), colour)
}

pub(crate) fn coloured(font: FontDesc<'static>, colour: Colour) -> TextStyle<'static> {
    TextStyle { color: rgb(colour).to_backend_color(), ..TextStyle::from(font) }
}

/// The backend divides by 1.24.
pub(crate) fn size_of(pixels: f64) -> f64 {
    1.24 * pixels * f64::from(FINE)
}

/// A style of lines of so many tenths of a pixel.
pub fn stroke(colour: Colour, tenths: u32) -> ShapeStyle {
    ShapeStyle { color: rgb(colour).to_rgba(), filled: false, stroke_width: tenths * FINE as u32 / 10 }
}

/// The share of the ramp as a colour, for the legend.
pub fn ramp(share: f64) -> RGBColor {
    rgb(palette::ramp(share))
}

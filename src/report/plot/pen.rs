//! Styles of lines and text.

use crate::report::plot::palette;
use crate::report::plot::palette::Colour;
use plotters::coord::Shift;
use plotters::prelude::*;

/// Drawing units per pixel.
pub const FINE: i32 = 10;

/// Text height in pixels.
pub const LETTERS: f64 = 11.0;

/// Upper estimate of the mean character width; the font is not known.
pub const LETTER_WIDTH: i32 = 6;

/// The sheet a plot is drawn on.
pub type Sheet<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The error of drawing, which never occurs in memory.
pub type Drawn<'a> =
    std::result::Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

/// A colour as plotters takes it.
pub fn rgb((r, g, b): Colour) -> RGBColor {
    RGBColor(r, g, b)
}

/// A text style with this height in pixels.
pub fn letters(pixels: f64, colour: Colour) -> TextStyle<'static> {
    coloured(("sans-serif", size_of(pixels)).into_font(), colour)
}

pub(crate) fn coloured(font: FontDesc<'static>, colour: Colour) -> TextStyle<'static> {
    TextStyle { color: rgb(colour).to_backend_color(), ..TextStyle::from(font) }
}

/// The font size for a height in pixels; the backend divides by 1.24.
pub(crate) fn size_of(pixels: f64) -> f64 {
    1.24 * pixels * f64::from(FINE)
}

/// A line style with this width in tenths of a pixel.
pub fn stroke(colour: Colour, tenths: u32) -> ShapeStyle {
    ShapeStyle { color: rgb(colour).to_rgba(), filled: false, stroke_width: tenths * FINE as u32 / 10 }
}

/// The ramp's colour at `share`, for the legend.
pub fn ramp(share: f64) -> RGBColor {
    rgb(palette::ramp(share))
}

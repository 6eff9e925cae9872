//! Figures as values, and how they are drawn: axes, marks, legend, palette.

pub(crate) mod axis;
pub(crate) mod draw;
pub(crate) mod figure;
pub(crate) mod legend;
pub(crate) mod palette;
pub(crate) mod pen;
pub(crate) mod place;

//! The quality of factors over every kind of spectrum.

mod quality;
mod spectra;
mod weighted;

//! The quality of factors over every kind of spectrum.

mod backends;
mod precision;
mod quality;
mod spectra;
mod weighted;

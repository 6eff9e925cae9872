//! The quality of factors over every kind of spectrum.

mod backends;
mod quality;
mod spectra;

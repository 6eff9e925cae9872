//! The statistics behind an analysis: sums over noise and change, subspaces, significance, random matrix theory.

pub mod marchenko_pastur;
pub mod noise_sums;
pub mod significance;
pub mod subspace;

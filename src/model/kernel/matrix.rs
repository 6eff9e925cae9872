//! The values of several features for several tokens.

use std::ops::Range;

/// A matrix `[features, tokens]`, row-major.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Activations {
    /// The number of rows.
    pub features: usize,
    /// The number of columns.
    pub tokens: usize,
    /// `features * tokens` values.
    pub values: Vec<f32>,
}

impl Activations {
    /// A matrix of zeros.
    pub fn zeros(features: usize, tokens: usize) -> Activations {
        Activations { features, tokens, values: vec![0.0; features * tokens] }
    }

    /// The values of one feature.
    pub fn row(&self, feature: usize) -> &[f32] {
        &self.values[feature * self.tokens..][..self.tokens]
    }

    /// The values of some features.
    pub fn rows(&self, features: Range<usize>) -> &[f32] {
        &self.values[features.start * self.tokens..features.end * self.tokens]
    }

    /// Keeps only the first features.
    pub fn truncate(&mut self, features: usize) {
        self.features = features.min(self.features);
        self.values.truncate(self.features * self.tokens);
    }

    /// Adds another matrix of the same shape.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn add(&mut self, other: &Activations) {
        assert_eq!((self.features, self.tokens), (other.features, other.tokens), "shapes of a sum");
        self.values.iter_mut().zip(&other.values).for_each(|(to, more)| *to += more);
    }
}

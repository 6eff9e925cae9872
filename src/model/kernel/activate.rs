//! The activation of a gated MLP.

use super::super::decoder::Activation;
use super::Activations;

/// `gate = act(gate) · up`, element by element.
///
/// # Panics
/// If the shapes differ.
pub fn gate(gate: &mut [f32], up: &[f32], activation: Activation) {
    assert_eq!(gate.len(), up.len(), "shapes of gate and up");
    match activation {
        Activation::Silu => gate.iter_mut().zip(up).for_each(|(g, u)| *g = *g / (1.0 + (-*g).exp()) * u),
        Activation::GeluTanh => gate.iter_mut().zip(up).for_each(|(g, u)| *g = gelu(*g) * u),
    }
}

/// GELU (Hendrycks and Gimpel 2016) in its tanh approximation.
fn gelu(x: f32) -> f32 {
    const ROOT: f32 = 0.797_884_6;
    0.5 * x * (1.0 + (ROOT * (x + 0.044_715 * x * x * x)).tanh())
}

impl Activations {
    /// Replaces the gate and up of a fused product, one above the other, by `act(gate) · up`.
    ///
    /// # Panics
    /// If the number of rows is odd.
    pub fn gate_halves(&mut self, activation: Activation) {
        assert!(self.features.is_multiple_of(2), "gate and up of {} rows", self.features);
        let half = self.features / 2;
        let (first, second) = self.values.split_at_mut(half * self.tokens);
        gate(first, second, activation);
        self.truncate(half);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_have_their_published_values() {
        let mut values = [0.0, 1.0, -2.0, 3.0];
        gate(&mut values, &[1.0; 4], Activation::Silu);
        let silu = [0.0, 0.731_058_6, -0.238_405_84, 2.857_722_3];
        assert!(values.iter().zip(silu).all(|(a, b)| (a - b).abs() < 1e-6), "{values:?}");
        let mut values = [0.0, 1.0, -2.0, 3.0];
        gate(&mut values, &[1.0, 1.0, 1.0, 2.0], Activation::GeluTanh);
        let gelu = [0.0, 0.841_192, -0.045_402_3, 5.992_725];
        assert!(values.iter().zip(gelu).all(|(a, b)| (a - b).abs() < 1e-5), "{values:?}");
    }
}

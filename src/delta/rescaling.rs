//! Factors of the rows and columns of the tuned side, which bring it to where the base's scales were folded.

use std::ops::Range;

/// What the tuned weight is multiplied by before the base is subtracted: `diag(rows) · W_t · diag(columns)`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rescaling {
    /// One factor for each column; empty for none.
    pub columns: Vec<f32>,
    /// One factor for each row; empty for none.
    pub rows: Vec<f32>,
}

impl Rescaling {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty() && self.rows.is_empty()
    }

    /// Multiplies `rows` of a weight of `columns` columns in place: first by the columns' factors, then by the row's.
    pub(crate) fn apply(&self, rows: Range<usize>, columns: usize, values: &mut [f32]) {
        for (row, line) in rows.zip(values.chunks_exact_mut(columns.max(1))) {
            line.iter_mut().zip(&self.columns).for_each(|(value, factor)| *value *= factor);
            if let Some(factor) = self.rows.get(row) {
                line.iter_mut().for_each(|value| *value *= factor);
            }
        }
    }

    /// The same in f64.
    pub(crate) fn apply_f64(&self, rows: Range<usize>, columns: usize, values: &mut [f64]) {
        for (row, line) in rows.zip(values.chunks_exact_mut(columns.max(1))) {
            line.iter_mut().zip(&self.columns).for_each(|(value, factor)| *value *= f64::from(*factor));
            if let Some(factor) = self.rows.get(row) {
                line.iter_mut().for_each(|value| *value *= f64::from(*factor));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Rescaling;

    #[test]
    fn columns_then_rows() {
        let rescaling = Rescaling { columns: vec![2.0, 3.0], rows: vec![1.0, 10.0, 100.0] };
        let mut values = [1.0, 1.0, 1.0, 2.0];
        rescaling.apply(1..3, 2, &mut values);
        assert_eq!(values, [20.0, 30.0, 200.0, 600.0]);
        let mut wide = [1.0, 1.0];
        rescaling.apply_f64(0..1, 2, &mut wide);
        assert_eq!(wide, [2.0, 3.0]);
        assert!(Rescaling::default().is_empty() && !rescaling.is_empty());
    }
}

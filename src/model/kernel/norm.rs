//! Root-mean-square norms (Zhang and Sennrich 2019).

use super::Activations;

/// Norms each run of `weight.len()` rows separately, column by column: one run for the residual stream, one per head
/// for norms of queries and keys. Row `j` of a run is scaled by `weight[j]`. Mean squares are summed in f64.
///
/// # Panics
/// If the rows are not a whole number of runs.
pub fn rms_norm(x: &mut Activations, weight: &[f32], eps: f64) {
    let (width, tokens) = (weight.len(), x.tokens);
    assert!(x.features.is_multiple_of(width), "{} rows in runs of {width}", x.features);
    let mut sums = vec![0f64; tokens];
    let mut factors = vec![0f32; tokens];
    if tokens == 0 {
        return;
    }
    for run in x.values.chunks_mut(width * tokens) {
        sums.fill(0.0);
        for row in run.chunks(tokens) {
            sums.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v) * f64::from(v));
        }
        for (factor, sum) in factors.iter_mut().zip(&sums) {
            *factor = (1.0 / (sum / width as f64 + eps).sqrt()) as f32;
        }
        for (row, &weight) in run.chunks_mut(tokens).zip(weight) {
            row.iter_mut().zip(&factors).for_each(|(v, factor)| *v *= factor * weight);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_of_rows_is_normed_by_itself() {
        let mut x =
            Activations { features: 4, tokens: 2, values: vec![3.0, 1.0, 4.0, 1.0, 0.0, 2.0, 0.0, 0.0] };
        rms_norm(&mut x, &[1.0, 2.0], 0.0);
        let root = |v: f32| v / 12.5f32.sqrt();
        let expected = [root(3.0), 1.0, root(8.0), 2.0];
        assert!(x.values.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{:?}", x.values);
        assert!(x.values[4].is_nan(), "a column of zeros without eps");
        assert!((x.values[5] - 2f32.sqrt()).abs() < 1e-6);
    }
}

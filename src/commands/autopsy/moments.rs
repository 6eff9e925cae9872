//! Mean and central moments up to the fourth, in f64, merged from pieces.

/// Number of parallel partial sums, so that the compiler can use vector instructions. The order of summation depends
/// only on the length.
const LANES: usize = 8;

/// Count, extremes, mean, and the sums of the second to fourth powers of the distances from the mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moments {
    count: u64,
    min: f64,
    max: f64,
    mean: f64,
    second: f64,
    third: f64,
    fourth: f64,
}

impl Default for Moments {
    fn default() -> Moments {
        let (min, max) = (f64::INFINITY, f64::NEG_INFINITY);
        Moments { count: 0, min, max, mean: 0.0, second: 0.0, third: 0.0, fourth: 0.0 }
    }
}

impl Moments {
    /// The moments of `values`, which must all be finite.
    pub fn of<T: Copy + Into<f64>>(values: &[T]) -> Moments {
        if values.is_empty() {
            return Moments::default();
        }
        let (mut sum, mut min, mut max) = ([0f64; LANES], [f64::INFINITY; LANES], [f64::NEG_INFINITY; LANES]);
        for_each_lane(values, |lane, value| {
            sum[lane] += value;
            min[lane] = if value < min[lane] { value } else { min[lane] };
            max[lane] = if value > max[lane] { value } else { max[lane] };
        });
        let mean = sum.iter().sum::<f64>() / values.len() as f64;
        let (mut second, mut third, mut fourth) = ([0f64; LANES], [0f64; LANES], [0f64; LANES]);
        for_each_lane(values, |lane, value| {
            let distance = value - mean;
            let square = distance * distance;
            second[lane] += square;
            third[lane] += square * distance;
            fourth[lane] += square * square;
        });
        let [second, third, fourth] = [second, third, fourth].map(|sums| sums.iter().sum());
        Moments {
            count: values.len() as u64,
            min: min.into_iter().fold(f64::INFINITY, f64::min),
            max: max.into_iter().fold(f64::NEG_INFINITY, f64::max),
            mean,
            second,
            third,
            fourth,
        }
    }

    /// The moments of values with the number of times each occurs, in ascending order.
    pub fn counted(values: &[(f64, u64)]) -> Moments {
        let count: u64 = values.iter().map(|(_, count)| count).sum();
        let (Some((min, _)), Some((max, _))) = (values.first(), values.last()) else {
            return Moments::default();
        };
        let mean = values.iter().map(|(value, count)| value * *count as f64).sum::<f64>() / count as f64;
        let power = |exponent| {
            values.iter().map(|(value, count)| (value - mean).powi(exponent) * *count as f64).sum::<f64>()
        };
        Moments { count, min: *min, max: *max, mean, second: power(2), third: power(3), fourth: power(4) }
    }

    /// Merges the moments of another piece (Pébay 2008, equations 3.1 and following).
    pub fn merge(&mut self, other: &Moments) {
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            *self = *other;
            return;
        }
        let (a, b) = (self.count as f64, other.count as f64);
        let (n, distance) = (a + b, other.mean - self.mean);
        let step = distance / n;
        let spread = distance * step * a * b;
        self.fourth += other.fourth
            + spread * step * step * (a * a - a * b + b * b)
            + 6.0 * step * step * (a * a * other.second + b * b * self.second)
            + 4.0 * step * (a * other.third - b * self.third);
        self.third +=
            other.third + spread * step * (a - b) + 3.0 * step * (a * other.second - b * self.second);
        self.second += other.second + spread;
        self.mean += step * b;
        self.count += other.count;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// The number of values.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The mean; 0 if there are no values.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// The standard deviation; 0 if there are no values.
    pub fn std(&self) -> f64 {
        if self.count == 0 { 0.0 } else { (self.second / self.count as f64).sqrt() }
    }

    /// The smallest value.
    pub fn min(&self) -> Option<f64> {
        (self.count > 0).then_some(self.min)
    }

    /// The largest value.
    pub fn max(&self) -> Option<f64> {
        (self.count > 0).then_some(self.max)
    }

    /// The fourth central moment over the square of the second.
    pub fn kurtosis(&self) -> Option<f64> {
        let kurtosis = self.count as f64 * self.fourth / (self.second * self.second);
        // Equal values have no kurtosis, and rounding must not invent one.
        (self.min < self.max && kurtosis.is_finite()).then_some(kurtosis)
    }
}

/// Calls `take` with every value and its lane.
#[inline(always)]
fn for_each_lane<T: Copy + Into<f64>>(values: &[T], mut take: impl FnMut(usize, f64)) {
    let (whole, rest) = values.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, value) in chunk.iter().enumerate() {
            take(lane, (*value).into());
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        take(lane, (*value).into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Count, mean and central sums by definition, over all values at once.
    fn plain(values: &[f64]) -> [f64; 5] {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let power = |p: i32| values.iter().map(|v| (v - mean).powi(p)).sum::<f64>();
        [n, mean, power(2), power(3), power(4)]
    }

    #[test]
    fn pieces_come_to_the_whole() {
        let values: Vec<f64> =
            (0..1000).map(|i| f64::from(i * i % 97) - 20.0 + 1e3 * f64::from(i / 500)).collect();
        let want = plain(&values);
        let counted: Vec<(f64, u64)> = {
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            sorted.chunk_by(|a, b| a == b).map(|same| (same[0], same.len() as u64)).collect()
        };
        let mut merged = Moments::default();
        [0, 1, 8, 300, 500, 999, 1000]
            .windows(2)
            .for_each(|cut| merged.merge(&Moments::of(&values[cut[0]..cut[1]])));
        for found in [merged, Moments::of(&values), Moments::counted(&counted)] {
            let got = [found.count as f64, found.mean, found.second, found.third, found.fourth];
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() <= 1e-10 * want.abs(), "{got} is not {want}");
            }
            assert_eq!((found.min(), found.max()), (Some(-20.0), Some(1076.0)));
        }
    }

    #[test]
    fn none_and_equal_values() {
        assert_eq!(Moments::of::<f32>(&[]), Moments::default());
        assert_eq!((Moments::default().std(), Moments::default().min()), (0.0, None));
        let mut same = Moments::of(&[0.1f32; 9]);
        same.merge(&Moments::of(&[0.1f32; 70]));
        assert_eq!(same.kurtosis(), None);
        assert!(same.std() < 1e-12);
    }
}

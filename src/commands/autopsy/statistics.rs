//! Statistics of a tensor in one pass.
//!
//! **Sixteen bits.** A bf16 or f16 tensor has at most 65536 distinct values, so its code counts determine everything:
//! moments and quantiles are computed exactly from the counts, which can be added in any order.
//!
//! **Others.** Each piece is read twice while it is in the cache, once for its mean and once for its central moments in
//! f64. Pieces are merged in a fixed order by the formulas of Pébay ("Formulas for robust, one-pass parallel
//! computation of covariances and arbitrary-order statistical moments", SAND2008-6212), which do not suffer from the
//! cancellation of sums of powers. Magnitudes are counted by the upper sixteen bits of the f32, so quantiles are within
//! 2^-8 (0.4 %) of a value.

use std::collections::BTreeSet;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::commands::autopsy::moments::Moments;
use crate::quant::number::rounding::non_finite;

/// Number of distinct 16-bit codes.
const CODES: usize = 1 << 16;

/// Histogram steps per octave.
const STEPS: i32 = 4;

/// Maximum number of distinct magnitudes that are counted for values of more than sixteen bits.
pub const FEW: usize = 256;

/// The shares for which quantiles are given.
const SHARES: [f64; 7] = [0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999];

/// The statistics of a tensor's values. Moments are over the finite values.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// Number of elements.
    pub count: u64,
    /// Number of NaN.
    pub nan: u64,
    /// Number of infinities.
    pub infinite: u64,
    /// Number of zeros.
    pub zeros: u64,
    /// The share of zeros.
    pub zero_share: f64,
    /// The mean; 0 if no value is finite.
    pub mean: f64,
    /// The standard deviation of the population (a division by the count).
    pub std: f64,
    /// The smallest value; absent if no value is finite.
    pub min: Option<f64>,
    /// The largest value; absent if no value is finite.
    pub max: Option<f64>,
    /// The fourth central moment over the square of the second: 3 for a normal distribution. Absent if all values are
    /// equal.
    pub kurtosis: Option<f64>,
    /// Number of distinct non-zero magnitudes. Absent if there are more than 256 and the tensor is not stored in
    /// 16 bits.
    pub magnitudes: Option<u64>,
    /// Whether each of those magnitudes has at most four significant bits, like codes under power-of-two scales.
    pub coarse: bool,
    /// Quantiles of |w|: exact for 16 bits, otherwise within 0.4 %.
    pub quantiles: Vec<Quantile>,
    /// The distribution of |w|.
    pub histogram: Histogram,
}

/// The magnitude at or below which a given share of the finite values falls (the inverse of the
/// empirical distribution).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantile {
    /// The share.
    pub share: f64,
    /// The magnitude.
    pub magnitude: f64,
}

/// Counts of |w| in four equal steps per octave, without zeros. With `octave` the quotient of `first + i` and 4,
/// rounded down, and `k` the remainder, step `first + i` covers magnitudes from `2^octave · (1 + k/4)` up to the
/// start of the next step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// Step number of the first count.
    pub first: i32,
    /// The counts; the first and the last are not zero.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// The smallest magnitude in step `first + i`.
    pub fn edge(&self, i: usize) -> f64 {
        let step = self.first + i as i32;
        2f64.powi(step.div_euclid(STEPS)) * (1.0 + f64::from(step.rem_euclid(STEPS)) / f64::from(STEPS))
    }

    /// The count of magnitudes in steps that begin at or above `magnitude`: exactly those from there on if it is an
    /// edge.
    pub fn from(&self, magnitude: f64) -> u64 {
        let above = self.counts.iter().enumerate().filter(|(i, _)| self.edge(*i) >= magnitude);
        above.map(|(_, count)| count).sum()
    }

    /// The step number of a magnitude above zero.
    fn step(magnitude: f64) -> i32 {
        let bits = magnitude.to_bits();
        let exponent = (bits >> 52) as i32 - 1023;
        exponent * STEPS + (bits >> 50 & 3) as i32
    }

    fn new(steps: impl Iterator<Item = (i32, u64)> + Clone) -> Histogram {
        let (low, high) = steps
            .clone()
            .fold((i32::MAX, i32::MIN), |(low, high), (step, _)| (low.min(step), high.max(step)));
        if low > high {
            return Histogram::default();
        }
        let mut counts = vec![0; (high - low) as usize + 1];
        steps.for_each(|(step, count)| counts[(step - low) as usize] += count);
        Histogram { first: low, counts }
    }
}

/// How 16-bit codes are interpreted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sixteen {
    /// bf16.
    Bf16,
    /// f16.
    F16,
}

impl Sixteen {
    fn value(self, code: u16) -> f64 {
        match self {
            Sixteen::Bf16 => bf16::from_bits(code).to_f64(),
            Sixteen::F16 => f16::from_bits(code).to_f64(),
        }
    }

    /// The code of infinity, the first code that is not finite.
    fn infinity(self) -> u16 {
        match self {
            Sixteen::Bf16 => 0x7f80,
            Sixteen::F16 => 0x7c00,
        }
    }

    /// Whether all bits of the significand after the first four are zero.
    fn is_coarse(self, code: u16) -> bool {
        // The bits after the first 3 of 7 (bf16) or 10 (f16) stored ones. Subnormals are rare enough not to matter.
        code & if self == Sixteen::Bf16 { 0x0f } else { 0x7f } == 0
    }
}

/// The number of occurrences of each 16-bit code.
#[derive(Debug)]
pub struct Counts(Box<[u32; CODES]>);

impl Default for Counts {
    fn default() -> Counts {
        match vec![0u32; CODES].into_boxed_slice().try_into() {
            Ok(counts) => Counts(counts),
            Err(_) => unreachable!("the length is the array's"),
        }
    }
}

impl Counts {
    /// Counts little-endian codes, aligned or not; at most 2^32 - 1 in total.
    pub fn add(&mut self, bytes: &[u8]) {
        for &code in bytes.as_chunks::<2>().0 {
            self.0[usize::from(u16::from_le_bytes(code))] += 1;
        }
    }
}

/// Running statistics of values of more than sixteen bits.
#[derive(Debug, Default)]
pub struct Values {
    moments: Moments,
    nan: u64,
    infinite: u64,
    zeros: u64,
    /// The bits of each distinct magnitude; `None` if there are more than [`FEW`].
    magnitudes: Option<BTreeSet<u64>>,
    counts: Counts,
}

impl Values {
    /// Statistics of no values.
    pub fn new() -> Values {
        Values { magnitudes: Some(BTreeSet::new()), ..Values::default() }
    }

    /// Adds a piece. Moments are merged piece by piece, so the same pieces in the same order give the same sums.
    pub fn add(&mut self, values: &[f32]) {
        if non_finite(values) == 0 {
            return self.add_finite(values);
        }
        self.nan += values.iter().filter(|value| value.is_nan()).count() as u64;
        self.infinite += values.iter().filter(|value| value.is_infinite()).count() as u64;
        let finite: Vec<f32> = values.iter().copied().filter(|value| value.is_finite()).collect();
        self.add_finite(&finite);
    }

    fn add_finite(&mut self, values: &[f32]) {
        self.moments.merge(&Moments::of(values));
        for &value in values {
            self.counts.0[(value.to_bits() >> 16) as usize] += 1;
        }
        self.zeros += u64::from(values.iter().map(|value| u32::from(*value == 0.0)).sum::<u32>());
        self.tell_apart(values.iter().map(|value| u64::from(value.abs().to_bits())));
    }

    /// Adds a piece of f64 values.
    pub fn add_f64(&mut self, values: &[f64]) {
        self.nan += values.iter().filter(|value| value.is_nan()).count() as u64;
        self.infinite += values.iter().filter(|value| value.is_infinite()).count() as u64;
        let finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        self.moments.merge(&Moments::of(&finite));
        for &value in &finite {
            let narrow = (value as f32).clamp(f32::MIN, f32::MAX);
            self.counts.0[(narrow.to_bits() >> 16) as usize] += 1;
        }
        self.zeros += finite.iter().filter(|value| **value == 0.0).count() as u64;
        self.tell_apart(finite.iter().map(|value| value.abs().to_bits()));
    }

    fn tell_apart(&mut self, magnitudes: impl Iterator<Item = u64>) {
        let Some(known) = &mut self.magnitudes else { return };
        let mut last = 0;
        for magnitude in magnitudes {
            if magnitude == last || magnitude == 0 {
                continue;
            }
            last = magnitude;
            if known.insert(magnitude) && known.len() > FEW {
                self.magnitudes = None;
                return;
            }
        }
    }
}

/// The partial statistics of one panel.
#[derive(Debug)]
pub enum Partial {
    /// Code counts of a dense 16-bit weight.
    Codes(Sixteen, Counts),
    /// Values of any other weight.
    Values(Box<Values>),
}

/// The statistics of one tensor's panels, merged in order.
#[derive(Debug)]
pub struct Gathered {
    counts: Vec<u64>,
    sixteen: Option<Sixteen>,
    values: Values,
}

impl Default for Gathered {
    fn default() -> Gathered {
        Gathered { counts: vec![0; CODES], sixteen: None, values: Values::new() }
    }
}

impl Gathered {
    /// Adds the next panel.
    pub fn add(&mut self, partial: Partial) {
        let counts = match partial {
            Partial::Codes(sixteen, counts) => {
                self.sixteen = Some(sixteen);
                counts
            }
            Partial::Values(values) => {
                let ours = &mut self.values;
                ours.moments.merge(&values.moments);
                ours.nan += values.nan;
                ours.infinite += values.infinite;
                ours.zeros += values.zeros;
                match values.magnitudes {
                    None => ours.magnitudes = None,
                    Some(magnitudes) => ours.tell_apart(magnitudes.into_iter()),
                }
                values.counts
            }
        };
        self.counts.iter_mut().zip(counts.0.iter()).for_each(|(sum, count)| *sum += u64::from(*count));
    }

    /// The statistics of all panels added.
    pub fn finish(self) -> Statistics {
        match self.sixteen {
            Some(sixteen) => self.of_codes(sixteen),
            None => self.of_values(),
        }
    }

    fn of_codes(self, sixteen: Sixteen) -> Statistics {
        let infinity = usize::from(sixteen.infinity());
        let (positive, negative) = self.counts.split_at(CODES / 2);
        let not_finite = |at: fn(&[u64], usize) -> u64| at(positive, infinity) + at(negative, infinity);
        // From the largest negative value to the largest positive one.
        let below = (0..infinity).rev().map(|code| (code | (CODES / 2), negative[code]));
        let codes = below.chain((0..infinity).map(|code| (code, positive[code])));
        let present = codes.filter(|(_, count)| *count > 0);
        let values: Vec<(f64, u64)> =
            present.map(|(code, count)| (sixteen.value(code as u16), count)).collect();
        let both = (1..infinity).map(|code| (code, positive[code] + negative[code]));
        let magnitudes: Vec<(usize, u64)> = both.filter(|(_, count)| *count > 0).collect();
        let by_value: Vec<(f64, u64)> =
            magnitudes.iter().map(|(code, count)| (sixteen.value(*code as u16), *count)).collect();
        Statistics {
            nan: not_finite(|counts, infinity| counts[infinity + 1..].iter().sum()),
            infinite: not_finite(|counts, infinity| counts[infinity]),
            zeros: positive[0] + negative[0],
            magnitudes: Some(magnitudes.len() as u64),
            coarse: magnitudes.iter().all(|(code, _)| sixteen.is_coarse(*code as u16)),
            ..Statistics::default()
        }
        .with(&Moments::counted(&values), &by_value)
    }

    fn of_values(self) -> Statistics {
        let Values { moments, nan, infinite, zeros, magnitudes, .. } = self.values;
        // The upper half of a magnitude's f32 bits represents the middle of the values that begin with it.
        let middle = |code: usize| f64::from(f32::from_bits((code as u32) << 16 | 1 << 15));
        let infinity = usize::from(Sixteen::Bf16.infinity());
        let both = (0..infinity).map(|code| (code, self.counts[code] + self.counts[code | (CODES / 2)]));
        let nonzero = both.map(|(code, count)| (code, count - if code == 0 { zeros } else { 0 }));
        let by_value: Vec<(f64, u64)> =
            nonzero.filter(|(_, count)| *count > 0).map(|(code, count)| (middle(code), count)).collect();
        let is_coarse = |bits: &u64| {
            // f32 bits are below 2^32, and f64 bits of any magnitude that matters are above.
            if *bits >> 32 == 0 { bits & 0x000f_ffff == 0 } else { bits & 0x0001_ffff_ffff_ffff == 0 }
        };
        Statistics {
            nan,
            infinite,
            zeros,
            coarse: magnitudes.as_ref().is_some_and(|known| known.iter().all(is_coarse)),
            magnitudes: magnitudes.map(|known| known.len() as u64),
            ..Statistics::default()
        }
        .with(&moments, &by_value)
    }
}

impl Statistics {
    /// Fills in what follows from the moments and from the magnitudes above zero, in ascending order.
    fn with(self, moments: &Moments, magnitudes: &[(f64, u64)]) -> Statistics {
        let finite = moments.count();
        let count = finite + self.nan + self.infinite;
        let quantile = |share: f64| {
            // The rank of the value, counted from 1; zeros come first.
            let rank = ((share * finite as f64).ceil() as u64).max(1);
            let mut below = self.zeros;
            let found = magnitudes.iter().find(|(_, count)| {
                below += count;
                below >= rank
            });
            let magnitude = if self.zeros >= rank { 0.0 } else { found.map_or(0.0, |(value, _)| *value) };
            Quantile { share, magnitude }
        };
        let quantiles = if finite == 0 { Vec::new() } else { SHARES.map(quantile).to_vec() };
        let steps = magnitudes.iter().map(|(value, count)| (Histogram::step(*value), *count));
        Statistics {
            count,
            zero_share: if count > 0 { self.zeros as f64 / count as f64 } else { 0.0 },
            mean: moments.mean(),
            std: moments.std(),
            min: moments.min(),
            max: moments.max(),
            kurtosis: moments.kurtosis(),
            quantiles,
            histogram: Histogram::new(steps),
            ..self
        }
    }

    /// The largest magnitude among the finite values.
    pub fn largest(&self) -> f64 {
        self.min.unwrap_or(0.0).abs().max(self.max.unwrap_or(0.0).abs())
    }

    /// The number of finite values.
    pub fn finite(&self) -> u64 {
        self.count - self.nan - self.infinite
    }
}

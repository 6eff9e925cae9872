//! Axes: a name with its unit, a scale, and where the ticks stand. Whatever numbers a file holds, an axis is finite,
//! not empty and has few ticks.

use crate::report::words::shorten;

/// The scale of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Linear.
    Linear,
    /// Decimal logarithm.
    Log10,
    /// Binary logarithm, for ranks.
    Log2,
}

/// One axis. Positions on it are values after scaling: [`Axis::at`] computes them.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What it shows, and its unit.
    pub name: String,
    /// Its scale.
    pub scale: Scale,
    /// Positions of its two ends. The second is below the first if it runs backwards.
    pub ends: (f64, f64),
    /// Position and label of every tick.
    pub ticks: Vec<(f64, String)>,
    /// Whether each tick has a grid line.
    pub grid: bool,
}

impl Axis {
    /// A linear axis from `low` to `high`.
    pub fn linear(name: impl Into<String>, low: f64, high: f64) -> Axis {
        Axis::with_steps(name, low, high, 0.0)
    }

    /// Like [`linear`](Self::linear), for whole numbers.
    pub fn whole(name: impl Into<String>, low: f64, high: f64) -> Axis {
        Axis::with_steps(name, low, high, 1.0)
    }

    fn with_steps(name: impl Into<String>, low: f64, high: f64, least: f64) -> Axis {
        let (low, high) = sound(low, high);
        let step = step((high - low) / 5.0).max(least);
        let decimals = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
        let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
        let ticks = (first..=last.min(first + 20)).map(|k| {
            let value = k as f64 * step;
            let label =
                if value.abs() >= 1e6 { format!("{value:.0e}") } else { format!("{value:.decimals$}") };
            (value, label)
        });
        Axis {
            name: name.into(),
            scale: Scale::Linear,
            ends: (low, high),
            ticks: ticks.collect(),
            grid: true,
        }
    }

    /// Like [`linear`](Self::linear), for shares that are shown in percent.
    pub fn percent(name: impl Into<String>, low: f64, high: f64) -> Axis {
        let axis = Axis::linear(name, 100.0 * low, 100.0 * high);
        let ticks = axis.ticks.into_iter().map(|(at, label)| (at / 100.0, label)).collect();
        Axis { ends: (axis.ends.0 / 100.0, axis.ends.1 / 100.0), ticks, ..axis }
    }

    /// A logarithmic axis from `low` to `high`, both above zero.
    pub fn log10(name: impl Into<String>, low: f64, high: f64) -> Axis {
        let usual = |v: f64| if v.is_finite() && v > 1e-300 { v.min(1e300).log10() } else { 0.0 };
        let (mut low, mut high) = (usual(low), usual(high));
        if high - low < 0.3 {
            let middle = (low + high) / 2.0;
            (low, high) = (middle - 0.15, middle + 0.15);
        }
        let decades = high.floor() - low.ceil();
        let mut ticks = Vec::new();
        let every = (decades / 6.0).ceil().max(1.0) as i64;
        for power in low.floor() as i64..=high.ceil() as i64 {
            let steps: &[f64] = if decades < 2.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
            for times in steps.iter().filter(|_| power.rem_euclid(every) == 0) {
                let at = power as f64 + times.log10();
                if (low..=high).contains(&at) {
                    ticks.push((at, power_of_ten(*times, power)));
                }
            }
        }
        Axis { name: name.into(), scale: Scale::Log10, ends: (low, high), ticks, grid: true }
    }

    /// An axis of ranks from 1 to `high`, on a binary logarithmic scale.
    pub fn ranks(name: impl Into<String>, high: usize) -> Axis {
        let most = (high.clamp(2, 1 << 40) as f64).log2();
        let every = (most / 9.0).ceil().max(1.0) as usize;
        let ticks = (0..=most.floor() as usize).step_by(every);
        let ticks = ticks.map(|power| (power as f64, (1u64 << power).to_string())).collect();
        Axis { name: name.into(), scale: Scale::Log2, ends: (0.0, most), ticks, grid: true }
    }

    /// An axis of named places, the k-th at k + 1/2. Long names are shortened to leave room for the plot.
    pub fn places(name: impl Into<String>, places: &[String]) -> Axis {
        const LONGEST: usize = 22;
        let tick = |(k, label): (usize, &String)| (k as f64 + 0.5, shorten(label, LONGEST));
        let ticks = places.iter().enumerate().map(tick).collect();
        let ends = (0.0, places.len().max(1) as f64);
        Axis { name: name.into(), scale: Scale::Linear, ends, ticks, grid: false }
    }

    /// The same axis in the opposite direction.
    #[must_use]
    pub fn backwards(mut self) -> Axis {
        self.ends = (self.ends.1, self.ends.0);
        self
    }

    /// The position of `value`, clamped to the ends; `None` if it has none.
    pub fn at(&self, value: f64) -> Option<f64> {
        let at = match self.scale {
            Scale::Linear => value,
            Scale::Log10 => value.log10(),
            Scale::Log2 => value.log2(),
        };
        let (low, high) = (self.ends.0.min(self.ends.1), self.ends.0.max(self.ends.1));
        (!at.is_nan() && at > f64::NEG_INFINITY).then(|| at.clamp(low, high))
    }
}

/// Makes both ends finite and distinct.
fn sound(low: f64, high: f64) -> (f64, f64) {
    let usual = |v: f64| if v.is_finite() { v.clamp(-1e15, 1e15) } else { 0.0 };
    let (low, high) = (usual(low), usual(high));
    let least = 1e-9 * low.abs().max(high.abs()).max(1e-3);
    if high - low > least { (low, high) } else { (low, low + low.abs().max(1.0)) }
}

/// The smallest of 1, 2 and 5 times a power of ten that is not below `rough`.
fn step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|times| times * power)
        .find(|s| *s >= 0.999 * rough)
        .unwrap_or(power)
}

fn power_of_ten(times: f64, power: i64) -> String {
    if (-3..=4).contains(&power) {
        return format!("{}", (times * 10f64.powi(power as i32) * 1e6).round() / 1e6);
    }
    let power = power.to_string();
    let digits = power.chars().map(|c| match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        digit => char::from_u32(0x2070 + digit as u32 - '0' as u32).unwrap_or(digit),
    });
    let digits: String = digits.collect();
    if times == 1.0 { format!("10{digits}") } else { format!("{times}·10{digits}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(labels(&Axis::linear("", 0.0, 1.0)), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&Axis::whole("", -0.5, 2.5)), ["0", "1", "2"]);
        assert_eq!(labels(&Axis::percent("%", 0.0, 0.5)), ["0", "10", "20", "30", "40", "50"]);
        assert_eq!(labels(&Axis::log10("", 0.01, 100.0)), ["0.01", "0.1", "1", "10", "100"]);
        assert_eq!(labels(&Axis::log10("", 1e-8, 1e-5)), ["10⁻⁸", "10⁻⁷", "10⁻⁶", "10⁻⁵"]);
        assert_eq!(labels(&Axis::log10("", 0.9, 6.0)), ["1", "2", "5"]);
        assert_eq!(labels(&Axis::ranks("", 20)), ["1", "2", "4", "8", "16"]);
    }

    #[test]
    fn no_numbers_make_an_axis_without_end() {
        for (low, high) in [
            (0.0, 0.0),
            (1.0, 0.0),
            (f64::NAN, f64::INFINITY),
            (-1e308, 1e308),
            (1e300, 1e300),
            (5e-324, 1e-300),
            (1e15, 1e15 + 1.0),
        ] {
            for axis in
                [Axis::linear("", low, high), Axis::percent("", low, high), Axis::log10("", low, high)]
            {
                let (from, to) = axis.ends;
                assert!(from.is_finite() && to.is_finite() && to > from, "{low} {high}: {axis:?}");
                assert!(axis.ticks.len() <= 21, "{low} {high}: {axis:?}");
            }
        }
        assert!(Axis::ranks("", usize::MAX).ticks.len() < 12);
    }

    #[test]
    fn what_has_no_place_is_not_drawn() {
        let axis = Axis::log10("", 0.1, 10.0);
        assert_eq!(axis.at(0.0), None);
        assert_eq!(axis.at(-1.0), None);
        assert_eq!(axis.at(1e9), Some(1.0));
        assert_eq!(Axis::linear("", 0.0, 1.0).at(f64::NAN), None);
    }
}

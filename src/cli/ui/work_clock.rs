//! How far a run is, and how long it will take: the plan's cost model, corrected by what was measured.
//!
//! Bytes read are a poor measure: reading runs ahead of the factorizations, and a bar of bytes stands full for the
//! last third of a run. So every unit counts with the time that the plan expects of it. Between two finished units the
//! work in flight is assumed to go on at the rate so far, up to nearly its end.

/// The share of the expected time that the plan counts as measured, against what was really measured.
const TRUST: f64 = 0.1;

/// How much of the work in flight may count as done before it is.
const NEARLY: f64 = 0.9;

/// Expected and finished work in seconds of the plan; elapsed times are in real seconds since the beginning.
#[derive(Clone, Copy, Debug, Default)]
pub struct WorkClock {
    expected: f64,
    stepped: f64,
    entered: f64,
    left: f64,
    /// Real seconds per second of the plan.
    scale: f64,
    /// When the scale was last measured, and what of the work in flight counted as done then.
    measured: f64,
    credit: f64,
}

impl WorkClock {
    /// A clock for work of this many seconds.
    pub fn new(expected: f64) -> WorkClock {
        WorkClock { expected: expected.max(1e-3), scale: 1.0, ..WorkClock::default() }
    }

    /// A small part of the work is done.
    pub fn step(&mut self, seconds: f64) {
        self.stepped += seconds;
    }

    /// A unit goes into work.
    pub fn enter(&mut self, seconds: f64) {
        self.entered += seconds;
    }

    /// A unit is finished.
    pub fn leave(&mut self, seconds: f64, elapsed: f64) {
        self.left += seconds;
        // The units in flight are half done on average.
        self.credit = 0.5 * self.in_flight();
        let done = self.stepped + self.left + self.credit;
        let prior = TRUST * self.expected;
        self.scale = (prior + elapsed) / (prior + done);
        self.measured = elapsed;
    }

    fn in_flight(&self) -> f64 {
        (self.entered - self.left).max(0.0)
    }

    /// The share of the work that is done, from 0 to 1.
    pub fn share(&self, elapsed: f64) -> f64 {
        (self.done(elapsed) / self.expected).min(1.0)
    }

    /// Seconds that the rest will take.
    pub fn seconds_left(&self, elapsed: f64) -> f64 {
        (self.expected - self.done(elapsed)).max(0.0) * self.scale
    }

    fn done(&self, elapsed: f64) -> f64 {
        let since = (elapsed - self.measured).max(0.0) / self.scale;
        self.stepped + self.left + (self.credit + since).min(NEARLY * self.in_flight())
    }
}

/// A time in words that are exact enough: `8 s`, `1 min 50 s`, `2 h 5 min`.
pub fn in_words(seconds: f64) -> String {
    match seconds.max(0.0).ceil() as u64 {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seven units of ten planned seconds that really take `slower` times as long, two at a time.
    fn run(slower: f64, mut look: impl FnMut(&WorkClock, f64, f64)) {
        let mut clock = WorkClock::new(72.0);
        clock.step(1.0);
        clock.enter(10.0);
        clock.enter(10.0);
        let real = slower * 72.0;
        for tick in 1..=700u32 {
            let elapsed = f64::from(tick) / 700.0 * real;
            // A unit ends each seventh of the time, and another goes into work.
            if tick % 100 == 0 {
                clock.leave(10.0, elapsed);
                if tick < 600 {
                    clock.enter(10.0);
                }
            }
            if tick == 350 {
                clock.step(1.0);
            }
            look(&clock, elapsed, real);
        }
    }

    #[test]
    fn the_time_left_follows_what_was_measured() {
        for slower in [0.5, 1.0, 3.0] {
            run(slower, |clock, elapsed, real| {
                // Units end one after the other here, so between two ends up to a unit's time is a guess.
                if elapsed > real / 3.0 {
                    let off = (clock.seconds_left(elapsed) - (real - elapsed)).abs() / real;
                    assert!(off < 0.3, "{slower}: at {elapsed} of {real}: {off} of the run");
                }
            });
        }
    }

    #[test]
    fn the_bar_neither_stands_full_nor_goes_back_much() {
        let mut last = 0.0;
        run(2.0, |clock, elapsed, real| {
            let share = clock.share(elapsed);
            assert!(share > last - 0.1, "{share} after {last}");
            assert!(elapsed > 0.9 * real || share < 0.99, "{share} at {elapsed} of {real}");
            last = share;
        });
        assert!(last > 0.99);
    }

    #[test]
    fn times_are_said_in_words() {
        for (seconds, words) in
            [(0.0, "0 s"), (7.2, "8 s"), (68.0, "1 min 8 s"), (3600.0, "1 h 0 min"), (7505.0, "2 h 5 min")]
        {
            assert_eq!(in_words(seconds), words);
        }
    }
}

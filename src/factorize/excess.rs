//! How far from the optimum a Krylov basis still is, judged by what its last half steps gained.

/// What the leading Ritz values captured, half step after half step.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    /// For each half step the running sums of the Ritz values, squares of singular values.
    sums: Vec<Vec<f64>>,
}

/// An estimate of what is missing, for one rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimate {
    /// Energy that the optimum would capture beyond what the basis does.
    pub(super) missing: f64,
    /// Error over optimal error, minus 1.
    pub(super) excess: f64,
    /// Share of the optimal captured energy that is missing.
    pub(super) share: f64,
}

impl History {
    /// Notes a half step by its Ritz values, descending.
    pub(super) fn push(&mut self, ritz: &[f64]) {
        let mut sum = 0.0;
        let sums = ritz.iter().map(|value| {
            sum += value.max(0.0);
            sum
        });
        self.sums.push(sums.collect());
    }

    /// Forgets all: the steps after a restart say nothing of those before it.
    pub(super) fn clear(&mut self) {
        self.sums.clear();
    }

    /// Estimates for rank `k`, with `total` the squared norm and `outside` what of it is outside the basis altogether. None
    /// while there are too few steps.
    pub(super) fn estimate(&self, k: usize, total: f64, outside: f64) -> Option<Estimate> {
        let mut captured = self.sums.iter().rev().filter_map(|s| s.get(k - 1)).copied();
        let (now, before, first) = (captured.next()?, captured.next()?, captured.next()?);
        let missing = outlook(now - before, before - first).min(outside.max(0.0));
        Some(Estimate::of(missing, now, total))
    }
}

impl Estimate {
    /// From the missing energy, what is `captured` and the `total`.
    pub(super) fn of(missing: f64, captured: f64, total: f64) -> Estimate {
        // An error below 1e-4 of the norm drowns in the rounding of the sums it is the difference of.
        let error = (total - captured).max(1e-8 * total);
        let optimal = (error - missing).max(1e-3 * error);
        Estimate { missing, excess: (error / optimal).sqrt() - 1.0, share: missing / (captured + missing) }
    }
}

/// The sum of all gains to come, from the last two: a geometric series, its ratio taken with care.
fn outlook(last: f64, before: f64) -> f64 {
    let (last, before) = (last.max(0.0), before.max(0.0));
    if before <= 0.0 {
        return last;
    }
    let ratio = (last / before).clamp(0.1, 0.95);
    last * ratio / (1.0 - ratio)
}

//! How far a Krylov basis still is from the optimum, estimated from the gains of its last half steps.

/// What the leading Ritz values captured at each step.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    steps: Vec<Step>,
}

/// Running sums of one step's Ritz values, which are squared singular values.
#[derive(Clone, Debug)]
struct Step {
    right: Vec<f64>,
    /// Half a step further, if the left projection is safe.
    left: Option<Vec<f64>>,
}

/// An estimate of what is missing, for one rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Estimate {
    /// Energy that the optimum would capture and the basis does not.
    pub(crate) missing: f64,
    /// Error over optimal error, minus 1.
    pub(crate) excess: f64,
    /// The missing share of the optimal captured energy.
    pub(crate) share: f64,
}

impl History {
    /// Records a step by the Ritz values, in descending order, of the right projection and, if there is one, of the
    /// left.
    pub(crate) fn push(&mut self, right: &[f64], left: Option<&[f64]>) {
        self.steps.push(Step { right: running(right), left: left.map(running) });
    }

    /// Forgets everything: steps after a restart say nothing about those before it.
    pub(crate) fn clear(&mut self) {
        self.steps.clear();
    }

    /// Estimates for rank `k`, with `total` the squared norm and `outside` the part of it that is entirely outside the
    /// basis. `None` while there are too few steps.
    pub(crate) fn estimate(&self, k: usize, total: f64, outside: f64) -> Option<Estimate> {
        let index = k.checked_sub(1)?;
        let halves = self.steps.iter().rev().take_while(|s| s.left.is_some()).count();
        // Only steps of one kind: a change of kind would look like a change of pace.
        let (captured, stride): (Vec<f64>, _) = if halves >= 2 {
            let steps = &self.steps[self.steps.len() - halves..];
            (
                steps
                    .iter()
                    .flat_map(|s| [Some(&s.right), s.left.as_ref()])
                    .flatten()
                    .map(|s| s[index])
                    .collect(),
                2,
            )
        } else {
            (self.steps.iter().map(|s| s.right[index]).collect(), 1)
        };
        let missing = missing(&captured, stride)?.min(outside.max(0.0));
        Some(Estimate::of(missing, *captured.last()?, total))
    }
}

fn running(values: &[f64]) -> Vec<f64> {
    let add = |sum: &mut f64, value: &f64| {
        *sum += value.max(0.0);
        Some(*sum)
    };
    values.iter().scan(0.0, add).collect()
}

impl Estimate {
    /// The estimate from the missing energy, the `captured` energy and the `total`.
    pub(crate) fn of(missing: f64, captured: f64, total: f64) -> Estimate {
        // An error below 1e-4 of the norm is lost in the rounding of the sums that it is the difference of.
        let error = (total - captured).max(1e-8 * total);
        let optimal = (error - missing).max(1e-3 * error);
        Estimate { missing, excess: (error / optimal).sqrt() - 1.0, share: missing / (captured + missing) }
    }
}

/// The energy still to come after the `captured` energies, `stride` of which make a step: the larger of what the last
/// step promises and, in case that step was a lull (near multiple singular values), a tenth of what the step before it
/// promised.
fn missing(captured: &[f64], stride: usize) -> Option<f64> {
    if captured.len() < stride + 2 {
        return None;
    }
    let now = outlook(captured, stride)?;
    let (earlier, last) = captured.split_at(captured.len() - stride);
    let gained = last.last()? - earlier.last()?;
    let promised = outlook(earlier, stride).map_or(0.0, |promised| promised - gained);
    Some(now.max(0.1 * promised))
}

/// The sum of all gains to come, as a geometric series. `None` without a whole step.
///
/// Its ratio is that of the last two whole steps; half steps alternate in size and would mislead. It is at least a
/// half: after a fast start (the signal) the pace falls to that of the rest (the noise). The pace slows a little
/// further from step to step, most where a signal stands above noise: there the plain series is some 20 % too low.
fn outlook(captured: &[f64], stride: usize) -> Option<f64> {
    const SLACKENING: f64 = 1.25;
    let gain = |back: usize| {
        let index = captured.len().checked_sub(back + 1)?;
        Some((captured[index] - captured[index.checked_sub(stride)?]).max(0.0))
    };
    let ratio = |back: usize, steps: i32| {
        let (now, before) = (gain(0)?, gain(back)?);
        Some(if before > 0.0 { (now / before).powi(steps) } else { 0.0 })
    };
    let ratio = ratio(stride, 1).or_else(|| ratio(1, stride as i32)).unwrap_or(0.0).clamp(0.5, 0.95);
    Some(SLACKENING * gain(0)? * ratio / (1.0 - ratio))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Captured energies that approach 1 geometrically, in half steps.
    fn geometric(ratio: f64, steps: usize) -> History {
        let mut history = History::default();
        for step in 0..steps as i32 {
            let at = |half: i32| [1.0 - 0.5 * ratio.powi(2 * step + half)];
            history.push(&at(0), Some(&at(1)));
        }
        history
    }

    #[test]
    fn a_geometric_approach_is_foreseen() {
        let history = geometric(0.8, 3);
        let missing = history.estimate(1, 2.0, 2.0).unwrap().missing;
        assert!((missing - 1.25 * 0.5 * 0.8f64.powi(5)).abs() < 1e-12, "{missing}");
        assert!(geometric(0.3, 3).estimate(1, 2.0, 2.0).unwrap().missing > 0.5 * 0.3f64.powi(5));
    }

    #[test]
    fn too_few_steps_tell_nothing() {
        assert_eq!(geometric(0.8, 1).estimate(1, 2.0, 2.0), None);
        assert_eq!(History::default().estimate(1, 1.0, 1.0), None);
    }

    #[test]
    fn nothing_outside_means_nothing_missing() {
        let estimate = geometric(0.8, 3).estimate(1, 1.0, 0.0).unwrap();
        assert_eq!((estimate.missing, estimate.excess, estimate.share), (0.0, 0.0, 0.0));
    }
}

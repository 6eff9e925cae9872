//! The identifier of a part of a run, for example `3/16`, given by the user or by a cluster's environment.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The largest number of parts of a run.
const MOST: usize = 100_000;

/// One part of a run, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Part {
    index: usize,
    of: usize,
}

/// The values of `--part`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PartChoice {
    /// `3/16`.
    Given(Part),
    /// `auto` or `auto/16`: from the cluster's environment.
    Auto(Option<usize>),
}

impl Part {
    /// Part `index` (from 1) of `of`.
    ///
    /// # Errors
    /// An index out of range, or too many parts.
    pub fn new(index: usize, of: usize) -> Result<Part> {
        let hint = "--part 1/16 is the first of sixteen, --part 16/16 the last";
        if of > MOST {
            return Err(Error::decide(format!("{of} parts are too many: the limit is {MOST}")));
        }
        if index == 0 || index > of {
            return Err(Error::decide(format!("there is no part {index} of {of}")).hint(hint));
        }
        Ok(Part { index, of })
    }

    /// The index of the part, from 1.
    pub fn index(self) -> usize {
        self.index
    }

    /// The number of parts.
    pub fn of(self) -> usize {
        self.of
    }

    /// The part of a Slurm array task, or of a pod of a Kubernetes indexed Job, from its environment. `of` is the
    /// number of parts, where the user gave it; `variable` looks up an environment variable.
    ///
    /// # Errors
    /// An environment without a part, or without the number of parts.
    pub fn from_cluster(of: Option<usize>, variable: impl Fn(&str) -> Option<String>) -> Result<Part> {
        let number = |name: &str| -> Result<Option<usize>> {
            let Some(text) = variable(name) else { return Ok(None) };
            let bad = |_| Error::decide(format!("{name} is '{text}', which is not a number"));
            text.trim().parse().map(Some).map_err(bad)
        };
        if let Some(id) = number("SLURM_ARRAY_TASK_ID")? {
            let least = number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(id);
            let step = number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
            let count = number("SLURM_ARRAY_TASK_COUNT")?;
            return of_array(id, least, step, count, of);
        }
        match (number("JOB_COMPLETION_INDEX")?, of) {
            (Some(index), Some(of)) => Part::new(index.saturating_add(1), of),
            (Some(_), None) => {
                Err(Error::decide("JOB_COMPLETION_INDEX says which part this is, but not of how many")
                    .hint("give --part auto/N with the Job's number of completions"))
            }
            (None, _) => Err(Error::decide(
                "--part auto: this is neither a Slurm array task nor a pod of an indexed Job",
            )
            .hint("give --part I/N, for example --part 3/16")),
        }
    }
}

/// The part of a Slurm array task. The first ID of the array is part 1, for any base and step. An array with fewer
/// tasks than `of` reruns a few tasks of an array over 1 to `of`.
fn of_array(id: usize, least: usize, step: usize, count: Option<usize>, of: Option<usize>) -> Result<Part> {
    let hint = "give --part I/N, or an array such as 1-16";
    let Some(of) = of.or(count) else {
        return Err(Error::decide("SLURM_ARRAY_TASK_COUNT is not set").hint(hint));
    };
    if count.is_some_and(|count| count != of) {
        return Part::new(id, of);
    }
    let steps = id.checked_sub(least).filter(|above| above % step == 0).map(|above| above / step);
    match steps {
        Some(steps) if steps < of => Part::new(steps + 1, of),
        _ => Err(Error::decide(format!(
            "the array's IDs are not evenly spaced: {id} is not one of {of} IDs from {least}"
        ))
        .hint(hint)),
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl From<Part> for String {
    fn from(part: Part) -> String {
        part.to_string()
    }
}

impl FromStr for Part {
    type Err = Error;

    fn from_str(text: &str) -> Result<Part> {
        let numbers = text.split_once('/').and_then(|(index, of)| index.parse().ok().zip(of.parse().ok()));
        let (index, of) = numbers.ok_or_else(|| {
            Error::decide(format!("'{text}' is not a part of a run")).hint("write it as 3/16, or as auto")
        })?;
        Part::new(index, of)
    }
}

impl TryFrom<String> for Part {
    type Error = Error;

    fn try_from(text: String) -> Result<Part> {
        text.parse()
    }
}

impl FromStr for PartChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<PartChoice> {
        match text.strip_prefix("auto") {
            Some("") => Ok(PartChoice::Auto(None)),
            Some(rest) => {
                let of = rest.strip_prefix('/').and_then(|of| of.parse().ok()).filter(|of| *of > 0);
                let wrong = || {
                    Error::decide(format!("'{text}' is not a part of a run"))
                        .hint("write it as auto, or as auto/16")
                };
                of.map(|of| PartChoice::Auto(Some(of))).ok_or_else(wrong)
            }
            None => text.parse().map(PartChoice::Given),
        }
    }
}

impl PartChoice {
    /// The part itself, for `auto` from this process's environment.
    ///
    /// # Errors
    /// See [`Part::from_cluster`].
    pub fn resolve(self) -> Result<Part> {
        match self {
            PartChoice::Given(part) => Ok(part),
            PartChoice::Auto(of) => Part::from_cluster(of, |name| std::env::var(name).ok()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The part from an environment given as `NAME=VALUE` words, or the error.
    fn part(of: Option<usize>, environment: &str) -> std::result::Result<String, String> {
        let variable = |name: &str| {
            let mut pairs = environment.split_whitespace().filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
        };
        Part::from_cluster(of, variable).map(|part| part.to_string()).map_err(|e| e.to_string())
    }

    fn array(id: usize, least: usize, step: usize, count: usize) -> String {
        format!(
            "SLURM_ARRAY_TASK_ID={id} SLURM_ARRAY_TASK_MIN={least} SLURM_ARRAY_TASK_STEP={step} \
             SLURM_ARRAY_TASK_COUNT={count}"
        )
    }

    #[test]
    fn arrays_of_any_base_and_step() {
        for (base, step) in [(0, 1), (1, 1), (7, 3), (100, 10)] {
            for index in 0..4 {
                let found = part(None, &array(base + index * step, base, step, 4));
                assert_eq!(found, Ok(format!("{}/4", index + 1)), "{base} {step}");
            }
        }
        assert_eq!(part(Some(4), &array(3, 0, 1, 4)), Ok("4/4".into()));
    }

    #[test]
    fn a_few_tasks_of_an_array_are_run_again() {
        assert_eq!(part(Some(16), &array(7, 3, 1, 2)), Ok("7/16".into()));
        assert!(part(Some(16), &array(17, 3, 1, 2)).unwrap_err().contains("no part 17 of 16"));
        assert!(part(None, &array(7, 3, 1, 2)).unwrap_err().contains("not evenly spaced"));
    }

    #[test]
    fn indexed_jobs_need_to_be_told_of_how_many() {
        assert_eq!(part(Some(3), "JOB_COMPLETION_INDEX=0"), Ok("1/3".into()));
        assert_eq!(part(Some(3), "JOB_COMPLETION_INDEX=2"), Ok("3/3".into()));
        assert!(part(Some(3), "JOB_COMPLETION_INDEX=3").unwrap_err().contains("no part 4 of 3"));
        assert!(part(None, "JOB_COMPLETION_INDEX=2").unwrap_err().contains("not of how many"));
        assert!(part(Some(3), "").unwrap_err().contains("neither"));
        assert!(part(None, "SLURM_ARRAY_TASK_ID=x").unwrap_err().contains("is 'x', which is not a number"));
        assert!(
            part(None, "SLURM_ARRAY_TASK_ID=1").unwrap_err().contains("SLURM_ARRAY_TASK_COUNT is not set")
        );
    }

    #[test]
    fn words() {
        let given = |text: &str| text.parse::<PartChoice>();
        assert_eq!(given("3/16").unwrap(), PartChoice::Given(Part { index: 3, of: 16 }));
        assert_eq!(given("auto").unwrap(), PartChoice::Auto(None));
        assert_eq!(given("auto/8").unwrap(), PartChoice::Auto(Some(8)));
        for bad in ["0/4", "5/4", "4", "", "a/b", "1/", "auto/", "auto/0", "automatic", "-1/4", "1/999999"] {
            assert!(given(bad).is_err(), "{bad}");
        }
    }
}

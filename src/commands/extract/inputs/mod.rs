//! What an extraction reads.

pub(crate) mod check;
pub(crate) mod side_files;

use crate::Result;
use crate::calibration::OpenCalibration;
use crate::checkpoint::Checkpoint;
use crate::commands::extract::options::Extraction;
use crate::pipeline::memory::room;

/// The checkpoints of an extraction, opened.
#[derive(Debug)]
pub struct Inputs {
    /// What the adapter is added to.
    pub base: Checkpoint,
    /// What it should become.
    pub tuned: Checkpoint,
    /// What will serve it, where that is measured.
    pub served: Option<Checkpoint>,
    /// What the layers' inputs are like, where the outputs' error is to be the least.
    pub calibration: Option<OpenCalibration>,
    /// The dense base, where the change gets a share of the rank for itself.
    pub dense: Option<Checkpoint>,
}

impl Inputs {
    /// The checkpoints.
    pub fn all(&self) -> impl Iterator<Item = &Checkpoint> {
        [Some(&self.base), Some(&self.tuned), self.served.as_ref(), self.dense.as_ref()].into_iter().flatten()
    }

    /// Opens them.
    ///
    /// # Errors
    /// See [`Checkpoint::open`] and [`OpenCalibration::open`].
    pub fn open(job: &Extraction) -> Result<Inputs> {
        let mut room = room(job.running.memory);
        let mut open = |place: &str| Checkpoint::open_within(place, &mut room);
        Ok(Inputs {
            base: open(&job.base)?,
            tuned: open(&job.tuned)?,
            served: job.served.as_deref().map(&mut open).transpose()?,
            calibration: job.calibration.as_deref().map(OpenCalibration::open).transpose()?,
            dense: job.hybrid.as_deref().map(&mut open).transpose()?,
        })
    }
}

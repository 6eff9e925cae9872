//! One of a module's differences: factorized, and projected onto singular vectors. It is held in memory, in bytes where
//! they are exact enough, or recomputed at every visit; what is held changes no bit.

use rayon::prelude::*;

use crate::Result;
use crate::commands::analyze::plan::PlannedAnalysis;
use crate::commands::analyze::stats::subspace::{Basis, Projections, project};
use crate::delta::difference::Difference;
use crate::delta::recomputed::Recomputed;
use crate::factorize::in_memory::Held;
use crate::factorize::kernel::{bytes, passes};
use crate::factorize::quantized::{HeldCodes, Requantized};
use crate::factorize::types::{Factors, Panels, Request};
use crate::factorize::{Codes, factorize, factorize_codes};
use crate::pipeline::memory::slice_rows;

/// A difference `[m, n]` of two weights.
pub struct Matrix<'a> {
    delta: Recomputed<'a>,
    held: Option<HeldCodes>,
    /// The squared norm of what bytes miss, where products are in bytes.
    missed2: Option<f64>,
    plan: PlannedAnalysis,
}

impl<'a> Matrix<'a> {
    /// The difference, of which nothing is read yet.
    pub fn new(difference: Difference<'a>, plan: &PlannedAnalysis) -> Matrix<'a> {
        let delta = Recomputed::new(difference, plan.visitors);
        Matrix { delta, held: None, missed2: None, plan: *plan }
    }

    /// Its factors, for its squared norm. Its codes are held from then on if the plan has room; its values are not.
    ///
    /// # Errors
    /// Errors of reading and decoding, and those of [`factorize`].
    pub fn factorize(&mut self, norm2: f64, module: &str, request: &Request) -> Result<Factors> {
        if self.plan.in_bytes {
            self.missed2 = Some(self.quantize()?);
            let found = self.by_codes(|codes| factorize_codes(codes, norm2, module, request, false));
            if let Some(factors) = found.transpose()?.flatten() {
                return Ok(factors);
            }
            (self.held, self.missed2) = (None, None);
        }
        match self.plan.held {
            true => factorize(&self.values()?, norm2, module, request),
            false => factorize(&self.delta, norm2, module, request),
        }
    }

    /// Its components along the singular vectors of `basis`.
    ///
    /// # Errors
    /// Errors of reading and decoding.
    pub fn project(&self, basis: &Basis) -> Result<Projections> {
        let in_bytes = self.by_codes(|codes| {
            let times = |v: faer::MatRef<'_, f32>| bytes::passes::times(codes, v);
            project(times, |u| bytes::passes::transpose_times(codes, u), basis)
        });
        in_bytes.unwrap_or_else(|| {
            let times = |v: faer::MatRef<'_, f32>| passes::times(&self.delta, v);
            project(times, |u| passes::transpose_times(&self.delta, u), basis)
        })
    }

    /// Reads it in bytes, and keeps them if there is room. Returns the squared norm of what they miss.
    fn quantize(&mut self) -> Result<f64> {
        if !self.plan.codes_held {
            return Requantized::missed(&self.delta);
        }
        let codes = HeldCodes::of(&self.delta)?;
        let missed2 = codes.error2();
        self.held = Some(codes);
        Ok(missed2)
    }

    /// What `work` makes of its codes, if it is multiplied in bytes.
    fn by_codes<T>(&self, work: impl FnOnce(&dyn Codes) -> T) -> Option<T> {
        let missed2 = self.missed2?;
        Some(match &self.held {
            Some(codes) => work(codes),
            None => work(&Requantized::new(&self.delta, missed2)),
        })
    }

    /// All values in f32.
    fn values(&self) -> Result<Held> {
        let (rows, cols) = (self.delta.rows(), self.delta.cols());
        let height = slice_rows(cols);
        let mut values = vec![0f32; rows * cols];
        let parts = values.par_chunks_mut((height * cols).max(1)).enumerate().with_max_len(1);
        parts.try_for_each(|(at, out)| {
            self.delta.visit(at * height..(at * height + out.len() / cols.max(1)), &mut |panel| {
                let lines = out.chunks_exact_mut(cols).zip(panel.row_iter());
                lines.for_each(|(out, row)| out.iter_mut().zip(row.iter()).for_each(|(o, v)| *o = *v));
                Ok(())
            })
        })?;
        Held::new(rows, cols, values)
    }
}

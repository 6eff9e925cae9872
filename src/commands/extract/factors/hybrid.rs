//! Factors of two parts: the first for the change on the dense base alone, the second for what they leave on the
//! quantized one.
//!
//! Where the quantization noise is larger than the change, the best approximation of their sum holds next to nothing
//! of the change. A share of the rank that sees the change alone holds it, whatever the noise.

use crate::Result;
use crate::commands::extract::factors::plain::{self, method};
use crate::commands::extract::factors::{Made, StoredFactors};
use crate::commands::extract::output::manifest::SpectrumOf;
use crate::delta::module_record::Quality;
use crate::factorize::in_memory::Held;
use crate::factorize::types::{Panels, Request};
use crate::factorize::{Remainder, residual, subtract};
use crate::lora::factor_dtype::FactorType;
use crate::pipeline::buffer_pool::HugeBuffer;

/// What is factorized, and how.
pub(crate) struct Hybrid<'a> {
    /// The module's name.
    pub module: &'a str,
    /// The change, `tuned - dense base`, and its squared norm.
    pub change: (&'a dyn Panels, f64),
    /// The squared norm of the delta, `tuned - quantized base`.
    pub norm2: f64,
    /// For both parts together.
    pub request: Request,
    /// Of the rank, what the change has for itself.
    pub share: f64,
    /// What factors are stored in.
    pub dtype: FactorType,
}

impl Hybrid<'_> {
    /// Ranks of both parts.
    fn ranks(&self) -> [usize; 2] {
        let rank = self.request.rank;
        let first = ((self.share * rank as f64).round() as usize).clamp(1, rank - 1);
        [first, rank - first]
    }

    /// The factors for a delta that is held; its memory comes back holding what the first part leaves.
    ///
    /// # Errors
    /// What visiting the matrices met; factors that do not fit in the type they are stored in.
    pub fn of_held(&self, held: Held<HugeBuffer>) -> Result<(Made, Held<HugeBuffer>)> {
        let first = self.first()?;
        let (m, n) = (held.rows(), held.cols());
        let mut values = held.into_inner();
        subtract(&mut values, &first.stored.left, &first.stored.right, first.rank);
        let rest = Held::new(m, n, values)?;
        let made = self.second(first, &rest)?;
        Ok((made, rest))
    }

    /// The factors for a delta that is computed anew at every visit.
    ///
    /// # Errors
    /// As [`of_held`](Self::of_held).
    pub fn of_recomputed(&self, delta: &dyn Panels) -> Result<Made> {
        let first = self.first()?;
        let StoredFactors { left, right, .. } = &first.stored;
        let (left, right) = (left.clone(), right.clone());
        let rest = Remainder::new(delta, &left, &right, first.rank)?;
        self.second(first, &rest)
    }

    fn first(&self) -> Result<Made> {
        let request = Request { rank: self.ranks()[0], ..self.request };
        plain::make(self.change.0, self.change.1, self.module, &request, self.dtype, None)
    }

    /// Both parts together, with the error of both on the quantized base.
    fn second(&self, first: Made, rest: &dyn Panels) -> Result<Made> {
        let (m, n) = (rest.rows(), rest.cols());
        let norm2 = residual::residual(rest, &[], &[])?.norm2;
        let request = Request { rank: self.ranks()[1], ..self.request };
        let second = plain::make(rest, norm2, self.module, &request, self.dtype, Some(SpectrumOf::Rest))?;
        let error2 = residual::residual(rest, &second.stored.left, &second.stored.right)?.residual2;
        let rank = first.rank + second.rank;
        let mut left = vec![0f32; m * rank];
        if rank > 0 {
            for (i, row) in left.chunks_exact_mut(rank).enumerate() {
                let (one, two) = row.split_at_mut(first.rank);
                one.copy_from_slice(&first.stored.left[i * first.rank..][..first.rank]);
                two.copy_from_slice(&second.stored.left[i * second.rank..][..second.rank]);
            }
        }
        let right = [first.stored.right, second.stored.right].concat();
        debug_assert_eq!(right.len(), rank * n);
        Ok(Made {
            stored: StoredFactors::of(left, right, self.dtype),
            rank,
            quality: Quality::of(self.norm2, error2),
            method: method(rank, &second.method),
            precision: second.precision,
            basis: second.basis,
            passes: first.passes + second.passes + 2,
            estimated_excess: second.estimated_excess,
            spectrum: second.spectrum,
            tensors: Vec::new(),
            energies: Vec::new(),
        })
    }
}

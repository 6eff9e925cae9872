//! Adds `scale · B·A` to rows of a weight.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use safetensors::Dtype;

use crate::checkpoint::Checkpoint;
use crate::commands::convert::sharding::height;
use crate::commands::convert::write_shard::Change;
use crate::lora::names::Place;
use crate::lora::read::PeftAdapter;
use crate::lora::read::classify::PeftModule;
use crate::{Error, Result};

/// The changes that an adapter makes.
pub(crate) struct Product<'a> {
    base: &'a Checkpoint,
    adapter: &'a PeftAdapter,
    changed: BTreeSet<String>,
    /// The factors that every row needs, of the most recently used modules.
    loaded: Mutex<VecDeque<(String, Arc<Vec<f32>>)>>,
}

impl<'a> Product<'a> {
    pub fn new(base: &'a Checkpoint, adapter: &'a PeftAdapter, changed: &BTreeSet<String>) -> Product<'a> {
        Product { base, adapter, changed: changed.clone(), loaded: Mutex::default() }
    }

    /// Bytes held: by all threads together (the shared factors of two modules), and by each thread.
    pub fn held(&self) -> [u64; 2] {
        let sizes = self.adapter.modules().map(|module| {
            let [out, inner] = module.shape();
            let columns = if module.place() == Place::Embedding { out } else { inner };
            let rows = height(columns);
            (module.rank() * inner * 4, rows * (columns + module.rank()) * 4)
        });
        let largest = sizes.fold((0, 0), |a, b| (a.0.max(b.0), a.1.max(b.1)));
        [2 * largest.0 as u64, largest.1 as u64]
    }

    /// The whole `lora_A` of a module.
    fn shared(&self, module: &PeftModule) -> Result<Arc<Vec<f32>>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, values)) = loaded.iter().find(|(name, _)| name == module.name()) {
            return Ok(Arc::clone(values));
        }
        // Evict before reading the new one: three would exceed the plan.
        while loaded.len() > 1 {
            loaded.pop_front();
        }
        let mut values = Vec::with_capacity(module.a().stored.shape.iter().product());
        self.adapter.panels(module.a(), |_, part| {
            values.extend_from_slice(part);
            Ok(())
        })?;
        let values = Arc::new(values);
        loaded.push_back((module.name().to_owned(), Arc::clone(&values)));
        Ok(values)
    }

    /// `B·A` of `rows` of the weight, row-major.
    fn product(&self, module: &PeftModule, rows: Range<usize>, columns: usize) -> Result<Vec<f32>> {
        let (rank, [out, inner]) = (module.rank(), module.shape());
        let a = self.shared(module)?;
        let mut product = vec![0f32; rows.len() * columns];
        let into = MatMut::from_row_major_slice_mut(&mut product, rows.len(), columns);
        if module.place() == Place::Embedding {
            // The weight is the transpose: its rows are columns of `lora_embedding_A`, and all of `lora_embedding_B` is
            // needed.
            let mut b = vec![0f32; out * rank];
            self.adapter.read(module.b(), 0..out, &mut b)?;
            let left =
                MatRef::from_row_major_slice(&a, rank, inner).subcols(rows.start, rows.len()).transpose();
            let right = MatRef::from_row_major_slice(&b, out, rank).transpose();
            matmul(into, Accum::Replace, left, right, 1.0, Par::Seq);
        } else {
            let mut b = vec![0f32; rows.len() * rank];
            self.adapter.read(module.b(), rows.clone(), &mut b)?;
            let left = MatRef::from_row_major_slice(&b, rows.len(), rank);
            let right = MatRef::from_row_major_slice(&a, rank, inner);
            matmul(into, Accum::Replace, left, right, 1.0, Par::Seq);
        }
        Ok(product)
    }
}

impl Change for Product<'_> {
    fn concerns(&self, module: &str) -> bool {
        self.changed.contains(module)
    }

    fn add(&self, name: &str, rows: Range<usize>, dtype: Dtype, values: &mut [f32]) -> Result<()> {
        let gone = || Error::unexpected("the module is gone").tensor(name);
        let module = self.adapter.module(name).ok_or_else(gone)?;
        if module.rank() == 0 {
            return Ok(());
        }
        let columns = self.base.module(name).ok_or_else(gone)?.shape()[1];
        let product = self.product(module, rows, columns)?;
        let scale = module.scale();
        // In f64, scale times product and the sum are accurate to its last bit. They are rounded to odd f32 if a second
        // rounding follows.
        let narrow = if dtype == Dtype::F32 { |sum: f64| sum as f32 } else { to_odd };
        for (value, product) in values.iter_mut().zip(product) {
            *value = narrow(f64::from(*value) + scale * f64::from(product));
        }
        Ok(())
    }
}

/// Rounds to odd: to the neighbour in f32 whose last bit is one, unless the number is exact in f32. A further rounding
/// to a type of 22 bits or fewer then gives what a single rounding would have given (Boldo and Melquiond 2008,
/// "Emulation of FMA and correctly rounded sums").
fn to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let back = f64::from(nearest);
    if back == value || nearest.to_bits() & 1 == 1 || !nearest.is_finite() {
        return nearest;
    }
    // An even neighbour was taken: the other one, towards the value, is odd.
    let bits = nearest.to_bits();
    f32::from_bits(if (back.abs() > value.abs()) && back != 0.0 { bits - 1 } else { bits + 1 })
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::to_odd;

    /// The nearest bf16 to a positive value, ties to even: the differences to its neighbours are exact.
    /// (`bf16::from_f64` drops the lower half of the bits before it rounds.)
    fn nearest(value: f64) -> bf16 {
        let near = bf16::from_f32(value as f32).to_bits();
        let around = [near.saturating_sub(1), near, near + 1].map(bf16::from_bits);
        let distance = |c: &bf16| ((value - c.to_f64()).abs(), c.to_bits() & 1);
        around.into_iter().min_by(|a, b| distance(a).partial_cmp(&distance(b)).unwrap()).unwrap()
    }

    #[test]
    fn one_rounding_not_two() {
        // Just above the middle of two bf16: f32 rounds it to the middle, and the second rounding would go to the even
        // one.
        let middle = f64::from(bf16::from_f32(1.0).to_f32()) + 2f64.powi(-8);
        let above = middle + 2f64.powi(-40);
        assert_eq!(bf16::from_f32(above as f32).to_f64(), 1.0);
        assert_eq!(bf16::from_f32(to_odd(above)).to_f64(), 1.0 + 2f64.powi(-7));
        for (value, odd) in
            [(1.0, 1.0), (-middle, -middle as f32), (0.0, 0.0), (-above, -(middle as f32) - f32::EPSILON)]
        {
            assert_eq!(to_odd(value), odd, "{value}");
        }
        assert_eq!(to_odd(1e-60), f32::from_bits(1));
        assert!(to_odd(f64::NAN).is_nan() && to_odd(1e60) == f32::INFINITY);
        let mut state = 1u64;
        for _ in 0..100_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let value = f64::from_bits(state >> 2 | 0x3000_0000_0000_0000).fract();
            assert_eq!(bf16::from_f32(to_odd(value)), nearest(value), "{value:e}");
        }
    }
}

//! Adds `scale · B·A` to rows of a weight.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use safetensors::Dtype;

use crate::commands::convert::sharding::height;
use crate::commands::convert::write_shard::Change;
use crate::lora::names::Place;
use crate::lora::read::PeftAdapter;
use crate::lora::read::classify::PeftModule;
use crate::quant::packing::row_concat::RowStride;
use crate::{Error, Result};

/// Rows of a product of an adapter, and the rows of a written weight that they are added to.
#[derive(Clone, Debug)]
pub(crate) struct Addend {
    /// The adapter's module.
    pub module: String,
    /// Which of the experts that its factors hold.
    pub expert: usize,
    /// The weight's rows.
    pub rows: Range<usize>,
    /// The product's rows that go to them.
    pub from: RowStride,
    /// Whether the weight holds the transpose of the product.
    pub turned: bool,
}

/// What is added to each written weight, by its name in the output.
pub(crate) type Addends = BTreeMap<String, Vec<Addend>>;

/// The changes of an adapter.
pub(crate) struct Product<'a> {
    adapter: &'a PeftAdapter,
    addends: Addends,
    /// The factors that every row needs, of the last modules that were asked for.
    loaded: Mutex<VecDeque<(String, Arc<Shared>)>>,
}

/// Factors that are held whole: `lora_A`, and `lora_B` where the product is added transposed.
#[derive(Default)]
struct Shared {
    a: Vec<f32>,
    b: Vec<f32>,
}

impl<'a> Product<'a> {
    pub fn new(adapter: &'a PeftAdapter, addends: Addends) -> Product<'a> {
        Product { adapter, addends, loaded: Mutex::default() }
    }

    /// Bytes held: by all threads together (the shared factors of two modules), and by each thread.
    pub fn held(&self) -> [u64; 2] {
        let size = |addend: &Addend| {
            let module = self.adapter.module(&addend.module)?;
            let ([out, inner], width) = (module.shape(), module.rank() * module.experts());
            let columns = if module.place() == Place::Embedding || addend.turned { out } else { inner };
            let rows = height(columns);
            // A stack's rows of `lora_B` are those of all experts, and of rows by turns every one is read.
            let read = if module.experts() > 1 { 2 * width } else { width };
            let shared = width * (inner + if addend.turned { out } else { 0 });
            Some((shared * 4, rows * (columns + read) * 4))
        };
        let sizes = self.addends.values().flatten().filter_map(size);
        let most = sizes.fold((0, 0), |a, b| (a.0.max(b.0), a.1.max(b.1)));
        [2 * most.0 as u64, most.1 as u64]
    }

    /// The factors of a module that are needed whole.
    fn shared(&self, module: &PeftModule, turned: bool) -> Result<Arc<Shared>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, values)) = loaded.iter().find(|(name, _)| name == module.name()) {
            return Ok(Arc::clone(values));
        }
        // Evict before reading the new one: three would exceed the plan.
        while loaded.len() > 1 {
            loaded.pop_front();
        }
        let whole = |tensor: &crate::checkpoint::Tensor| {
            let mut values = Vec::with_capacity(tensor.stored.shape.iter().product());
            self.adapter.panels(tensor, |_, part| {
                values.extend_from_slice(part);
                Ok(())
            })?;
            Ok::<_, Error>(values)
        };
        let b = if turned { whole(module.b())? } else { Vec::new() };
        let values = Arc::new(Shared { a: whole(module.a())?, b });
        loaded.push_back((module.name().to_owned(), Arc::clone(&values)));
        Ok(values)
    }

    /// The product's part for `rows` of the weight, which are counted from the addend's first, row-major.
    fn product(
        &self,
        addend: &Addend,
        module: &PeftModule,
        rows: Range<usize>,
        columns: usize,
    ) -> Result<Vec<f32>> {
        let (rank, [out, inner]) = (module.rank(), module.shape());
        let shared = self.shared(module, addend.turned)?;
        let a = &shared.a[addend.expert * rank * inner..(addend.expert + 1) * rank * inner];
        let a = MatRef::from_row_major_slice(a, rank, inner);
        let mut product = vec![0f32; rows.len() * columns];
        let into = MatMut::from_row_major_slice_mut(&mut product, rows.len(), columns);
        if module.place() == Place::Embedding {
            // The weight is the transpose: its rows are columns of `lora_embedding_A`, and all of `lora_embedding_B` is
            // needed.
            let mut b = vec![0f32; out * rank];
            self.adapter.read(module.b(), 0..out, &mut b)?;
            let left = a.subcols(rows.start, rows.len()).transpose();
            let right = MatRef::from_row_major_slice(&b, out, rank).transpose();
            matmul(into, Accum::Replace, left, right, 1.0, Par::Seq);
        } else if addend.turned {
            let b = columns_of(&shared.b, addend.expert, module.experts());
            let left = a.subcols(rows.start, rows.len()).transpose();
            let right = MatRef::from_row_major_slice(&b, out, rank).transpose();
            matmul(into, Accum::Replace, left, right, 1.0, Par::Seq);
        } else {
            let b = self.rows_of_b(addend, module, &rows)?;
            let left = MatRef::from_row_major_slice(&b, rows.len(), rank);
            matmul(into, Accum::Replace, left, a, 1.0, Par::Seq);
        }
        Ok(product)
    }

    /// The rows of `lora_B` for `rows`, `[rows, rank]`.
    fn rows_of_b(&self, addend: &Addend, module: &PeftModule, rows: &Range<usize>) -> Result<Vec<f32>> {
        let width = module.rank() * module.experts();
        let (first, step) = (addend.from.of(rows.start), addend.from.step);
        let last = addend.from.of(rows.end - 1);
        let mut all = vec![0f32; (last + 1 - first) * width];
        self.adapter.read(module.b(), first..last + 1, &mut all)?;
        if (module.experts(), step) == (1, 1) {
            return Ok(all);
        }
        let lines = all.chunks_exact(width).step_by(step);
        Ok(lines.flat_map(|line| columns_of(line, addend.expert, module.experts())).collect())
    }
}

/// The columns of one expert of `lora_B`: column `k · experts + e` is direction `k` of expert `e`.
fn columns_of(b: &[f32], expert: usize, experts: usize) -> Vec<f32> {
    b.iter().skip(expert).step_by(experts).copied().collect()
}

impl Change for Product<'_> {
    fn concerns(&self, weight: &str) -> bool {
        self.addends.contains_key(weight)
    }

    fn add(&self, weight: &str, rows: Range<usize>, dtype: Dtype, values: &mut [f32]) -> Result<()> {
        let addends = self.addends.get(weight).map(Vec::as_slice).unwrap_or_default();
        let columns = values.len() / rows.len().max(1);
        for addend in addends {
            let part = rows.start.max(addend.rows.start)..rows.end.min(addend.rows.end);
            let gone = || Error::unexpected("the module is gone").tensor(&addend.module);
            let module = self.adapter.module(&addend.module).ok_or_else(gone)?;
            if part.is_empty() || module.rank() == 0 {
                continue;
            }
            let own = part.start - addend.rows.start..part.end - addend.rows.start;
            let product = self.product(addend, module, own, columns)?;
            let values = &mut values[(part.start - rows.start) * columns..(part.end - rows.start) * columns];
            add_rounded(values, &product, module.scale(), dtype);
        }
        Ok(())
    }
}

/// In f64 scale, product and sum are good to its last bit; to f32 they go by rounding to odd where a second rounding
/// follows.
fn add_rounded(values: &mut [f32], product: &[f32], scale: f64, dtype: Dtype) {
    let narrow = if dtype == Dtype::F32 { |sum: f64| sum as f32 } else { to_odd };
    for (value, product) in values.iter_mut().zip(product) {
        *value = narrow(f64::from(*value) + scale * f64::from(*product));
    }
}

/// Rounds to odd: to the neighbour in f32 whose last bit is one, unless the number is exact. A further rounding to a
/// type of 22 bits or fewer then gives what one rounding would have given (Boldo and Melquiond 2008, "Emulation of FMA
/// and correctly rounded sums").
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

//! Computes one module's new factors, and the distance of their product from the old one.

use crate::commands::sanitize::record::Refitted;
use crate::factorize::truncate::{product_norm2, recompress};
use crate::lora::factor_dtype::FactorType;
use crate::lora::read::classify::PeftModule;
use crate::lora::read::{Factors, PeftAdapter};
use crate::{Error, Result};

/// The square of the relative error of a product beyond which F16 is too narrow for its factors: four times what
/// rounding costs where all of them are normal numbers.
const UNDERFLOW: f64 = 1.0 / (512.0 * 512.0);

/// A module's factors as stored bytes.
pub(crate) struct Encoded {
    /// `lora_A` `[rank · experts, in]`.
    pub(crate) a: Vec<u8>,
    /// `lora_B` `[out, rank · experts]`.
    pub(crate) b: Vec<u8>,
}

/// Computes the factors of `module` at the uniform `rank`, with the scale multiplied into `lora_B`.
///
/// # Errors
/// Factors that hold NaN or infinities, as read or, because of the scale, as stored; a tensor that cannot be read.
pub(crate) fn refit(
    adapter: &PeftAdapter,
    module: &PeftModule,
    rank: usize,
    dtype: FactorType,
) -> Result<(Encoded, Refitted)> {
    let Factors { a, b } = adapter.factors(module)?;
    for (factor, tensor) in [(&a, module.a()), (&b, module.b())] {
        if factor.iter().any(|value| !value.is_finite()) {
            return Err(Error::input("a factor holds NaN or infinities")
                .tensor(tensor.name())
                .path(adapter.root())
                .hint("the training diverged, or the file is damaged: the adapter cannot be repaired"));
        }
    }
    let [out, inner] = module.shape();
    let (width, scale) = (module.rank() * module.experts(), module.scale());
    let old = Widths { a, b, rank: module.rank(), experts: module.experts() };
    let norm2 = scale.powi(2) * old.norm2([out, inner]);
    let Widths { a, b, .. } = old;
    let (new, cut2) = if module.rank() > rank {
        let cut = recompress(&b, &a, [out, width, inner], scale, rank)?;
        let kept = cut.left.len() / out.max(1);
        let (a, b) = (cut.right.clone(), cut.left.clone());
        (Widths { a, b, rank: kept, experts: 1 }, cut.error2(rank))
    } else {
        let b: Vec<f32> = b.iter().map(|value| (f64::from(*value) * scale) as f32).collect();
        (Widths { a, b, rank: module.rank(), experts: module.experts() }, 0.0)
    };
    let rounded = |new: &Widths| {
        let mut stored = [new.a.clone(), new.b.clone()];
        stored.iter_mut().for_each(|factor| drop(dtype.round(factor)));
        stored
    };
    let lost2 = |new: &Widths, [a, b]: &[Vec<f32>; 2]| new.distance2(a, b, [out, inner]);
    let mut new = new;
    let mut stored = rounded(&new);
    let finite = |stored: &[Vec<f32>; 2]| stored.iter().flatten().all(|value| value.is_finite());
    if dtype == FactorType::F16 && (!finite(&stored) || lost2(&new, &stored) > norm2 * UNDERFLOW) {
        new.balance([out, inner]);
        stored = rounded(&new);
        if finite(&stored) && lost2(&new, &stored) > norm2 * UNDERFLOW {
            return Err(Error::decide("F16 cannot hold these factors: most of their values become zero")
                .tensor(module.a().name())
                .path(adapter.root())
                .hint("give --dtype bf16 or f32"));
        }
    }
    for (stored, tensor) in stored.iter().zip([module.a(), module.b()]) {
        if stored.iter().any(|value| !value.is_finite()) {
            return Err(Error::decide(format!(
                "{} cannot hold this factor once the scale {scale} is multiplied in",
                dtype.dtype()
            ))
            .tensor(tensor.name())
            .path(adapter.root())
            .hint("give --dtype f32"));
        }
    }
    let [rounded_a, rounded_b] = &stored;
    let rounding2 = new.distance2(rounded_a, rounded_b, [out, inner]);
    let relative = |error2: f64| if norm2 > 0.0 { (error2 / norm2).sqrt() } else { 0.0 };
    let refitted = Refitted {
        name: module.name().to_owned(),
        rank: module.rank(),
        scale,
        norm: norm2.sqrt(),
        truncation_error: relative(cut2),
        rounding_error: relative(rounding2),
    };
    let [a, b] = stored;
    let mut padded = Widths { a, b, ..new }.padded(rank, out, inner);
    Ok((Encoded { a: dtype.round(&mut padded.a), b: dtype.round(&mut padded.b) }, refitted))
}

/// Factors, and what their common dimension consists of.
struct Widths {
    /// `[experts, rank, in]`.
    a: Vec<f32>,
    /// `[out, rank, experts]`.
    b: Vec<f32>,
    rank: usize,
    experts: usize,
}

impl Widths {
    /// Pads with zeros to `rank`: rows of each expert's `lora_A`, columns of `lora_B`.
    fn padded(self, rank: usize, out: usize, inner: usize) -> Widths {
        let Widths { a, b, rank: old, experts } = self;
        if old == rank {
            return Widths { a, b, rank, experts };
        }
        let (mut wide_a, mut wide_b) = (vec![0.0; experts * rank * inner], vec![0.0; out * rank * experts]);
        if old > 0 {
            let blocks =
                wide_a.chunks_exact_mut((rank * inner).max(1)).zip(a.chunks_exact((old * inner).max(1)));
            blocks.for_each(|(to, from)| to[..from.len()].copy_from_slice(from));
            let rows = wide_b.chunks_exact_mut(rank * experts).zip(b.chunks_exact(old * experts));
            rows.for_each(|(to, from)| to[..from.len()].copy_from_slice(from));
        }
        Widths { a: wide_a, b: wide_b, rank, experts }
    }

    /// Gives both factors of each direction about the same norm, by powers of two, which change no digit of the
    /// product.
    fn balance(&mut self, [out, inner]: [usize; 2]) {
        let (rank, experts) = (self.rank, self.experts);
        for (expert, k) in (0..experts).flat_map(|expert| (0..rank).map(move |k| (expert, k))) {
            let (row, column) = (expert * rank + k, k * experts + expert);
            let width = rank * experts;
            let norm = |values: &mut dyn Iterator<Item = f32>| {
                values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
            };
            let a = norm(&mut self.a[row * inner..(row + 1) * inner].iter().copied()) / (inner as f64).sqrt();
            let b = norm(&mut self.b.iter().skip(column).step_by(width).copied()) / (out as f64).sqrt();
            let shift = (b / a).log2() / 2.0;
            if !shift.is_finite() {
                continue;
            }
            let factor = 2f32.powi(shift.round().clamp(-60.0, 60.0) as i32);
            self.a[row * inner..(row + 1) * inner].iter_mut().for_each(|value| *value *= factor);
            self.b.iter_mut().skip(column).step_by(width).for_each(|value| *value /= factor);
        }
    }

    /// `||B·A||^2` (Frobenius); for fused experts, the sum over the experts' products.
    fn norm2(&self, [out, inner]: [usize; 2]) -> f64 {
        let of_expert = |expert| {
            let (a, b) = (self.rows_of(&self.a, expert, inner), self.columns_of(&self.b, expert));
            product_norm2(&b, a, [out, self.rank, inner])
        };
        (0..self.experts).map(of_expert).sum()
    }

    /// The squared norm of the difference from the product of `a` and `b`, as `(B - b)·A + b·(A - a)`, which does not
    /// cancel.
    fn distance2(&self, a: &[f32], b: &[f32], [out, inner]: [usize; 2]) -> f64 {
        let minus = |x: &[f32], y: &[f32]| -> Vec<f32> { x.iter().zip(y).map(|(x, y)| x - y).collect() };
        let is_zero = |values: &[f32]| values.iter().all(|value| *value == 0.0);
        let (more_a, more_b) = (minus(&self.a, a), minus(&self.b, b));
        if is_zero(&more_a) && is_zero(&more_b) {
            return 0.0;
        }
        let of_expert = |expert| {
            let (more_b, whole_b) = (self.columns_of(&more_b, expert), self.columns_of(b, expert));
            let pairs = more_b.chunks_exact(self.rank).zip(whole_b.chunks_exact(self.rank));
            let left: Vec<f32> = pairs.flat_map(|(more, whole)| more.iter().chain(whole)).copied().collect();
            let right = [self.rows_of(&self.a, expert, inner), self.rows_of(&more_a, expert, inner)].concat();
            product_norm2(&left, &right, [out, 2 * self.rank, inner])
        };
        (0..self.experts).map(of_expert).sum()
    }

    /// One expert's rows of `lora_A`, `[rank, in]`.
    fn rows_of<'a>(&self, a: &'a [f32], expert: usize, inner: usize) -> &'a [f32] {
        &a[expert * self.rank * inner..(expert + 1) * self.rank * inner]
    }

    /// One expert's columns of `lora_B`, `[out, rank]`.
    fn columns_of(&self, b: &[f32], expert: usize) -> Vec<f32> {
        b.iter().skip(expert).step_by(self.experts).copied().collect()
    }
}

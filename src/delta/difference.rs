//! The difference of one pair of modules, `tuned - base`, in slices of rows.

use crate::delta::operand::Operand;
use crate::pipeline::memory::slice_rows;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use crate::checkpoint::reader::{MappedRows, ModuleReader};
use crate::delta::options::{NonFinite, RoundBase};
use crate::delta::record::TensorRecord;
use crate::delta::rescaling::Rescaling;
use crate::delta::tensor_digests::Hashers;
use crate::factorize::kernel::block_ops::square_sum;
use crate::factorize::kernel::bytes::codes::{quantize_rows, record_words, words};
use crate::quant::number::rounding::round_to_bf16;
use crate::{Error, Result};

/// Elements that are decoded, subtracted and summed together.
const PIECE: usize = 1 << 14;

/// Slices that are decoded between two steps of hashing; and where they come from a server, of which no more than these
/// has to be here at once.
const SLICES: [usize; 2] = [16, 4];

/// Scratch bytes of a visit for each thread, in addition to its panel and the pages mapped for it. Where a module is
/// kept whole, decoded slices of both sides, in f64 at worst; else pieces of them, and a slice for differences that are
/// not held.
pub fn visit_scratch(is_kept: bool) -> u64 {
    if is_kept { 12 << 20 } else { 3 << 20 }
}

/// The difference `tuned - base`, `[rows, cols]`; `rows` may be fewer than either side has.
///
/// While it exists, the bytes of a side whose rows cannot be decoded one by one stay resident: see [`ModuleReader`].
#[derive(Debug)]
pub struct Difference<'a> {
    base: Operand<'a>,
    tuned: Operand<'a>,
    readers: [ModuleReader<'a>; 2],
    rows: usize,
    round_base: RoundBase,
    non_finite: NonFinite,
    /// What the tuned side is multiplied by.
    rescaling: Option<Arc<Rescaling>>,
}

/// The results of the first pass over a difference.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Square of the Frobenius norm, summed in f64.
    pub norm2: f64,
    /// Square of the base's norm.
    pub base_norm2: f64,
    /// Elements that were set to zero because a weight is not finite.
    pub non_finite: u64,
    /// Elements whose difference in f64 is not zero, but is zero in f32.
    pub vanished: u64,
    /// Square of the norm of what the difference's codes miss of it, if it was quantized.
    pub missed2: f64,
    /// Digests of the tensors that were read.
    pub tensors: Vec<TensorRecord>,
}

#[derive(Clone, Copy, Default)]
struct Sums {
    norm2: f64,
    base_norm2: f64,
    non_finite: u64,
    vanished: u64,
    missed2: f64,
}

/// What the first pass over a difference keeps.
pub enum Keep<'k> {
    /// Only sums and digests.
    Sums,
    /// The values, `[rows, cols]`.
    Values(&'k mut [f32]),
    /// The values, and how exact bytes are.
    Both(&'k mut [f32]),
    /// The values in bytes, [`code_words`](crate::factorize::code_words); or only how exact bytes are.
    Codes(Option<&'k mut [f32]>),
}

/// Rows that share a record of codes.
const RECORD: usize = 4;

impl Sums {
    fn add(&mut self, other: Sums) {
        self.norm2 += other.norm2;
        self.base_norm2 += other.base_norm2;
        self.non_finite += other.non_finite;
        self.vanished += other.vanished;
        self.missed2 += other.missed2;
    }
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    narrow: Vec<f32>,
    wide: [Vec<f64>; 2],
    out: Vec<f32>,
    codes: Vec<f32>,
}

/// The squared norm of what the codes of these rows miss of them.
fn missed(values: &[f32], cols: usize, codes: &mut Vec<f32>) -> f64 {
    codes.resize(words(values.len() / cols.max(1), cols), 0.0);
    quantize_rows(values, cols, codes)
}

/// Lends the thread's buffers. They are kept, because fresh pages would have to be cleared for every slice.
fn with_scratch<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    thread_local! { static SCRATCH: RefCell<Scratch> = RefCell::default(); }
    SCRATCH.with_borrow_mut(work)
}

impl<'a> Difference<'a> {
    /// The difference of the first `rows` rows of one pair. `round_base` rounds the base first; `non_finite` handles
    /// NaN and infinities.
    ///
    /// # Errors
    /// A side that cannot be opened.
    pub fn new(
        base: Operand<'a>,
        tuned: Operand<'a>,
        rows: usize,
        round_base: RoundBase,
        non_finite: NonFinite,
    ) -> Result<Difference<'a>> {
        let open = |half: Operand<'a>| ModuleReader::open(half.checkpoint, half.module);
        let (readers, rescaling) = ([open(base)?, open(tuned)?], None);
        Ok(Difference { base, tuned, readers, rows, round_base, non_finite, rescaling })
    }

    /// The same with the tuned side multiplied by these factors.
    #[must_use]
    pub fn rescaled(self, rescaling: Option<Arc<Rescaling>>) -> Difference<'a> {
        Difference { rescaling, ..self }
    }

    /// Rows of the difference.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.base.module.shape()[1]
    }

    fn slice_rows(&self) -> usize {
        slice_rows(self.cols())
    }

    /// Decodes, subtracts and sums `rows`, at most a slice, into `out`, in pieces that stay in the cache. The base's
    /// norm is summed only in the survey (`surveyed`); later passes do not need it.
    fn slice(
        &self,
        rows: Range<usize>,
        out: &mut [f32],
        scratch: &mut Scratch,
        surveyed: bool,
    ) -> Result<Sums> {
        let [base, tuned] = &self.readers;
        let (base, tuned) = (base.rows(rows.clone())?, tuned.rows(rows.clone())?);
        let step = self.piece_rows();
        let mut total = Sums::default();
        for (out, start) in out.chunks_mut((step * self.cols()).max(1)).zip(rows.clone().step_by(step)) {
            let rows = start..(start + step).min(rows.end);
            total.add(self.piece([&base, &tuned], rows, out, scratch, surveyed)?);
        }
        Ok(total)
    }

    /// Rows of a piece: few, except for formats whose single rows are expensive.
    fn piece_rows(&self) -> usize {
        let expensive = self.readers.iter().any(ModuleReader::is_kept);
        if expensive { self.slice_rows() } else { (PIECE / self.cols().max(1)).max(1) }
    }

    fn piece(
        &self,
        [base, tuned]: [&MappedRows<'_>; 2],
        rows: Range<usize>,
        out: &mut [f32],
        scratch: &mut Scratch,
        surveyed: bool,
    ) -> Result<Sums> {
        let wide = self.readers.iter().any(|reader| reader.module().weight().is_wide());
        let (mut base_norm2, mut vanished) = (0.0, 0);
        if wide {
            let [b, t] = &mut scratch.wide;
            b.resize(out.len(), 0.0);
            t.resize(out.len(), 0.0);
            base.decode_f64(rows.clone(), b)?;
            tuned.decode_f64(rows.clone(), t)?;
            if let Some(rescaling) = &self.rescaling {
                rescaling.apply_f64(rows.clone(), self.cols(), t);
            }
            if self.round_base == RoundBase::Bf16 {
                b.iter_mut().for_each(|b| *b = half::bf16::from_f64(*b).to_f64());
            }
            for ((out, b), t) in out.iter_mut().zip(b.iter()).zip(t.iter()) {
                base_norm2 += b * b;
                *out = (t - b) as f32;
                vanished += u64::from(*out == 0.0 && t != b);
            }
        } else {
            let b = &mut scratch.narrow;
            b.resize(out.len(), 0.0);
            base.decode(rows.clone(), b)?;
            tuned.decode(rows.clone(), out)?;
            if let Some(rescaling) = &self.rescaling {
                rescaling.apply(rows.clone(), self.cols(), out);
            }
            if self.round_base == RoundBase::Bf16 {
                round_to_bf16(b);
            }
            if surveyed {
                base_norm2 = square_sum(b);
            }
            out.iter_mut().zip(b.iter()).for_each(|(out, b)| *out -= b);
        }
        let norm2 = square_sum(out);
        if norm2.is_finite() {
            return Ok(Sums { norm2, base_norm2, non_finite: 0, vanished, missed2: 0.0 });
        }
        let non_finite = self.mend(rows, out)?;
        Ok(Sums { norm2: square_sum(out), base_norm2, non_finite, vanished, missed2: 0.0 })
    }

    /// Sets differences that are not finite to zero and counts them, or reports the position of the first one.
    fn mend(&self, rows: Range<usize>, out: &mut [f32]) -> Result<u64> {
        let mut count = 0;
        for (at, value) in out.iter_mut().enumerate() {
            if value.is_finite() {
                continue;
            }
            if self.non_finite == NonFinite::Fail {
                return Err(self.not_finite(rows.start + at / self.cols(), at % self.cols()));
            }
            *value = 0.0;
            count += 1;
        }
        Ok(count)
    }

    fn not_finite(&self, row: usize, col: usize) -> Error {
        let mut values = vec![0f64; self.cols()];
        for (half, reader) in [self.base, self.tuned].iter().zip(&self.readers) {
            let read =
                reader.rows(row..row + 1).and_then(|mapped| mapped.decode_f64(row..row + 1, &mut values));
            if let Err(e) = read {
                return e;
            }
            if !values[col].is_finite() {
                let what = format!("a weight is not finite ({} at row {row}, column {col})", values[col]);
                return Error::input(what)
                    .tensor(half.module.name())
                    .path(half.path())
                    .hint("--non-finite zero sets the difference there to zero, and counts it");
            }
        }
        let what = format!("the difference at row {row}, column {col} does not fit in f32");
        Error::input(what).tensor(self.base.module.name()).path(self.base.path())
    }

    /// Reads everything once for the sums and the digests, and for what `keep` says.
    ///
    /// # Errors
    /// A failure to read or decode; a weight that is not finite.
    pub fn survey(&self, mut keep: Keep<'_>, read: &(dyn Fn(u64) + Sync)) -> Result<Survey> {
        let step = (self.slice_rows() / RECORD * RECORD).max(RECORD);
        let starts: Vec<usize> = (0..self.rows).step_by(step).collect();
        let mut hashers = Hashers::new(&[self.base, self.tuned]);
        let mut total = Sums::default();
        let fetched = self.base.checkpoint.is_remote() || self.tuned.checkpoint.is_remote();
        let slices = SLICES[usize::from(fetched)];
        let chunks = starts.len().div_ceil(slices).max(1);
        for chunk in 0..chunks {
            let [from, to] = [chunk, chunk + 1].map(|chunk| (chunk * slices).min(starts.len()));
            let starts = &starts[from..to];
            let decode = || self.decode(starts, step, &mut keep);
            let (hashed, sums) = rayon::join(|| hashers.advance(chunk + 1, chunks, read), decode);
            hashed?;
            for sum in sums? {
                total.add(sum);
            }
        }
        Ok(Survey {
            norm2: total.norm2,
            base_norm2: total.base_norm2,
            non_finite: total.non_finite,
            vanished: total.vanished,
            missed2: total.missed2,
            tensors: hashers.finish()?,
        })
    }

    /// Decodes the slices of `step` rows that begin at `starts`, in parallel, into their place, or only for their sums.
    fn decode(&self, starts: &[usize], step: usize, keep: &mut Keep<'_>) -> Result<Vec<Sums>> {
        let cols = self.cols();
        let rows = |start: usize| start..(start + step).min(self.rows);
        let first = starts.first().copied().unwrap_or_default();
        let slices = starts.par_iter().map(|&start| rows(start));
        let rounded = matches!(keep, Keep::Both(_));
        match keep {
            Keep::Sums => slices.map(|rows| self.pass(rows, |_, _| 0.0)).collect(),
            Keep::Values(values) | Keep::Both(values) => {
                let parts = values[first * cols..].par_chunks_mut((step * cols).max(1)).zip(slices);
                parts
                    .map(|(out, rows)| {
                        with_scratch(|scratch| {
                            let sums = self.slice(rows, out, scratch, true)?;
                            let missed2 =
                                if rounded { missed(out, cols, &mut scratch.codes) } else { sums.missed2 };
                            Ok(Sums { missed2, ..sums })
                        })
                    })
                    .collect()
            }
            Keep::Codes(None) => {
                slices.map(|rows| self.pass(rows, |values, codes| missed(values, cols, codes))).collect()
            }
            Keep::Codes(Some(codes)) => {
                let record = record_words(cols);
                let parts =
                    codes[first / RECORD * record..].par_chunks_mut(step / RECORD * record).zip(slices);
                parts
                    .map(|(out, rows)| {
                        let out = &mut out[..words(rows.len(), cols)];
                        self.pass(rows, |values, _| quantize_rows(values, cols, out))
                    })
                    .collect()
            }
        }
    }

    /// Decodes a slice, and has `quantize` look at its values. It gets working memory too, and returns the squared norm
    /// of what its codes miss.
    fn pass(&self, rows: Range<usize>, quantize: impl FnOnce(&[f32], &mut Vec<f32>) -> f64) -> Result<Sums> {
        with_scratch(|scratch| {
            let mut out = std::mem::take(&mut scratch.out);
            out.resize(rows.len() * self.cols(), 0.0);
            let sums = self.slice(rows, &mut out, scratch, true);
            let missed2 = if sums.is_ok() { quantize(&out, &mut scratch.codes) } else { 0.0 };
            scratch.out = out;
            sums.map(|sums| Sums { missed2, ..sums })
        })
    }

    /// Writes `rows` of the difference to `out`.
    pub(super) fn fill(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (cols, step) = (self.cols(), self.slice_rows());
        with_scratch(|scratch| {
            for (part, start) in out.chunks_mut(step * cols.max(1)).zip(rows.clone().step_by(step)) {
                self.slice(start..(start + step).min(rows.end), part, scratch, false)?;
            }
            Ok(())
        })
    }
}

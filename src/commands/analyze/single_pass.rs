//! One pass over a module in all its checkpoints at once, for the sums that its statistics follow from.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use crate::Result;
use crate::checkpoint::reader::ModuleReader;
use crate::commands::analyze::quartet::{Checkpoints, Quartet, TunedNoise};
use crate::commands::analyze::stats::noise_sums::Sums;
use crate::pipeline::memory::slice_rows;

/// Bytes that a thread needs for the slices of a pass, apart from mapped pages and the quantized band: decoded values
/// of four checkpoints in f64 (at worst) and in f32, and four differences.
pub const SURVEY_SCRATCH: u64 = (1 << 18) * (4 * 8 + 4 * 4 + 4 * 4);

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    band: Vec<f32>,
    values: [Vec<f32>; 4],
    wide: [Vec<f64>; 4],
    differences: [Vec<f32>; 4],
}

/// Rows that are processed together: a slice, or a band of blocks that are quantized together.
fn unit_rows(quartet: &Quartet<'_>) -> usize {
    let slice = slice_rows(quartet.pair.shape[1]);
    match quartet.tuned_noise {
        TunedNoise::Rounded(how) => (slice / how.band()).max(1) * how.band(),
        _ => slice,
    }
}

/// Bytes that a thread needs for the quantized band.
pub fn band_bytes(quartet: &Quartet<'_>) -> u64 {
    match quartet.tuned_noise {
        TunedNoise::Rounded(how) => {
            let values = unit_rows(quartet).min(quartet.pair.rows) * quartet.pair.shape[1];
            (4 * values + how.scratch(values)) as u64
        }
        _ => 0,
    }
}

/// Computes the sums over a module on all threads of the current pool. The order of summation depends
/// only on its shape.
///
/// # Errors
/// Errors of reading and decoding.
pub fn survey(checkpoints: &Checkpoints, quartet: &Quartet<'_>, read: &(dyn Fn(u64) + Sync)) -> Result<Sums> {
    let (unit, rows) = (unit_rows(quartet), quartet.pair.rows);
    let starts: Vec<usize> = (0..rows).step_by(unit).collect();
    let readers = Readers::open(checkpoints, quartet)?;
    let sum_unit = |&start: &usize| {
        thread_local! { static SCRATCH: RefCell<Scratch> = RefCell::default(); }
        let rows = start..(start + unit).min(rows);
        let sums = SCRATCH.with_borrow_mut(|scratch| add_unit(&readers, quartet, rows.clone(), scratch))?;
        read(quartet.packed_size(rows));
        Ok(sums)
    };
    let parts = starts.par_iter().with_max_len(1).map(sum_unit).collect::<Result<Vec<Sums>>>()?;
    Ok(parts.into_iter().fold(Sums::default(), |mut total, part| {
        total += part;
        total
    }))
}

/// A module's readers in `B`, `Q` and `T`, and in `P` if that is stored.
struct Readers<'a> {
    three: [ModuleReader<'a>; 3],
    tuned_quantized: Option<ModuleReader<'a>>,
}

impl<'a> Readers<'a> {
    fn open(checkpoints: &'a Checkpoints, quartet: &Quartet<'a>) -> Result<Readers<'a>> {
        let stored = match quartet.tuned_noise {
            TunedNoise::TensorInfo(module) => {
                checkpoints.tuned_quantized.as_ref().map(|checkpoint| (checkpoint, module))
            }
            _ => None,
        };
        Ok(Readers {
            three: [
                ModuleReader::open(&checkpoints.base, quartet.base)?,
                ModuleReader::open(&checkpoints.base_quantized, quartet.base_quantized)?,
                ModuleReader::open(&checkpoints.tuned, quartet.tuned)?,
            ],
            tuned_quantized: stored
                .map(|(checkpoint, module)| ModuleReader::open(checkpoint, module))
                .transpose()?,
        })
    }

    fn is_wide(&self) -> bool {
        self.three.iter().chain(&self.tuned_quantized).any(|reader| reader.module().weight().is_wide())
    }
}

fn add_unit(
    readers: &Readers<'_>,
    quartet: &Quartet<'_>,
    rows: Range<usize>,
    scratch: &mut Scratch,
) -> Result<Sums> {
    let cols = quartet.pair.shape[1];
    if let TunedNoise::Rounded(how) = quartet.tuned_noise {
        scratch.band.resize(rows.len() * cols, 0.0);
        readers.three[2].panel(rows.clone(), &mut scratch.band)?;
        how.apply(&mut scratch.band, cols);
    }
    let mut sums = Sums::default();
    let step = slice_rows(cols);
    for start in rows.clone().step_by(step) {
        let part = start..(start + step).min(rows.end);
        let offset = (part.start - rows.start) * cols;
        let Scratch { band, values, wide, differences } = scratch;
        let rounded = matches!(quartet.tuned_noise, TunedNoise::Rounded(_));
        let band = rounded.then(|| &band[offset..offset + part.len() * cols]);
        if readers.is_wide() {
            let decode = |reader: &ModuleReader<'_>, out: &mut [f64]| reader.panel_f64(part.clone(), out);
            let narrow = |values: &[f32], out: &mut [f64]| {
                out.iter_mut().zip(values).for_each(|(o, v)| *o = f64::from(*v));
            };
            fill(readers, wide, part.len() * cols, decode, narrow, band)?;
            let [base, quantized, tuned, tuned_quantized] = wide;
            values[0].resize(base.len(), 0.0);
            values[0].iter_mut().zip(&*base).for_each(|(v, b)| *v = *b as f32);
            for (out, [from, less]) in differences.iter_mut().zip([
                [&*tuned, &*base],
                [quantized, base],
                [tuned_quantized, tuned],
                [tuned, quantized],
            ]) {
                out.clear();
                out.extend(from.iter().zip(less).map(|(a, b)| (a - b) as f32));
            }
        } else {
            let decode = |reader: &ModuleReader<'_>, out: &mut [f32]| reader.panel(part.clone(), out);
            let narrow = |values: &[f32], out: &mut [f32]| out.copy_from_slice(values);
            fill(readers, values, part.len() * cols, decode, narrow, band)?;
            let [base, quantized, tuned, tuned_quantized] = &*values;
            for (out, [from, less]) in differences.iter_mut().zip([
                [tuned, base],
                [quantized, base],
                [tuned_quantized, tuned],
                [tuned, quantized],
            ]) {
                out.clear();
                out.extend(from.iter().zip(less).map(|(a, b)| a - b));
            }
        }
        let [change, base_noise, tuned_noise, corrective] = &*differences;
        sums.add(&values[0], change, base_noise, tuned_noise, corrective);
    }
    Ok(sums)
}

/// Decodes a slice of every checkpoint: `B`, `Q`, `T`, `P`. If there is no `P` to read, `P` is `band` (`T` after
/// rounding), or else `T`.
fn fill<T: Copy + Default>(
    readers: &Readers<'_>,
    out: &mut [Vec<T>; 4],
    count: usize,
    decode: impl Fn(&ModuleReader<'_>, &mut [T]) -> Result<()>,
    narrow: impl Fn(&[f32], &mut [T]),
    band: Option<&[f32]>,
) -> Result<()> {
    out.iter_mut().for_each(|values| values.resize(count, T::default()));
    for (values, reader) in out.iter_mut().zip(&readers.three) {
        decode(reader, values)?;
    }
    let [_, _, tuned, tuned_quantized] = out;
    match (&readers.tuned_quantized, band) {
        (Some(reader), _) => decode(reader, tuned_quantized)?,
        (None, Some(band)) => narrow(band, tuned_quantized),
        (None, None) => tuned_quantized.copy_from_slice(tuned),
    }
    Ok(())
}

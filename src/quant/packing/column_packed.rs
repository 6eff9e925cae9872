//! Weights stored transposed and packed, `[in, out]`, as in GPTQ and AWQ: a logical row is a column of the file.
//!
//! **What is resident.** A panel of rows touches a few bytes in every stored row, so [`spans`](Dequantize::spans)
//! returns whole tensors: a module costs their mapped pages, `bits / 32` of its size in f32 (an eighth at four bits),
//! never more. They are mapped once for all panels and threads ([`is_whole`](Dequantize::is_whole)). A panel decodes
//! only its own columns, but a processor reads memory in lines of 64 bytes: 16 rows of GPTQ, 128 rows of AWQ at four
//! bits. Panels with fewer rows, or that begin inside a line, read such a line once more.
//!
//! The value is `rT((q - z) * s)`, with T the dtype of the scale, the same arithmetic as `scaled_codes.rs` for one row.

use std::ops::Range;

use safetensors::Dtype;

use crate::quant::declared::missing;
use crate::quant::format::dense::widen;
use crate::quant::number::rounding::round;
use crate::quant::packing::scaled_codes::{gathered, order, scaled};
use crate::quant::weight::{Capabilities, Dequantize, Saturation, TensorInfo, Tensors};
use crate::{Error, Result};

/// The most stored rows in a tile.
const BLOCK: usize = 192;

/// Words of a stored row in a tile: one cache line. A tile is copied before it is decoded, since lines that are a power
/// of two apart, as with 4096 outputs, evict each other from the cache.
const TILE: usize = 16;

/// The number of 4-bit codes.
const CODES: usize = 16;

/// Rows that are unpacked and scaled together.
const CHUNK: usize = 16;

/// Where AWQ's GEMM layout keeps column `8c + j` in a word: its nibble, counted from the lowest.
const NIBBLE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// How the words are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Words `[in * bits / 32, out]`, each with consecutive inputs, the lowest first; zero points packed the same way
    /// along out, `[groups, out * bits / 32]`. The zero point is the stored value plus `offset`.
    Gptq { bits: usize, offset: u8 },
    /// Words `[in, out / 8]` and zero points `[groups, out / 8]` of four bits in the order of [`NIBBLE`].
    Awq,
}

/// A GPTQ or AWQ weight. Its tensors: words, zero points, scales `[groups, out]` and optionally `g_idx` `[in]`.
#[derive(Clone, Debug)]
pub(crate) struct ColumnPacked {
    shape: [usize; 2],
    group: usize,
    layout: Layout,
    ordered: bool,
    tensors: Vec<TensorInfo>,
}

impl ColumnPacked {
    /// The weight with the words `lead` of `module`, with one scale per `group` inputs (`None`: one for all of them).
    ///
    /// # Errors
    /// A companion is missing, or its dtype or shape does not match the words.
    pub(crate) fn new(
        layout: Layout,
        group: Option<usize>,
        lead: &TensorInfo,
        module: &str,
        tensors: &dyn Tensors,
    ) -> Result<ColumnPacked> {
        let [high, wide] = [lead.shape[0], lead.shape[1]];
        let odd = || {
            let what = format!("words of shape {:?} do not hold a whole number of 32-bit packs", lead.shape);
            Error::input(what)
                .tensor(&lead.name)
                .hint("check that the config belongs to this checkpoint: `bits` determines the packing")
        };
        let [out, inputs, zeros] = match layout {
            // Codes of 3, 5, 6 and 7 bits cross word boundaries: 32 values in as many words.
            Layout::Gptq { bits, .. } if 32 % bits != 0 && (high % bits != 0 || wide % 32 != 0) => {
                return Err(odd());
            }
            Layout::Gptq { bits, .. } if wide * bits % 32 != 0 => return Err(odd()),
            Layout::Gptq { bits, .. } => [wide, high * 32 / bits, wide * bits / 32],
            Layout::Awq => [wide * 8, high, wide],
        };
        let group = group.unwrap_or(inputs);
        let groups = inputs.div_ceil(group);
        let part = |name: &str, dtypes: &[Dtype], shape: &[usize]| {
            let name = format!("{module}.{name}");
            let stored = tensors.stored(&name).ok_or_else(|| missing(lead, &name))?;
            if dtypes.contains(&stored.dtype) && *stored.shape == *shape {
                return Ok(stored.clone());
            }
            let what = format!(
                "a packed weight {:?} in groups of {group} needs a companion of shape {shape:?} and dtype {}; '{name}' is {}",
                lead.shape,
                dtypes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "),
                stored.describe()
            );
            Err(Error::input(what).tensor(&lead.name).hint(
                "the config and the stored tensors must agree: check that the config belongs to this \
                 checkpoint",
            ))
        };
        let mut stored = vec![
            lead.clone(),
            part("qzeros", &[Dtype::I32], &[groups, zeros])?,
            part("scales", &[Dtype::F16, Dtype::BF16, Dtype::F32], &[groups, out])?,
        ];
        let ordered = layout != Layout::Awq && tensors.stored(&format!("{module}.g_idx")).is_some();
        if ordered {
            stored.push(part("g_idx", &[Dtype::I32], &[inputs])?);
        }
        Ok(ColumnPacked { shape: [out, inputs], group, layout, ordered, tensors: stored })
    }

    /// The scales and zero points of one row, one pair per group.
    fn pairs(&self, row: usize, parts: &[&[u8]], scales: &mut [f32], zeros: &mut [f32]) {
        let dtype = self.tensors[2].dtype;
        let (size, wide) = (dtype.bitsize() / 8, self.tensors[1].shape[1]);
        let column = parts[2].chunks_exact(self.shape[0] * size).map(|line| &line[row * size..][..size]);
        widen(dtype, &column.collect::<Vec<_>>().concat(), scales);
        for (group, zero) in zeros.iter_mut().enumerate() {
            let word = |column: usize| word(parts[1], group * wide + column);
            *zero = match self.layout {
                Layout::Awq => (word(row / 8) >> (4 * NIBBLE[row % 8]) & 15) as f32,
                Layout::Gptq { bits, offset } => (code(word, bits, row) + u32::from(offset)) as f32,
            };
        }
    }

    /// The codes of `rows` as numbers, in the order of the logical weight.
    fn unpack(&self, rows: &Range<usize>, words: &[u8], out: &mut [f32]) {
        let [high, wide] = [self.tensors[0].shape[0], self.tensors[0].shape[1]];
        // Rows that share a word.
        let per = if self.layout == Layout::Awq { 8 } else { 1 };
        let columns = rows.start / per..rows.end.div_ceil(per);
        let mut tile = vec![0u32; TILE * BLOCK];
        // Tiles hold whole packs of codes that cross words.
        let step = match self.layout {
            Layout::Gptq { bits, .. } if 32 % bits != 0 => BLOCK / bits * bits,
            _ => BLOCK,
        };
        for start in (0..high).step_by(step) {
            let block = start..(start + step).min(high);
            let mut from = columns.start;
            while from < columns.end {
                let to = ((from / TILE + 1) * TILE).min(columns.end);
                for (i, high) in block.clone().enumerate() {
                    let line = &words[(high * wide + from) * 4..(high * wide + to) * 4];
                    for (j, &word) in line.as_chunks::<4>().0.iter().enumerate() {
                        tile[j * BLOCK + i] = u32::from_le_bytes(word);
                    }
                }
                for row in rows.start.max(from * per)..rows.end.min(to * per) {
                    let column = &tile[(row / per - from) * BLOCK..][..block.len()];
                    let out = &mut out[(row - rows.start) * self.shape[1]..][..self.shape[1]];
                    match self.layout {
                        Layout::Awq => nibbles(column, row % per, &mut out[block.clone()]),
                        Layout::Gptq { bits, .. } => {
                            gptq(bits, column, &mut out[block.start * 32 / bits..block.end * 32 / bits]);
                        }
                    }
                }
                from = to;
            }
        }
    }
}

/// The stored word at `index`.
#[inline(always)]
fn word(bytes: &[u8], index: usize) -> u32 {
    u32::from_le_bytes(bytes.as_chunks::<4>().0[index])
}

/// The code at `index` in a stream of words, the lowest bits first; it may cross two words.
fn code(word: impl Fn(usize) -> u32, bits: usize, index: usize) -> u32 {
    let (first, shift) = (index * bits / 32, index * bits % 32);
    let low = word(first) >> shift;
    let over = if shift + bits > 32 { word(first + 1) << (32 - shift) } else { 0 };
    (low | over) & ((1 << bits) - 1)
}

/// Consecutive codes of one row.
fn gptq(bits: usize, words: &[u32], out: &mut [f32]) {
    match bits {
        4 => whole::<8>(words, out),
        8 => whole::<4>(words, out),
        2 => whole::<16>(words, out),
        3 => threes(words, out),
        _ => {
            out.iter_mut().enumerate().for_each(|(i, out)| *out = code(|index| words[index], bits, i) as f32);
        }
    }
}

/// The same where a word holds exactly N codes.
#[inline(always)]
fn whole<const N: usize>(words: &[u32], out: &mut [f32]) {
    for (word, out) in words.iter().zip(out.as_chunks_mut::<N>().0) {
        for (i, out) in out.iter_mut().enumerate() {
            // Less than 2^31, so one instruction converts it.
            *out = (word >> (i * (32 / N)) & ((1 << (32 / N)) - 1)) as i32 as f32;
        }
    }
}

/// 32 codes of three bits in three words.
fn threes(words: &[u32], out: &mut [f32]) {
    for (&[a, b, c], out) in words.as_chunks::<3>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let (low, high) = (u64::from(b) << 32 | u64::from(a), u64::from(c) << 32 | u64::from(b));
        let (start, end) = out.split_at_mut(21);
        for (i, out) in start.iter_mut().enumerate() {
            *out = (low >> (3 * i) & 7) as i32 as f32;
        }
        // Code 21, the first of these, crosses from the second word into the third.
        for (i, out) in end.iter_mut().enumerate() {
            *out = (high >> (3 * i + 31) & 7) as i32 as f32;
        }
    }
}

/// The same as [`gathered`] and [`round`] for codes of four bits or fewer: first the values of all codes in each group,
/// then one table lookup per input.
fn looked_up(
    out: &mut [f32],
    order: &[usize],
    pairs: (&[f32], &[f32]),
    dtype: Dtype,
    table: &mut Vec<[f32; CODES]>,
) {
    let entry = |(&scale, &zero): (&f32, &f32)| -> [f32; CODES] {
        let mut codes: [f32; CODES] = std::array::from_fn(|q| (q as f32 - zero) * scale);
        round(dtype, &mut codes);
        codes
    };
    table.clear();
    table.extend(pairs.0.iter().zip(pairs.1).map(entry));
    for (q, &group) in out.iter_mut().zip(order) {
        // A small integer is in the lowest bits of its sum with 2^23: cheaper than a saturating conversion.
        *q = table[group][(*q + 8_388_608.0).to_bits() as usize % CODES];
    }
}

/// The codes of one of the eight rows in AWQ's words, for consecutive inputs.
fn nibbles(words: &[u32], row: usize, out: &mut [f32]) {
    let shift = 4 * NIBBLE[row];
    out.iter_mut().zip(words).for_each(|(out, word)| *out = (word >> shift & 15) as i32 as f32);
}

impl Saturation for ColumnPacked {
    fn count(&self, rows: Range<usize>, parts: &[&[u8]]) -> Option<(u64, u32)> {
        let bits = match self.layout {
            Layout::Gptq { bits, .. } => bits as u32,
            Layout::Awq => 4,
        };
        let mut codes = vec![0f32; rows.len() * self.shape[1]];
        self.unpack(&rows, parts[0], &mut codes);
        let most = ((1u32 << bits) - 1) as f32;
        Some((codes.iter().filter(|code| **code == 0.0 || **code == most).count() as u64, bits))
    }
}

impl Dequantize for ColumnPacked {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn spans(&self, _: Range<usize>) -> Vec<Range<usize>> {
        let size = |tensor: &TensorInfo| tensor.shape.iter().product::<usize>() * tensor.dtype.bitsize() / 8;
        self.tensors.iter().map(|tensor| 0..size(tensor)).collect()
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            needs_all_bytes: true,
            block: Some([1, self.group]),
            round_to_nearest: None,
            columns: None,
            double: None,
            saturation: Some(self),
            slice: None,
        }
    }

    fn dequantize(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f32]) -> Result<()> {
        let inputs = self.shape[1];
        assert_eq!(out.len(), rows.len() * inputs, "the panel's values");
        let groups = inputs.div_ceil(self.group);
        let order = match parts.get(3).filter(|_| self.ordered) {
            None => None,
            // Without a reordering is the common case, and the faster one.
            Some(bytes) => Some(order(&self.tensors[3], bytes, groups)?)
                .filter(|order| order.iter().enumerate().any(|(i, &group)| group != i / self.group)),
        };
        let (mut scales, mut zeros) = (vec![0f32; groups], vec![0f32; groups]);
        let (mut table, dtype) = (Vec::new(), self.tensors[2].dtype);
        let few = matches!(self.layout, Layout::Awq | Layout::Gptq { bits: ..=4, .. });
        let (mut start, mut rest) = (rows.start, out);
        while start < rows.end {
            // A few rows at a time are unpacked and scaled while they are in the cache.
            let end = ((start / CHUNK + 1) * CHUNK).min(rows.end);
            let (now, later) = rest.split_at_mut((end - start) * inputs);
            self.unpack(&(start..end), parts[0], now);
            for (row, out) in (start..end).zip(now.chunks_exact_mut(inputs)) {
                self.pairs(row, parts, &mut scales, &mut zeros);
                match &order {
                    Some(order) if few => {
                        looked_up(out, order, (&scales, &zeros), dtype, &mut table);
                        continue;
                    }
                    Some(order) => gathered(out, order, &scales, &zeros),
                    None => scaled(out, self.group, &scales, &zeros),
                }
                round(dtype, out);
            }
            (start, rest) = (end, later);
        }
        Ok(())
    }
}

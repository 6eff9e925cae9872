//! Codes of 2 to 8 bits, and a row of them decoded to numbers.

use safetensors::Dtype;

use crate::quant::declared::unsupported;
use crate::quant::number::e4m3::e4m3;
use crate::quant::number::e5m2::e5m2;
use crate::quant::weight::TensorInfo;
use crate::simd::{Loop, widest};
use crate::{Error, Result};

/// How the codes of a row are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codes {
    /// F8_E4M3, a byte each.
    E4m3,
    /// F8_E5M2, a byte each.
    E5m2,
    /// I8, a byte each.
    Int8,
    /// Unsigned 4-bit numbers, the lowest first, in I32 words that rows do not share; stored = value + 8.
    Packed4,
    /// The same with 8 bits; stored = value + 128.
    Packed8,
    /// E2M1, two per byte, the lower nibble first. A row has an even number of them.
    E2m1,
    /// Unsigned numbers of so many bits in one stream, the lowest bits first, in I32 words that rows do not share; they
    /// may cross words. Stored = value + 2^(bits - 1).
    Stream(u8),
    /// Four bits of sign and magnitude in quarters, two per byte, the lower nibble first: MXINT4.
    Quarters,
}

/// The numbers of E2M1, a float of four bits (OCP Microscaling Formats 1.0, section 5.3.3).
const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The FP8 type that a config's `fmt` names, if any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind(Option<Dtype>);

impl Kind {
    /// Parses `fmt`.
    ///
    /// # Errors
    /// A `fmt` other than e4m3 and e5m2 is refused by name.
    pub(crate) fn parse(fmt: Option<&str>) -> Result<Kind> {
        match fmt.map(str::to_lowercase).as_deref() {
            None => Ok(Kind(None)),
            Some("e4m3") => Ok(Kind(Some(Dtype::F8_E4M3))),
            Some("e5m2") => Ok(Kind(Some(Dtype::F8_E5M2))),
            Some(other) => Err(unsupported(&format!("fp8 (fmt {other})"))),
        }
    }

    /// Refuses a weight whose stored type differs from the config's `fmt`.
    ///
    /// # Errors
    /// The stored type and the declared one differ.
    pub(crate) fn check(self, lead: &TensorInfo) -> Result<()> {
        let Some(named) = self.0.filter(|&named| named != lead.dtype) else { return Ok(()) };
        let what = format!("a weight is stored as {}, but the config's `fmt` says {named}", lead.describe());
        Err(Error::input(what).tensor(&lead.name).hint("check that the config belongs to this checkpoint"))
    }
}

impl Codes {
    /// The codes of FP8 weights with this dtype; `None` for any other dtype.
    pub(crate) fn of_fp8(dtype: Dtype) -> Option<Codes> {
        match dtype {
            Dtype::F8_E4M3 => Some(Codes::E4m3),
            Dtype::F8_E5M2 => Some(Codes::E5m2),
            _ => None,
        }
    }

    /// The number of stored bytes in a row of `columns`.
    pub(crate) fn row_bytes(self, columns: usize) -> usize {
        match self {
            Codes::E4m3 | Codes::E5m2 | Codes::Int8 => columns,
            Codes::E2m1 | Codes::Quarters => columns / 2,
            Codes::Stream(bits) => (columns * usize::from(bits)).div_ceil(32) * 4,
            Codes::Packed4 => columns.div_ceil(8) * 4,
            Codes::Packed8 => columns.div_ceil(4) * 4,
        }
    }

    /// Bits per code.
    pub(crate) fn bits(self) -> u32 {
        match self {
            Codes::E4m3 | Codes::E5m2 | Codes::Int8 | Codes::Packed8 => 8,
            Codes::Packed4 | Codes::E2m1 | Codes::Quarters => 4,
            Codes::Stream(bits) => u32::from(bits),
        }
    }

    /// How many codes in whole rows of `columns` are the largest or smallest of their format. With 8 bits, -127 counts
    /// like -128, which few quantizers use. Padding in a row's last word is not counted.
    pub(crate) fn saturated(self, bytes: &[u8], columns: usize) -> u64 {
        let lines = bytes.chunks_exact(self.row_bytes(columns).max(1));
        let count = |ends: fn(u8) -> bool| {
            // As many at a time as a u8 can count, so that the loop runs in vectors of bytes.
            let count_ends =
                |codes: &[u8]| u64::from(codes.iter().map(|code| u8::from(ends(*code))).sum::<u8>());
            lines.clone().flat_map(|line| line[..columns].chunks(255)).map(count_ends).sum()
        };
        let nibbles = |ends: fn(u8) -> bool| {
            let line = |line: &[u8]| {
                let codes = line.iter().flat_map(|pair| [pair & 15, pair >> 4]).take(columns);
                codes.filter(|code| ends(*code)).count() as u64
            };
            lines.clone().map(line).sum()
        };
        match self {
            Codes::E4m3 => count(|code| code & 0x7f == 0x7e),
            Codes::E5m2 => count(|code| code & 0x7f == 0x7b),
            Codes::Int8 => count(|code| (code as i8).unsigned_abs() >= 127),
            Codes::Packed8 => count(|code| code <= 1 || code == 255),
            Codes::Packed4 => nibbles(|code| code == 0 || code == 15),
            Codes::E2m1 | Codes::Quarters => nibbles(|code| code & 7 == 7),
            Codes::Stream(bits) => {
                let most = (1u32 << bits) - 1;
                let line = |line: &[u8]| {
                    let code = |i: usize| stream_code(line, usize::from(bits), i);
                    (0..columns).map(code).filter(|code| *code == 0 || *code == most).count() as u64
                };
                lines.map(line).sum()
            }
        }
    }

    /// Decodes one row to numbers.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        widest(DecodeRow(self, bytes, out));
    }
}

/// The code at `index` in a stream of `bits` each, the lowest bits first: the same in bytes as in little-endian words.
#[inline(always)]
pub(crate) fn stream_code(bytes: &[u8], bits: usize, index: usize) -> u32 {
    let first = index * bits / 8;
    let byte = |at: usize| u32::from(bytes.get(at).copied().unwrap_or(0));
    (byte(first) | byte(first + 1) << 8) >> (index * bits % 8) & ((1 << bits) - 1)
}

/// Eight codes of a stream at a time, which begin at a byte.
#[inline(always)]
fn stream(bits: usize, bytes: &[u8], out: &mut [f32]) {
    let (offset, mask) = ((1u32 << (bits - 1)) as f32, (1u64 << bits) - 1);
    let (whole, rest) = out.as_chunks_mut::<8>();
    let count = whole.len();
    for (out, bytes) in whole.iter_mut().zip(bytes.chunks_exact(bits)) {
        let mut eight = [0; 8];
        eight[..bits].copy_from_slice(bytes);
        let word = u64::from_le_bytes(eight);
        for (i, out) in out.iter_mut().enumerate() {
            *out = (word >> (i * bits) & mask) as i32 as f32 - offset;
        }
    }
    for (i, out) in rest.iter_mut().enumerate() {
        *out = stream_code(bytes, bits, count * 8 + i) as f32 - offset;
    }
}

/// The loop of [`Codes::decode`].
struct DecodeRow<'a>(Codes, &'a [u8], &'a mut [f32]);

impl Loop for DecodeRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let DecodeRow(kind, bytes, out) = self;
        let codes = out.iter_mut().zip(bytes);
        match kind {
            Codes::E4m3 => codes.for_each(|(out, &code)| *out = e4m3(code)),
            Codes::E5m2 => codes.for_each(|(out, &code)| *out = e5m2(code)),
            Codes::Int8 => codes.for_each(|(out, &code)| *out = f32::from(code as i8)),
            // Little-endian words with the lowest bits first are bytes in order.
            Codes::Packed8 => codes.for_each(|(out, &code)| *out = f32::from(code) - 128.0),
            Codes::Stream(bits) => stream(usize::from(bits), bytes, out),
            Codes::Quarters => {
                let value = |nibble: u8| {
                    let magnitude = f32::from(nibble & 7) * 0.25;
                    if nibble & 8 == 0 { magnitude } else { -magnitude }
                };
                for (pair, &byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                    *pair = [value(byte & 15), value(byte >> 4)];
                }
            }
            Codes::E2m1 => {
                for (pair, &byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                    *pair = [E2M1[usize::from(byte & 15)], E2M1[usize::from(byte >> 4)]];
                }
            }
            Codes::Packed4 => {
                let value = |nibble: u8| f32::from(nibble) - 8.0;
                let (pairs, last) = out.as_chunks_mut::<2>();
                for (pair, &byte) in pairs.iter_mut().zip(bytes) {
                    *pair = [value(byte & 15), value(byte >> 4)];
                }
                if let ([last], Some(&byte)) = (last, bytes.get(pairs.len())) {
                    *last = value(byte & 15);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Codes;

    #[test]
    fn ends_are_counted_and_fillings_are_not() {
        assert_eq!(Codes::E4m3.saturated(&[0x7e, 0xfe, 0x7d, 0x7f, 0xff, 0], 3), 2, "NaN is not an end");
        assert_eq!(Codes::E5m2.saturated(&[0x7b, 0xfb, 0x7c, 0xfe], 4), 2, "infinity and NaN are not ends");
        assert_eq!(Codes::Int8.saturated(&[127, 129, 128, 126, 0, 255], 6), 3);
        assert_eq!(Codes::Packed8.saturated(&[0, 1, 255, 2, 128, 9, 0, 0], 5), 3);
        // Two rows of three codes, each in a word that holds eight.
        assert_eq!(Codes::Packed4.saturated(&[0x8f, 0x00, 0, 0, 0x70, 0x0f, 0, 0], 3), 4);
        assert_eq!(Codes::E2m1.saturated(&[0xf7, 0x68], 2), 2);
        // Three bits: 7, 0, 5, 7 and, across bytes, 0.
        assert_eq!(Codes::Stream(3).saturated(&[0b0100_0111, 0b0000_1111, 0, 0], 5), 4);
    }
}

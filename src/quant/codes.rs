//! Codes of eight and four bits, a row of them as numbers.

use super::E4M3;

/// How the codes of a row lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codes {
    /// F8_E4M3, a byte each.
    E4m3,
    /// I8, a byte each.
    Int8,
    /// Unsigned numbers of 4 bits, the lowest first, in I32 words that no row shares; stored = value + 8.
    Packed4,
    /// The same with 8 bits; stored = value + 128.
    Packed8,
    /// E2M1, two to a byte, the lower nibble first. A row has an even number of them.
    E2m1,
}

/// The numbers of E2M1, a float of four bits (OCP Microscaling Formats 1.0, section 5.3.3).
const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

impl Codes {
    /// The stored bytes of a row of `columns`.
    pub(super) fn row_bytes(self, columns: usize) -> usize {
        match self {
            Codes::E4m3 | Codes::Int8 => columns,
            Codes::E2m1 => columns / 2,
            Codes::Packed4 => columns.div_ceil(8) * 4,
            Codes::Packed8 => columns.div_ceil(4) * 4,
        }
    }

    /// One row as numbers.
    pub(super) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        let codes = out.iter_mut().zip(bytes);
        match self {
            Codes::E4m3 => codes.for_each(|(out, &code)| *out = E4M3[usize::from(code)]),
            Codes::Int8 => codes.for_each(|(out, &code)| *out = f32::from(code as i8)),
            // Little-endian words whose lowest bits come first are bytes in order.
            Codes::Packed8 => codes.for_each(|(out, &code)| *out = f32::from(code) - 128.0),
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

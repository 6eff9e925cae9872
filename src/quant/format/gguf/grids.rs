//! The tables of the IQ types, as ggml defines them: `scripts/gguf_grids.py` packs them into `grids.bin`.

use std::sync::LazyLock;

/// All tables, one after the other, as places in their lists of numbers.
const PACKED: &[u8] = include_bytes!("grids.bin");

/// The numbers in the tables of IQ2, of IQ3_XXS, of IQ3_S and of IQ1.
const EIGHTHS: [i8; 4] = [8, 25, 43, 0];
const WIDE: [i8; 16] = [4, 12, 20, 28, 36, 44, 52, 62, 0, 0, 0, 0, 0, 0, 0, 0];
const ODD: [i8; 16] = [1, 3, 5, 7, 9, 11, 13, 15, 0, 0, 0, 0, 0, 0, 0, 0];
const TERNARY: [i8; 4] = [-1, 0, 1, 0];

/// A table of rows of `N` values.
pub(super) type Grid<const N: usize> = LazyLock<Vec<[i8; N]>>;

pub(super) static IQ2_XXS: Grid<8> = LazyLock::new(|| pairs(0, 256, EIGHTHS));
pub(super) static IQ2_XS: Grid<8> = LazyLock::new(|| pairs(512, 512, EIGHTHS));
pub(super) static IQ2_S: Grid<8> = LazyLock::new(|| pairs(1536, 1024, EIGHTHS));
pub(super) static IQ3_XXS: Grid<4> = LazyLock::new(|| nibbles(3584, 256, WIDE));
pub(super) static IQ3_S: Grid<4> = LazyLock::new(|| nibbles(4096, 512, ODD));
pub(super) static IQ1_S: Grid<8> = LazyLock::new(|| pairs(5120, 2048, TERNARY));

/// Rows of eight places of two bits.
fn pairs(start: usize, rows: usize, numbers: [i8; 4]) -> Vec<[i8; 8]> {
    let row = |bytes: &[u8; 2]| {
        let word = u16::from_le_bytes(*bytes);
        std::array::from_fn(|i| numbers[usize::from(word >> (2 * i) & 3)])
    };
    PACKED[start..start + 2 * rows].as_chunks::<2>().0.iter().map(row).collect()
}

/// Rows of four places of four bits.
fn nibbles(start: usize, rows: usize, numbers: [i8; 16]) -> Vec<[i8; 4]> {
    let row = |bytes: &[u8; 2]| {
        let word = u16::from_le_bytes(*bytes);
        std::array::from_fn(|i| numbers[usize::from(word >> (4 * i) & 15)])
    };
    PACKED[start..start + 2 * rows].as_chunks::<2>().0.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_is_whole() {
        assert_eq!(PACKED.len(), 5120 + 2 * 2048);
        let rows = [IQ2_XXS.len(), IQ2_XS.len(), IQ2_S.len(), IQ3_XXS.len(), IQ3_S.len(), IQ1_S.len()];
        assert_eq!(rows, [256, 512, 1024, 256, 512, 2048]);
        assert!([&IQ2_XXS, &IQ2_XS, &IQ2_S].iter().all(|grid| grid.iter().flatten().all(|value| *value > 0)));
        assert!([&IQ3_XXS, &IQ3_S].iter().all(|grid| grid.iter().flatten().all(|value| *value > 0)));
    }
}

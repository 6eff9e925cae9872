//! How a matrix is cut: groups of panels for passes over the delta, row chunks for work on thin blocks. This follows
//! from the shape alone, so that sums do not depend on the machine.

use std::ops::Range;

use faer::MatMut;

/// The number of groups of consecutive panels. Each has its own sum, as long as a row, so there are as many as threads
/// can use, and fewer where rows are long.
pub(crate) fn groups(n: usize) -> usize {
    if n > 3 << 12 { 4 } else { 8 }
}

/// Rows are cut at multiples of this: quantized rows often come in packs of 8 or 16.
const GRAIN: usize = 16;
/// The most rows of a panel: it is read twice per visit, and should still be cached the second time.
const HIGHEST: usize = 192;
/// The largest panel, in values.
const PANEL: usize = 8 << 20;

/// The rows in a group of panels and in a panel, for a matrix `[m, n]`. The last of either may be shorter.
pub fn panel_rows(m: usize, n: usize) -> (usize, usize) {
    let group = m.div_ceil(groups(n)).next_multiple_of(GRAIN).max(64);
    let most = (PANEL / n.max(1) / GRAIN * GRAIN).clamp(GRAIN, HIGHEST);
    // Panels of equal height: a short last one costs as much overhead as a full one.
    let panels = group.div_ceil(most);
    (group, group.div_ceil(panels).next_multiple_of(GRAIN))
}

/// `range` cut into pieces of `step`.
pub(crate) fn pieces(range: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let Range { start, end } = range;
    (start..end).step_by(step.max(1)).map(move |first| first..(first + step).min(end))
}

/// Cuts `rows` rows of a thin block into at most 16 chunks for parallel work.
pub(crate) fn chunks(rows: usize) -> Vec<Range<usize>> {
    pieces(0..rows, rows.div_ceil(16).next_multiple_of(GRAIN).max(64)).collect()
}

/// The rows of `mat` as separate matrices, one per range; the ranges are contiguous, from row 0 to the last.
pub(crate) fn split_rows<'a, T>(mat: MatMut<'a, T>, ranges: &[Range<usize>]) -> Vec<MatMut<'a, T>> {
    let mut rest = mat;
    let mut parts = Vec::with_capacity(ranges.len());
    for range in ranges {
        let (part, tail) = rest.split_at_row_mut(range.len());
        parts.push(part);
        rest = tail;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_fill_groups_and_stay_small() {
        for (m, n) in [(25600, 5120), (5120, 25600), (1, 7), (1000, 1), (17, 300_000), (8192, 1024)] {
            let (group, panel) = panel_rows(m, n);
            assert!(group % GRAIN == 0 && panel % GRAIN == 0 && panel <= HIGHEST);
            assert!(m.div_ceil(group) <= groups(n) && panel <= group, "{m} x {n}: {group}, {panel}");
            assert!(panel == GRAIN || panel * n <= PANEL + GRAIN * n, "{m} x {n}: {panel}");
        }
        assert_eq!(panel_rows(25600, 5120), (3200, 192));
    }

    #[test]
    fn pieces_cover_the_range() {
        let cut: Vec<_> = pieces(3..20, 8).collect();
        assert_eq!(cut, [3..11, 11..19, 19..20]);
        assert_eq!(pieces(0..0, 8).count(), 0);
    }
}

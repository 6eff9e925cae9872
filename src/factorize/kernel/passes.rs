//! The passes over the delta: products with thin blocks, panel by panel.
//!
//! A panel is row-major, and each row of `delta·v` is built the same way: its product reads both the panel and `v` in
//! memory order. A column-major product would transpose the panel into packing buffers at every visit, which costs a
//! third of the time where blocks are thin.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::prelude::*;
use faer::{Accum, Par};
use rayon::prelude::*;

use crate::Result;
use crate::factorize::kernel::skinny_gemm::{Strips, multiply, multiply_transposed};
use crate::factorize::kernel::tiling::{panel_rows, pieces, split_rows};
use crate::factorize::types::Panels;

/// Memory that all passes over a matrix share: otherwise each pass would allocate and clear fresh pages.
#[derive(Debug, Default)]
pub struct Scratch {
    v: Strips,
    groups: Vec<Group>,
}

/// The working memory of one group of panels.
#[derive(Debug, Default)]
struct Group {
    /// The group's sum of `delta^T·w`.
    z: Strips,
    /// `delta·v` of a panel.
    product: Strips,
    packed: Vec<f32>,
}

/// One Krylov step in one pass: `w = scale·delta·v` and `z = scale·delta^T·w`.
///
/// `v` is `[n, b]`, `w` `[m, b]`, the result `z` `[n, b]`. `scale` keeps the squares of a tiny or huge delta within
/// f32; a power of two costs no accuracy.
///
/// # Errors
/// Any error from visiting the delta.
pub fn sweep(
    delta: &dyn Panels,
    v: MatRef<'_, f32>,
    w: MatMut<'_, f32>,
    scale: f32,
    scratch: &mut Scratch,
) -> Result<Mat<f32>> {
    let (m, n) = (delta.rows(), delta.cols());
    let (group, panel) = panel_rows(m, n);
    let ranges: Vec<_> = pieces(0..m, group).collect();
    scratch.groups.resize_with(ranges.len(), Group::default);
    scratch.v.pack(v);
    let v = &scratch.v;
    let parts = split_rows(w, &ranges);
    let tasks: Vec<_> = scratch.groups.iter_mut().zip(ranges).zip(parts).collect();
    tasks.into_par_iter().with_max_len(1).try_for_each(|((group, rows), mut w)| -> Result<()> {
        let Group { z, product, packed } = group;
        z.clear(n, v.columns());
        for part in pieces(rows.clone(), panel) {
            let mut w = w.rb_mut().subrows_mut(part.start - rows.start, part.len());
            product.clear(part.len(), v.columns());
            delta.visit(part, &mut |p| {
                multiply(p, v, product);
                product.scale(scale);
                product.unpack(w.rb_mut());
                product.scale(scale);
                multiply_transposed(p, product, z, packed);
                Ok(())
            })?;
        }
        Ok(())
    })?;
    let mut groups = scratch.groups.iter_mut();
    let Some(Group { z: total, .. }) = groups.next() else { return Ok(Mat::new()) };
    groups.for_each(|group| total.add(&group.z));
    let mut z = Mat::zeros(n, total.columns());
    total.unpack(z.as_mut());
    Ok(z)
}

/// `delta·v` `[m, k]` for `v` `[n, k]`, in one pass.
///
/// # Errors
/// Any error from visiting the delta.
pub fn times(delta: &dyn Panels, v: MatRef<'_, f32>) -> Result<Mat<f32>> {
    let (m, n) = (delta.rows(), delta.cols());
    let panel = panel_rows(m, n).1;
    let mut out = Mat::zeros(m, v.ncols());
    let v = by_rows(v);
    let parts: Vec<_> = pieces(0..m, panel).collect();
    let tasks: Vec<_> = parts.iter().cloned().zip(split_rows(out.as_mut(), &parts)).collect();
    tasks.into_par_iter().with_max_len(1).try_for_each(|(rows, mut out)| {
        let mut product = Mat::zeros(out.ncols(), rows.len());
        delta.visit(rows, &mut |p| {
            matmul(product.as_mut().transpose_mut(), Accum::Replace, p, v.transpose(), 1.0, Par::Seq);
            out.copy_from(product.transpose());
            Ok(())
        })
    })?;
    Ok(out)
}

/// `delta^T·u` `[n, k]` for `u` `[m, k]`, in one pass.
///
/// # Errors
/// Any error from visiting the delta.
pub fn transpose_times(delta: &dyn Panels, u: MatRef<'_, f32>) -> Result<Mat<f32>> {
    let (m, n) = (delta.rows(), delta.cols());
    let (group, panel) = panel_rows(m, n);
    let groups: Vec<_> = pieces(0..m, group).collect();
    let sum = |rows: Range<usize>| -> Result<Mat<f32>> {
        let mut z = Mat::zeros(n, u.ncols());
        for part in pieces(rows, panel) {
            let u = u.subrows(part.start, part.len());
            delta.visit(part, &mut |p| {
                matmul(z.as_mut(), Accum::Add, p.transpose(), u, 1.0, Par::Seq);
                Ok(())
            })?;
        }
        Ok(z)
    };
    let sums = groups.into_par_iter().with_max_len(1).map(sum).collect::<Result<Vec<_>>>()?;
    Ok(add_all(sums))
}

/// `v` in row-major order, as the columns of its transpose.
fn by_rows(v: MatRef<'_, f32>) -> Mat<f32> {
    v.transpose().to_owned()
}

/// Adds the groups' sums in order, columns in parallel.
fn add_all(sums: Vec<Mat<f32>>) -> Mat<f32> {
    let mut sums = sums.into_iter();
    let Some(mut total) = sums.next() else { return Mat::new() };
    for sum in sums {
        total
            .as_mut()
            .par_col_iter_mut()
            .zip(sum.as_ref().par_col_iter())
            .for_each(|(mut to, from)| to += from);
    }
    total
}

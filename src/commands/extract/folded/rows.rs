//! Scales that were moved between two weights with a product between them: the rows of the first, the columns of the
//! second.

use std::collections::BTreeMap;

use crate::checkpoint::ModuleReader;
use crate::commands::extract::folded::FOLDED;
use crate::commands::extract::inputs::Inputs;
use crate::delta::pair::{Pair, Pairing};
use crate::delta::rescaling::Rescaling;
use crate::{Error, Result};

/// The first and the second weight. `o_proj` reads what `v_proj` wrote only where every head has its own values.
const NEIGHBOURS: [(&str, &str); 3] = [("up_proj", "down_proj"), ("w3", "w2"), ("v_proj", "o_proj")];

/// Rows of a panel.
const PANEL: usize = 64;

/// The factors beyond which a row is left as it is: no quantizer moves so much.
const MOST: f64 = 64.0;

/// Adds the factors of rows and columns to `rescalings`, by the base's names, and returns the number of pairs of
/// weights that got any.
///
/// # Errors
/// A tensor that cannot be read.
pub(crate) fn find(
    inputs: &Inputs,
    pairing: &Pairing,
    rescalings: &mut BTreeMap<String, Rescaling>,
) -> Result<usize> {
    let by_name: BTreeMap<&str, &Pair> =
        pairing.pairs.iter().map(|pair| (pair.name.as_str(), pair)).collect();
    let mut count = 0;
    for (name, first) in &by_name {
        let second = NEIGHBOURS.iter().find_map(|(one, other)| {
            let stem = name.strip_suffix(one).filter(|stem| stem.ends_with('.'))?;
            by_name.get(format!("{stem}{other}").as_str())
        });
        let Some(second) = second.filter(|second| second.shape[1] == first.shape[0]) else { continue };
        let none = Rescaling::default();
        let Some(factors) = factors(inputs, first, rescalings.get(*name).unwrap_or(&none))? else { continue };
        let rows = factors.iter().map(|factor| (1.0 / factor) as f32).collect();
        rescalings.entry((*name).to_owned()).or_default().rows = rows;
        let columns = factors.iter().map(|factor| *factor as f32).collect();
        rescalings.entry(second.name.clone()).or_default().columns = columns;
        count += 1;
    }
    Ok(count)
}

/// How many times as large the tuned rows are as the base's, where dividing by that brings them nearer; `None` where it
/// does not.
fn factors(inputs: &Inputs, pair: &Pair, columns: &Rescaling) -> Result<Option<Vec<f64>>> {
    let missing = |name: &str| Error::unexpected("a paired module is gone").tensor(name);
    let base = inputs.base.module(&pair.name).ok_or_else(|| missing(&pair.name))?;
    let tuned = inputs.tuned.module(&pair.tuned).ok_or_else(|| missing(&pair.tuned))?;
    let readers = [ModuleReader::open(&inputs.base, base)?, ModuleReader::open(&inputs.tuned, tuned)?];
    let width = pair.shape[1];
    let mut factors = Vec::with_capacity(pair.rows);
    let [mut before, mut after] = [0f64; 2];
    let (mut b, mut t) = (vec![0f32; PANEL * width], vec![0f32; PANEL * width]);
    for start in (0..pair.rows).step_by(PANEL) {
        let rows = start..(start + PANEL).min(pair.rows);
        let (b, t) = (&mut b[..rows.len() * width], &mut t[..rows.len() * width]);
        readers[0].panel(rows.clone(), b)?;
        readers[1].panel(rows.clone(), t)?;
        columns.apply(rows, width, t);
        for (b, t) in b.chunks_exact(width).zip(t.chunks_exact(width)) {
            let dot = |x: &[f32], y: &[f32]| {
                x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
            };
            let (bb, tb, tt) = (dot(b, b), dot(t, b), dot(t, t));
            let factor = tb / bb;
            let sane = (1.0 / MOST..MOST).contains(&factor);
            // As it will be applied: in f32.
            let factor = if sane { f64::from(factor as f32) } else { 1.0 };
            before += tt - 2.0 * tb + bb;
            after += tt / factor.powi(2) - 2.0 * tb / factor + bb;
            factors.push(factor);
        }
    }
    Ok((after < FOLDED * before).then_some(factors))
}

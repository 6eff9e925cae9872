//! The mixture of experts in place of an MLP: every expert is read once for all tokens that are routed to it.

use super::forward::{Forward, Observer, Part};
use super::kernel::{Activations, TILE, gate, rms_norm};
use super::linear::{LinearInput, Weight, find};
use super::threads::spread;
use super::{Hidden, Input};
use crate::{Error, Result};

/// A token that is routed to an expert.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Route {
    variant: usize,
    group: usize,
    column: usize,
    /// The factor of the expert's output.
    weight: f32,
}

impl Forward<'_> {
    /// Adds the output of a layer's experts to the hidden states.
    pub(super) fn experts(&mut self, layer: usize, observer: &mut dyn Observer) -> Result<()> {
        let (decoder, names) = (self.decoder, &self.decoder.names);
        let (before, after) = self.mlp_norms(layer);
        let before = self.factors(&before, decoder.hidden)?;
        let after = after.map(|name| self.factors(&name, decoder.hidden)).transpose()?;
        let routes = self.route(&names.router(layer), &before)?;
        let mut inputs = Vec::new();
        for (expert, routes) in routes.iter().enumerate() {
            let [gate, up, down] = names.expert(layer, expert);
            let width = find(self.engine.checkpoint, &down)?.shape()[1];
            let count = routes.len();
            inputs.push(Input { modules: vec![gate, up], width: decoder.hidden, count });
            inputs.push(Input { modules: vec![down], width, count });
        }
        observer.begin(Part::Mlp(layer), &inputs)?;
        let mut sum =
            self.sum.take().ok_or_else(|| Error::unexpected("a layer of experts was not planned for"))?;
        sum.clear()?;
        for (expert, routes) in routes.iter().enumerate() {
            self.expert(layer, expert, routes, &before, &mut sum, observer)?;
            observer.end(2 * expert)?;
            observer.end(2 * expert + 1)?;
        }
        for group in 0..self.groups.len() {
            let outputs = vec![sum.read(group)?];
            self.add(group..group + 1, outputs, after.as_deref())?;
        }
        self.sum = Some(sum);
        Ok(())
    }

    /// The tokens that are routed to each expert, in the order of the groups.
    fn route(&self, router: &str, before: &[f32]) -> Result<Vec<Vec<Route>>> {
        let Some(mixture) = &self.decoder.mixture else {
            return Err(Error::unexpected("a layer of experts in a model without any"));
        };
        let mut routes = vec![Vec::new(); mixture.experts];
        for chunk in self.chunks() {
            let xs = self.normed(chunk.clone(), before, |_| Ok(()))?;
            let logits = self.apply(router, chunk.clone(), &xs)?;
            for (group, logits) in chunk.zip(logits) {
                self.expect(router, logits.features, mixture.experts)?;
                let variant = self.groups[group].variant;
                for column in 0..logits.tokens {
                    let scores: Vec<f32> = (0..logits.features).map(|e| logits.row(e)[column]).collect();
                    for (expert, weight) in choose(&scores, mixture.per_token, mixture.normalized) {
                        routes[expert].push(Route { variant, group, column, weight });
                    }
                }
            }
        }
        Ok(routes)
    }

    /// Adds one expert's outputs to `sum`.
    fn expert(
        &self,
        layer: usize,
        expert: usize,
        routes: &[Route],
        before: &[f32],
        sum: &mut Hidden,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let [gate_name, up_name, down_name] = self.decoder.names.expert(layer, expert);
        let by_variant = routes.chunk_by(|a, b| a.variant == b.variant);
        let tiles: Vec<&[Route]> = by_variant.flat_map(|routes| routes.chunks(TILE)).collect();
        for tiles in tiles.chunks((self.chunk / TILE).max(1)) {
            let xs = tiles.iter().map(|tile| self.gather(tile, before)).collect::<Result<Vec<_>>>()?;
            xs.iter().try_for_each(|x| observer.rows(2 * expert, x))?;
            let mut inner = self.apply_tiles(&gate_name, tiles, &xs)?;
            let ups = self.apply_tiles(&up_name, tiles, &xs)?;
            drop(xs);
            let tasks: Vec<_> = inner.iter_mut().zip(&ups).collect();
            spread(self.engine.threads, tasks, |(): &mut (), (x, up): (&mut Activations, &Activations)| {
                self.expect(&up_name, up.features, x.features)?;
                gate(&mut x.values, &up.values, self.decoder.activation);
                Ok(())
            })?;
            drop(ups);
            inner.iter().try_for_each(|x| observer.rows(2 * expert + 1, x))?;
            let outputs = self.apply_tiles(&down_name, tiles, &inner)?;
            for (tile, output) in tiles.iter().zip(&outputs) {
                self.expect(&down_name, output.features, self.decoder.hidden)?;
                let mut first = 0;
                for run in tile.chunk_by(|a, b| a.group == b.group) {
                    let columns: Vec<(usize, f32)> =
                        run.iter().map(|route| (route.column, route.weight)).collect();
                    sum.scatter(run[0].group, &columns, output, first)?;
                    first += run.len();
                }
            }
        }
        Ok(())
    }

    fn apply_tiles(&self, module: &str, tiles: &[&[Route]], xs: &[Activations]) -> Result<Vec<Activations>> {
        let width = xs.first().map_or(0, |x| x.features);
        let operand =
            |(tile, x): (&&[Route], _)| LinearInput { variant: tile.first().map_or(0, |r| r.variant), x };
        let inputs: Vec<LinearInput<'_>> = tiles.iter().zip(xs).map(operand).collect();
        Weight::open(&self.engine, module, width)?.apply(&inputs)
    }

    /// The normed hidden states of a tile's tokens.
    fn gather(&self, tile: &[Route], factors: &[f32]) -> Result<Activations> {
        let mut x = Activations::zeros(self.decoder.hidden, tile.len());
        let mut first = 0;
        for run in tile.chunk_by(|a, b| a.group == b.group) {
            let columns: Vec<usize> = run.iter().map(|route| route.column).collect();
            self.hidden.gather(run[0].group, &columns, &mut x, first)?;
            first += run.len();
        }
        rms_norm(&mut x, factors, self.decoder.eps);
        Ok(x)
    }
}

/// The experts with the largest scores (of equal ones the first), with their softmax over all experts, scaled to a sum
/// of one if `normalized`.
fn choose(scores: &[f32], count: usize, normalized: bool) -> Vec<(usize, f32)> {
    let most = scores.iter().fold(f32::NEG_INFINITY, |most, score| most.max(*score));
    let powers: Vec<f32> = scores.iter().map(|score| (score - most).exp()).collect();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(count);
    let sum: f32 = if normalized { order.iter().map(|&e| powers[e]).sum() } else { powers.iter().sum() };
    order.into_iter().map(|expert| (expert, powers[expert] / sum)).collect()
}

#[cfg(test)]
mod tests {
    use super::choose;

    #[test]
    fn the_largest_scores_are_chosen_and_weighed() {
        let scores = [0.0, 3f32.ln(), 2f32.ln(), 3f32.ln()];
        let near = |found: Vec<(usize, f32)>, expected: [(usize, f32); 2]| {
            found.iter().zip(expected).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-6)
        };
        assert!(near(choose(&scores, 2, true), [(1, 0.5), (3, 0.5)]));
        assert!(near(choose(&scores, 2, false), [(1, 1.0 / 3.0), (3, 1.0 / 3.0)]));
        assert!(near(choose(&scores[..3], 2, true), [(1, 0.6), (2, 0.4)]));
    }
}

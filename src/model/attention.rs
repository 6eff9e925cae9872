//! The attention half of a layer.

use super::decoder::NormStyle;
use super::forward::{Forward, Observer, Part};
use super::kernel::{Activations, Angles, Heads, attend, rms_norm, rotate};
use super::linear::{LinearInput, Weight};
use super::threads::spread;
use super::{Group, Input};
use crate::Result;

/// The queries, keys and values of a group; the queries are replaced by the output.
struct Projected {
    queries: Activations,
    keys: Activations,
    values: Activations,
}

impl Forward<'_> {
    /// Adds a layer's attention to the hidden states.
    pub(super) fn attention(&mut self, layer: usize, observer: &mut dyn Observer) -> Result<()> {
        let decoder = self.decoder;
        let inside = |module: &str| decoder.names.inside(layer, module);
        let fused = self.engine.checkpoint.module(&inside("self_attn.qkv_proj")).is_some();
        let projections: Vec<String> =
            if fused { vec!["qkv_proj"] } else { vec!["q_proj", "k_proj", "v_proj"] }
                .into_iter()
                .map(|name| inside(&format!("self_attn.{name}")))
                .collect();
        let (out, width) = (inside("self_attn.o_proj"), decoder.heads * decoder.head_dim);
        let count = self.tokens();
        let inputs = [
            Input { modules: projections.clone(), width: decoder.hidden, count },
            Input { modules: vec![out.clone()], width, count },
        ];
        observer.begin(Part::Attention(layer), &inputs)?;
        let before = self.factors(&inside("input_layernorm"), decoder.hidden)?;
        let after = match decoder.norms {
            NormStyle::Plain => None,
            NormStyle::Sandwich => Some(self.factors(&inside("post_attention_layernorm"), decoder.hidden)?),
        };
        for chunk in self.chunks() {
            let xs = self.normed(chunk.clone(), &before, |x| observer.rows(0, x))?;
            let mut projected = self.project(chunk.clone(), xs, &projections)?;
            self.mix(layer, &self.groups[chunk.clone()], &mut projected)?;
            let outputs: Vec<Activations> = projected.into_iter().map(|p| p.queries).collect();
            outputs.iter().try_for_each(|x| observer.rows(1, x))?;
            let result = self.apply(&out, chunk.clone(), &outputs)?;
            drop(outputs);
            self.add(chunk, result, after.as_deref())?;
        }
        observer.end(0)?;
        observer.end(1)
    }

    /// The output of a linear layer for the groups of a chunk.
    pub(super) fn apply(
        &self,
        module: &str,
        chunk: std::ops::Range<usize>,
        xs: &[Activations],
    ) -> Result<Vec<Activations>> {
        let width = xs.first().map_or(0, |x| x.features);
        let weight = Weight::open(&self.engine, module, width)?;
        let inputs: Vec<LinearInput<'_>> = self.groups[chunk]
            .iter()
            .zip(xs)
            .map(|(group, x)| LinearInput { variant: group.variant, x })
            .collect();
        weight.apply(&inputs)
    }

    fn project(
        &self,
        chunk: std::ops::Range<usize>,
        xs: Vec<Activations>,
        modules: &[String],
    ) -> Result<Vec<Projected>> {
        let mut outputs = modules
            .iter()
            .map(|module| self.apply(module, chunk.clone(), &xs))
            .collect::<Result<Vec<_>>>()?;
        drop(xs);
        let (width, kv) =
            (self.decoder.heads * self.decoder.head_dim, self.decoder.kv_heads * self.decoder.head_dim);
        if let ([fused], [module]) = (outputs.as_mut_slice(), modules) {
            let split = |mut queries: Activations| {
                self.expect(module, queries.features, width + 2 * kv)?;
                let part = |rows: std::ops::Range<usize>| Activations {
                    features: rows.len(),
                    tokens: queries.tokens,
                    values: queries.rows(rows).to_vec(),
                };
                let (keys, values) = (part(width..width + kv), part(width + kv..width + 2 * kv));
                queries.truncate(width);
                Ok(Projected { queries, keys, values })
            };
            return std::mem::take(fused).into_iter().map(split).collect();
        }
        let mut parts =
            outputs.into_iter().zip(modules).zip([width, kv, kv]).map(|((outputs, module), rows)| {
                outputs.iter().try_for_each(|output| self.expect(module, output.features, rows))?;
                Ok(outputs.into_iter())
            });
        let mut next = || parts.next().unwrap_or_else(|| Ok(Vec::new().into_iter()));
        let (queries, keys, values): (std::vec::IntoIter<Activations>, _, _) = (next()?, next()?, next()?);
        let zipped = queries.zip(keys).zip(values);
        Ok(zipped.map(|((queries, keys), values)| Projected { queries, keys, values }).collect())
    }

    /// Refuses a weight whose number of outputs differs from what the config requires.
    pub(super) fn expect(&self, module: &str, rows: usize, expected: usize) -> Result<()> {
        if rows == expected {
            return Ok(());
        }
        let what = format!("the weight has {rows} rows, but the config requires {expected}");
        Err(crate::Error::input(what).tensor(module).path(self.engine.checkpoint.root()))
    }

    /// Applies norms and rotary embeddings to queries and keys, and replaces the queries by the attention's output.
    fn mix(&self, layer: usize, groups: &[Group], projected: &mut [Projected]) -> Result<()> {
        let decoder = self.decoder;
        let norm = |name: &str| {
            let module = decoder.names.inside(layer, &format!("self_attn.{name}"));
            let there = self.engine.checkpoint.tensor(&format!("{module}.weight")).is_some();
            there.then(|| self.factors(&module, decoder.head_dim)).transpose()
        };
        let norms = [norm("q_norm")?, norm("k_norm")?];
        let tasks: Vec<_> = groups.iter().zip(projected.iter_mut()).collect();
        spread(self.engine.threads, tasks, |(): &mut (), (group, parts)| {
            let columns = group.sequences.iter().map(|(_, columns)| columns);
            let angles = Angles::of(&decoder.rotary[layer], columns, group.tokens());
            for (x, norm) in [&mut parts.queries, &mut parts.keys].into_iter().zip(&norms) {
                if let Some(factors) = norm {
                    rms_norm(x, factors, decoder.eps);
                }
                rotate(x, decoder.head_dim, &angles);
            }
            Ok(())
        })?;
        let heads = Heads {
            width: decoder.head_dim,
            scale: decoder.attention_scale,
            cap: decoder.attention_cap,
            window: decoder.windows[layer],
        };
        let shared = decoder.heads / decoder.kv_heads;
        let tasks: Vec<_> = groups
            .iter()
            .zip(projected.iter_mut())
            .flat_map(|(group, Projected { queries, keys, values })| {
                let (keys, values) = (&*keys, &*values);
                let size = (decoder.head_dim * queries.tokens).max(1);
                let heads = queries.values.chunks_mut(size).enumerate();
                heads.map(move |(head, queries)| {
                    let rows = head / shared * decoder.head_dim..(head / shared + 1) * decoder.head_dim;
                    (group, queries, keys.rows(rows.clone()), values.rows(rows))
                })
            })
            .collect();
        spread(self.engine.threads, tasks, |scratch: &mut Vec<f32>, (group, queries, keys, values)| {
            attend(heads, queries, keys, values, group.sequences.iter().map(|(_, columns)| columns), scratch);
            Ok(())
        })
    }
}

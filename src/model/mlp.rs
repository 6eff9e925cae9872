//! The MLP half of a layer.

use std::ops::Range;

use super::Input;
use super::decoder::NormStyle;
use super::forward::{Forward, Observer, Part};
use super::kernel::{Activations, gate};
use super::threads::spread;
use crate::Result;

impl Forward<'_> {
    /// The names of the norm before the second half of a layer and, if there is one, of the norm after it.
    pub(super) fn mlp_norms(&self, layer: usize) -> (String, Option<String>) {
        let inside = |name: &str| self.decoder.names.inside(layer, name);
        match self.decoder.norms {
            NormStyle::Plain => (inside("post_attention_layernorm"), None),
            NormStyle::Sandwich => {
                (inside("pre_feedforward_layernorm"), Some(inside("post_feedforward_layernorm")))
            }
        }
    }

    /// Adds the output of a layer's MLP to the hidden states.
    pub(super) fn mlp(&mut self, layer: usize, observer: &mut dyn Observer) -> Result<()> {
        let decoder = self.decoder;
        let inside = |name: &str| decoder.names.inside(layer, &format!("mlp.{name}"));
        let fused = self.engine.checkpoint.module(&inside("gate_up_proj")).is_some();
        let gates: Vec<String> =
            if fused { vec![inside("gate_up_proj")] } else { vec![inside("gate_proj"), inside("up_proj")] };
        let down = inside("down_proj");
        let width = super::linear::find(self.engine.checkpoint, &down)?.shape()[1];
        let count = self.tokens();
        let inputs = [
            Input { modules: gates.clone(), width: decoder.hidden, count },
            Input { modules: vec![down.clone()], width, count },
        ];
        observer.begin(Part::Mlp(layer), &inputs)?;
        let (before, after) = self.mlp_norms(layer);
        let before = self.factors(&before, decoder.hidden)?;
        let after = after.map(|name| self.factors(&name, decoder.hidden)).transpose()?;
        for chunk in self.chunks() {
            let xs = self.normed(chunk.clone(), &before, |x| observer.rows(0, x))?;
            let inner = self.gated(chunk.clone(), xs, &gates)?;
            inner.iter().try_for_each(|x| observer.rows(1, x))?;
            let outputs = self.apply(&down, chunk.clone(), &inner)?;
            drop(inner);
            self.add(chunk, outputs, after.as_deref())?;
        }
        observer.end(0)?;
        observer.end(1)
    }

    fn gated(&self, chunk: Range<usize>, xs: Vec<Activations>, gates: &[String]) -> Result<Vec<Activations>> {
        let activation = self.decoder.activation;
        let mut first = self.apply(&gates[0], chunk.clone(), &xs)?;
        let Some(up) = gates.get(1) else {
            drop(xs);
            for output in &first {
                self.expect(&gates[0], output.features % 2, 0)?;
            }
            let tasks: Vec<_> = first.iter_mut().collect();
            spread(self.engine.threads, tasks, |(): &mut (), x: &mut Activations| {
                x.gate_halves(activation);
                Ok(())
            })?;
            return Ok(first);
        };
        let ups = self.apply(up, chunk, &xs)?;
        drop(xs);
        for (gate, other) in first.iter().zip(&ups) {
            self.expect(up, other.features, gate.features)?;
        }
        let tasks: Vec<_> = first.iter_mut().zip(&ups).collect();
        spread(self.engine.threads, tasks, |(): &mut (), (x, up): (&mut Activations, &Activations)| {
            gate(&mut x.values, &up.values, activation);
            Ok(())
        })?;
        Ok(first)
    }
}

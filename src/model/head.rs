//! The output head and the loss: logits are computed panel by panel of the vocabulary and never kept.

use std::ops::Range;

use super::Input;
use super::forward::{Forward, Observer, Part};
use super::kernel::Activations;
use super::linear::{LinearInput, Weight};
use super::threads::spread;
use crate::{Error, Result};

/// The next-token loss of one sequence with one variant of the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// The index of the variant.
    pub variant: usize,
    /// The index of the sequence.
    pub sequence: usize,
    /// The number of predicted tokens.
    pub tokens: usize,
    /// The sum of their losses, in nats.
    pub sum: f64,
}

/// What one panel of the vocabulary contributes for every token of a group.
#[derive(Default)]
struct Partial {
    most: Vec<f32>,
    /// Sum of exp(logit - most).
    sum: Vec<f32>,
    /// The logit of the next token, if it is in the panel.
    next: Vec<Option<f32>>,
}

/// The same for one token, combined over all panels so far.
#[derive(Clone, Copy)]
struct Total {
    most: f64,
    sum: f64,
    next: f64,
}

impl Total {
    fn add(&mut self, most: f64, sum: f64, next: Option<f32>) {
        let new = self.most.max(most);
        self.sum = self.sum * (self.most - new).exp() + sum * (most - new).exp();
        self.most = new;
        if let Some(next) = next {
            self.next = f64::from(next);
        }
    }
}

impl Forward<'_> {
    /// The loss of every sequence with every variant, from the hidden states after the last layer.
    ///
    /// # Errors
    /// A weight that cannot be read; any error from the observer; a loss that is not finite.
    pub fn losses(&mut self, mut observer: Option<&mut dyn Observer>) -> Result<Vec<Loss>> {
        let decoder = self.decoder;
        let factors = self.factors(&decoder.names.last_norm(), decoder.hidden)?;
        let head = decoder.names.head();
        if let Some(observer) = observer.as_deref_mut() {
            let (modules, count) = (vec![head.to_owned()], self.tokens());
            observer.begin(Part::Head, &[Input { modules, width: decoder.hidden, count }])?;
        }
        let mut losses = Vec::new();
        for chunk in self.chunks() {
            let xs = self.normed(chunk.clone(), &factors, |x| match observer.as_deref_mut() {
                Some(observer) => observer.rows(0, x),
                None => Ok(()),
            })?;
            let totals = self.totals(head, chunk.clone(), &xs)?;
            for (group, totals) in self.groups[chunk].iter().zip(totals) {
                for (sequence, columns) in &group.sequences {
                    let predicted = &totals[columns.start..columns.end - 1];
                    let sum: f64 = predicted.iter().map(|t| t.most + t.sum.ln() - t.next).sum();
                    if !sum.is_finite() {
                        return Err(Error::input("the model's loss on the text is not a number")
                            .path(self.engine.checkpoint.root())
                            .hint("its weights may hold NaN or infinities: check with `trephine probe`"));
                    }
                    let (variant, sequence) = (group.variant, *sequence);
                    losses.push(Loss { variant, sequence, tokens: predicted.len(), sum });
                }
            }
        }
        if let Some(observer) = observer {
            observer.end(0)?;
        }
        Ok(losses)
    }

    fn totals(&self, head: &str, chunk: Range<usize>, xs: &[Activations]) -> Result<Vec<Vec<Total>>> {
        let weight = Weight::open(&self.engine, head, self.decoder.hidden)?;
        let groups = &self.groups[chunk];
        let inputs: Vec<LinearInput<'_>> =
            groups.iter().zip(xs).map(|(group, x)| LinearInput { variant: group.variant, x }).collect();
        let inner = weight.inner(&inputs)?;
        let none = Total { most: f64::NEG_INFINITY, sum: 0.0, next: f64::NAN };
        let mut totals: Vec<Vec<Total>> = groups.iter().map(|group| vec![none; group.tokens()]).collect();
        // The panels' results are added in the order of the vocabulary, whichever thread computed them.
        for wave in weight.panels().chunks(4 * self.engine.threads) {
            let mut answers: Vec<Vec<Partial>> = wave.iter().map(|_| Vec::new()).collect();
            let tasks: Vec<_> = wave.iter().cloned().zip(&mut answers).collect();
            spread(
                self.engine.threads,
                tasks,
                |(panel, out): &mut (Vec<f32>, Vec<f32>), (rows, answers)| {
                    weight.decode(rows.clone(), panel)?;
                    for ((operand, inner), group) in inputs.iter().zip(&inner).zip(groups) {
                        out.resize(rows.len() * operand.x.tokens, 0.0);
                        weight.panel(rows.clone(), panel, *operand, inner.as_ref(), out);
                        answers.push(partial(out, rows.clone(), &group.ids, self.decoder.logit_cap));
                    }
                    Ok(())
                },
            )?;
            for answers in &answers {
                totals.iter_mut().zip(answers).for_each(|(totals, partial)| fold(totals, partial));
            }
        }
        Ok(totals)
    }
}

fn fold(totals: &mut [Total], partial: &Partial) {
    let parts = partial.most.iter().zip(&partial.sum).zip(&partial.next);
    for (total, ((most, sum), next)) in totals.iter_mut().zip(parts) {
        total.add(f64::from(*most), f64::from(*sum), *next);
    }
}

/// What the logits of `rows` of the vocabulary, `[rows, tokens]`, contribute for every token.
fn partial(logits: &mut [f32], rows: Range<usize>, ids: &[u32], cap: Option<f32>) -> Partial {
    let tokens = ids.len();
    if let Some(cap) = cap {
        logits.iter_mut().for_each(|logit| *logit = (*logit / cap).tanh() * cap);
    }
    let mut most = vec![f32::NEG_INFINITY; tokens];
    for row in logits.chunks(tokens.max(1)) {
        most.iter_mut().zip(row).for_each(|(most, logit)| *most = most.max(*logit));
    }
    let mut sum = vec![0f32; tokens];
    for row in logits.chunks(tokens.max(1)) {
        for ((sum, logit), most) in sum.iter_mut().zip(row).zip(&most) {
            *sum += (logit - most).exp();
        }
    }
    // The last token of a sequence has no next one in it; the value computed for it here is never read.
    let next = |column: usize| {
        let id = *ids.get(column + 1)? as usize;
        rows.contains(&id).then(|| logits[(id - rows.start) * tokens + column])
    };
    Partial { next: (0..tokens).map(next).collect(), most, sum }
}

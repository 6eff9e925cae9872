//! Accumulates the second moments of a pass's layer inputs, and writes each layer's file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::identity::Begin;
use super::options::Calibration;
use crate::calibration::layout::{FORMAT, IndexInput, VERSION, file_name};
use crate::calibration::{Accumulator, Announced, FileWriter};
use crate::durable::Written;
use crate::model::kernel::Activations;
use crate::model::{Input, Observer, Part};
use crate::{Error, Result};

/// Records the inputs of a layer as they arrive.
pub(super) struct Recorder {
    out: PathBuf,
    metadata: BTreeMap<String, String>,
    k: usize,
    seed: u64,
    threads: usize,
    /// The file's name and the inputs that it will contain, once all are known.
    layer: Option<(String, Vec<Input>)>,
    /// The inputs of the current part, with the moments accumulated so far.
    part: Vec<(Input, Option<Accumulator>)>,
    /// Complete inputs of the attention, kept until the file is started.
    waiting: Vec<(Input, Accumulator)>,
    writer: Option<FileWriter>,
}

impl Recorder {
    pub fn new(job: &Calibration, begin: &Begin, threads: usize) -> Recorder {
        let mut metadata: BTreeMap<String, String> = [
            ("format", FORMAT.to_owned()),
            ("version", VERSION.to_string()),
            ("model", begin.model.clone()),
            ("text_digest", begin.text_digest.clone()),
            ("tokens", begin.tokens.to_string()),
            ("k", begin.k.to_string()),
            ("seed", begin.seed.to_string()),
            ("producer", format!("trephine {}", env!("CARGO_PKG_VERSION"))),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        let exact = begin.tokens <= begin.k;
        metadata.insert("sketch".to_owned(), if exact { "samples" } else { "sparse-sign" }.to_owned());
        Recorder {
            out: job.out.clone(),
            metadata,
            k: job.k,
            seed: job.seed,
            threads,
            layer: None,
            part: Vec::new(),
            waiting: Vec::new(),
            writer: None,
        }
    }

    fn fresh(&self, input: &Input) -> Accumulator {
        Accumulator::new(&input.modules[0], input.width, input.count, self.k, self.seed)
    }

    /// Starts the file of a layer, now that all of its inputs are known.
    fn begin_file(&mut self, name: String, inputs: Vec<Input>) -> Result<()> {
        let announced = |input: &Input| Announced {
            name: input.modules[0].clone(),
            width: input.width,
            rows: input.count.min(self.k),
            count: input.count,
        };
        let mut metadata = self.metadata.clone();
        let shares: BTreeMap<&str, &[String]> =
            inputs.iter().map(|input| (input.modules[0].as_str(), input.modules.as_slice())).collect();
        let shares = serde_json::to_string(&shares)
            .map_err(|e| Error::unexpected("cannot write the inputs as JSON").because(e))?;
        metadata.insert("inputs".to_owned(), shares);
        let mut writer =
            FileWriter::create(&self.out.join(&name), inputs.iter().map(announced).collect(), &metadata)?;
        for (_, taken) in self.waiting.drain(..) {
            writer.put(&taken)?;
        }
        self.layer = Some((name, inputs));
        self.writer = Some(writer);
        Ok(())
    }

    /// Finishes the file of a layer, and returns what is in it.
    pub fn finish(&mut self) -> Result<(Written, BTreeMap<String, IndexInput>)> {
        let (Some(writer), Some((file, inputs))) = (self.writer.take(), self.layer.take()) else {
            return Err(Error::unexpected("a layer ended before it began"));
        };
        let written = writer.finish()?;
        let entry = |input: Input| {
            let (rows, count) = (input.count.min(self.k), input.count as u64);
            let name = input.modules[0].clone();
            (name, IndexInput { file: file.clone(), width: input.width, rows, count, modules: input.modules })
        };
        Ok((written, inputs.into_iter().map(entry).collect()))
    }
}

impl Observer for Recorder {
    fn begin(&mut self, part: Part, inputs: &[Input]) -> Result<()> {
        self.part = inputs.iter().map(|input| (input.clone(), None)).collect();
        let before = self.waiting.iter().map(|(input, _)| input.clone());
        let known: Vec<Input> = before.chain(inputs.iter().cloned()).collect();
        match part {
            Part::Attention(_) => Ok(()),
            Part::Mlp(layer) => self.begin_file(file_name(Some(layer)), known),
            Part::Head => self.begin_file(file_name(None), known),
        }
    }

    fn rows(&mut self, input: usize, x: &Activations) -> Result<()> {
        if self.part[input].1.is_none() {
            self.part[input].1 = Some(self.fresh(&self.part[input].0));
        }
        if let Some(taken) = &mut self.part[input].1 {
            taken.add(&x.values, x.tokens, |tasks| {
                crate::model::run_tasks(self.threads, tasks, crate::calibration::Task::run);
            });
        }
        Ok(())
    }

    fn end(&mut self, input: usize) -> Result<()> {
        let (about, taken) = (self.part[input].0.clone(), self.part[input].1.take());
        let taken = taken.unwrap_or_else(|| self.fresh(&about));
        match &mut self.writer {
            Some(writer) => writer.put(&taken),
            None => {
                self.waiting.push((about, taken));
                Ok(())
            }
        }
    }
}

//! The options that choose the text a model runs on.

use std::path::PathBuf;

use clap::Args;
use trephine::corpus::Corpus;

/// The text, and how it is cut into sequences. `calibrate` and `evaluate` share these options.
#[derive(Debug, Args)]
pub struct Text {
    /// A text file, or .jsonl with {"messages": [...]} or {"text": "..."} on each line. Can be repeated [default: a
    /// built-in text of several languages and code]
    #[arg(long, value_name = "FILE")]
    text: Vec<PathBuf>,
    /// The folder with tokenizer.json [default: the model's]
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Maximum number of tokens per sequence
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    sequence: usize,
    /// Maximum number of tokens in total; several files are read in turn
    #[arg(long, default_value_t = 16384)]
    tokens: usize,
}

impl Text {
    /// The corpus that these options describe.
    pub fn corpus(self) -> Corpus {
        Corpus { files: self.text, tokenizer: self.tokenizer, sequence: self.sequence, tokens: self.tokens }
    }
}

//! The options that say which text a model is run on.

use std::path::PathBuf;

use clap::Args;
use trephine::corpus::Corpus;

/// Which text, and how it is cut: `calibrate` and `evaluate` take the same.
#[derive(Debug, Args)]
pub struct Text {
    /// A text file, or .jsonl with {"messages": [...]} or {"text": "..."} on each line. Can be repeated [default: a built-in text of
    /// several languages and code]
    #[arg(long, value_name = "FILE")]
    text: Vec<PathBuf>,
    /// The folder with tokenizer.json, where it is not the model's
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Tokens of a sequence, at most
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    sequence: usize,
    /// Tokens in all, at most; of several files each gives its share
    #[arg(long, default_value_t = 16384)]
    tokens: usize,
}

impl Text {
    /// The text that is meant.
    pub fn corpus(self) -> Corpus {
        Corpus { files: self.text, tokenizer: self.tokenizer, sequence: self.sequence, tokens: self.tokens }
    }
}

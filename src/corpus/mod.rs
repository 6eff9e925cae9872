//! The text that a model is run on: files, or the built-in text, tokenized by the model's own tokenizer and cut into
//! sequences.
//!
//! A text file is one long document; a `.jsonl` file has one JSON object per line: `{"messages": [...]}`, rendered by
//! the model's chat template, or `{"text": "..."}`. Documents are cut into sequences. Each begins as the tokenizer
//! begins a text (with `<bos>`, if the model has one), since a decoder treats its first token specially. If there is
//! more text than wanted tokens, the files take turns.

mod chat;
mod documents;
mod tokenizer;

use std::path::{Path, PathBuf};

use self::chat::Chat;
pub use self::documents::BUILT_IN;
use self::documents::{Document, documents};
use self::tokenizer::ModelTokenizer;
use crate::model::Sequences;
use crate::{Error, Result};

/// The text to use, and how it is cut.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// Text files or `.jsonl` files; empty for the built-in text.
    pub files: Vec<PathBuf>,
    /// The folder with `tokenizer.json`, if it is not the model's.
    pub tokenizer: Option<PathBuf>,
    /// The most tokens in a sequence.
    pub sequence: usize,
    /// The most tokens in total.
    pub tokens: usize,
}

/// A tokenized text.
#[derive(Clone, Debug)]
pub struct Tokenized {
    /// The sequences.
    pub sequences: Sequences,
    /// Whether there was more text than wanted.
    pub cut: bool,
}

impl Corpus {
    /// Whether a file of a model's folder is read for its text, by its name.
    pub fn is_read(name: &str) -> bool {
        name == "tokenizer.json" || name.starts_with("tokenizer_config") || name.starts_with("chat_template")
    }

    /// The approximate number of bytes needed to read and tokenize the text for this model: mostly the vocabulary in
    /// the tokenizer's tables (measured: 11 times its file).
    pub fn memory(&self, model: &Path) -> u64 {
        let file = self.folder(model).join("tokenizer.json");
        let vocabulary = std::fs::metadata(file).map_or(0, |data| data.len());
        (self.tokens as u64).saturating_mul(64).saturating_add(14 * vocabulary)
    }

    /// The folder of the tokenizer.
    fn folder(&self, model: &Path) -> PathBuf {
        match &self.tokenizer {
            Some(folder) => folder.clone(),
            None if model.is_dir() => model.to_owned(),
            None => model.parent().unwrap_or(Path::new(".")).to_owned(),
        }
    }

    /// Reads, tokenizes and cuts the text for the model in the folder (or file) `model`.
    ///
    /// # Errors
    /// No tokenizer; a file whose content does not match its name; a sequence too short to predict anything; no text at
    /// all.
    pub fn tokenize(&self, model: &Path) -> Result<Tokenized> {
        if self.sequence < 2 || self.tokens < 2 {
            let what = "a sequence of fewer than 2 tokens predicts nothing";
            return Err(Error::decide(what).hint("give --sequence 512 and --tokens 8192, for example"));
        }
        let folder = self.folder(model);
        let tokenizer = ModelTokenizer::open(&folder)?;
        let mut chat = None;
        let mut files = Vec::new();
        let sources: Vec<Option<&Path>> = if self.files.is_empty() {
            vec![None]
        } else {
            self.files.iter().map(|f| Some(f.as_path())).collect()
        };
        for source in sources {
            let mut pieces = Vec::new();
            for document in documents(source, self.tokens)? {
                let text = match document {
                    Document::Text(text) => text,
                    Document::Messages(messages) => {
                        if chat.is_none() {
                            chat = Some(Chat::open(&folder)?);
                        }
                        // Set when the file was opened, just above.
                        let Some(chat) = &chat else { continue };
                        chat.render(messages).map_err(|e| source.into_iter().fold(e, Error::path))?
                    }
                };
                pieces.extend(tokenizer.pieces(&text, self.sequence)?);
            }
            files.push(pieces);
        }
        let tokenized = take_turns(files, self.tokens);
        if tokenized.sequences.all().is_empty() {
            let what = "the text has no two consecutive tokens";
            return Err(Error::input(what).hint("give files with more text: --text FILE"));
        }
        Ok(tokenized)
    }
}

/// Takes sequences from each file in turn, until there are as many tokens as wanted.
fn take_turns(files: Vec<Vec<Vec<u32>>>, wanted: usize) -> Tokenized {
    let longest = files.iter().map(Vec::len).max().unwrap_or(0);
    let mut files: Vec<_> = files.into_iter().map(Vec::into_iter).collect();
    let (mut taken, mut tokens, mut cut) = (Vec::new(), 0, false);
    for _ in 0..longest {
        for piece in files.iter_mut().filter_map(Iterator::next) {
            let room = wanted - tokens;
            cut |= piece.len() > room;
            let piece: Vec<u32> = piece.into_iter().take(room).collect();
            tokens += piece.len();
            taken.push(piece);
        }
    }
    Tokenized { sequences: Sequences::new(taken), cut }
}

#[cfg(test)]
mod tests {
    use super::take_turns;

    #[test]
    fn files_take_turns_until_there_is_enough() {
        let files = vec![vec![vec![1; 4], vec![2; 4], vec![3; 4]], vec![vec![4; 3]]];
        let whole = take_turns(files.clone(), 100);
        assert_eq!((whole.sequences.tokens(), whole.cut), (15, false));
        let part = take_turns(files, 9);
        assert_eq!(part.sequences.all(), [vec![1; 4], vec![4; 3], vec![2; 2]]);
        assert!(part.cut);
    }
}

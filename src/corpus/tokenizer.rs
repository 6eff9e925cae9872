//! A model's tokenizer, from its `tokenizer.json`.

use std::path::Path;

use tokenizers::Tokenizer;

use crate::storage::regular_file;
use crate::{Error, Result};

/// The longest `tokenizer.json`; those of large vocabularies have some tens of megabytes.
const LONGEST: u64 = 256 << 20;

/// A tokenizer, and the tokens that it begins every text with.
pub(super) struct ModelTokenizer {
    tokenizer: Tokenizer,
    beginning: Vec<u32>,
}

impl ModelTokenizer {
    /// Reads `tokenizer.json` in `folder`.
    pub fn open(folder: &Path) -> Result<ModelTokenizer> {
        let path = folder.join("tokenizer.json");
        let bytes = regular_file::read_within(&path, LONGEST).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::input("the model has no tokenizer.json")
                .path(&path)
                .hint("give the folder of a model with the same tokenizer: --tokenizer DIR"),
            _ => regular_file::cannot_read(&path, e),
        })?;
        let bad = |e| {
            Error::input("the tokenizer cannot be used")
                .path(&path)
                .because(e)
                .hint("download tokenizer.json again")
        };
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(bad)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(bad)?;
        let mut tokenizer = ModelTokenizer { tokenizer, beginning: Vec::new() };
        let (plain, special) = (tokenizer.encode("a", false)?, tokenizer.encode("a", true)?);
        let start = special.windows(plain.len().max(1)).position(|window| window == plain);
        tokenizer.beginning = special[..start.unwrap_or(0)].to_vec();
        Ok(tokenizer)
    }

    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let failed = |e| Error::input("the text cannot be tokenized").because(e);
        Ok(self.tokenizer.encode_fast(text, special).map_err(failed)?.get_ids().to_vec())
    }

    /// Cuts a document into sequences of at most `sequence` tokens, each with the beginning tokens.
    pub fn pieces(&self, text: &str, sequence: usize) -> Result<Vec<Vec<u32>>> {
        let ids = self.encode(text, false)?;
        // A chat template may have written the beginning already.
        let ids = ids.strip_prefix(self.beginning.as_slice()).unwrap_or(&ids);
        let room = sequence.saturating_sub(self.beginning.len()).max(1);
        Ok(ids.chunks(room).map(|piece| [self.beginning.as_slice(), piece].concat()).collect())
    }
}

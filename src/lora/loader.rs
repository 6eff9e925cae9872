//! The programs that load adapters.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A program that loads LoRA adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Loader {
    /// PEFT, with transformers.
    #[serde(rename = "peft")]
    Peft,
    /// vLLM.
    #[serde(rename = "vllm")]
    Vllm,
    /// SGLang.
    #[serde(rename = "sglang")]
    Sglang,
    /// llama.cpp, through its converter.
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
}

impl Loader {
    /// All loaders.
    pub const ALL: [Loader; 4] = [Loader::Peft, Loader::Vllm, Loader::Sglang, Loader::LlamaCpp];

    /// Its name, as its authors write it.
    pub fn name(self) -> &'static str {
        match self {
            Loader::Peft => "PEFT",
            Loader::Vllm => "vLLM",
            Loader::Sglang => "SGLang",
            Loader::LlamaCpp => "llama.cpp",
        }
    }
}

impl fmt::Display for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

//! Options whose value is one of a few words.

use clap::ValueEnum;
use trephine::lora::{FactorType, Loader};

/// A value of an option that is one of a few words, and its twin in the library.
macro_rules! words {
    ($name:ident => $library:ident { $($(#[$doc:meta])* $word:ident),* }) => {
        #[derive(Clone, Copy, Debug, ValueEnum)]
        pub enum $name { $($(#[$doc])* $word),* }

        impl From<$name> for $library {
            fn from(name: $name) -> $library {
                match name { $($name::$word => $library::$word),* }
            }
        }
    };
}

pub(crate) use words;

words!(DtypeName => FactorType { Bf16, F16, F32 });

/// A program that loads adapters, as `--for` names it.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LoaderName {
    Vllm,
    Sglang,
    #[value(name = "llama.cpp")]
    LlamaCpp,
    Peft,
    All,
}

impl LoaderName {
    /// The program; `None` for all of them.
    pub fn loader(self) -> Option<Loader> {
        match self {
            LoaderName::Vllm => Some(Loader::Vllm),
            LoaderName::Sglang => Some(Loader::Sglang),
            LoaderName::LlamaCpp => Some(Loader::LlamaCpp),
            LoaderName::Peft => Some(Loader::Peft),
            LoaderName::All => None,
        }
    }
}

/// The programs that these words name, each once.
pub fn loaders(names: &[LoaderName]) -> Vec<Loader> {
    let is_named =
        |loader: &Loader| names.iter().any(|name| name.loader().is_none_or(|named| named == *loader));
    Loader::ALL.into_iter().filter(is_named).collect()
}

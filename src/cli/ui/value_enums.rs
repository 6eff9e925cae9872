//! Options whose value is one of a few words.

use clap::ValueEnum;
use trephine::lora::FactorType;

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

//! Writes adapters: shards of finished modules, and the one file that PEFT, vLLM, SGLang and llama.cpp load. A new
//! output format goes next to `peft.rs`.

pub(crate) mod adapter;
pub(crate) mod expert_stacks;
pub(crate) mod peft;
pub(crate) mod piece;
pub mod shard;
pub use self::adapter::{Adapter, AdapterWriter, WrittenAdapter};
pub use self::expert_stacks::{ModuleFactors, read_factors};
pub use self::peft::Peft;
pub use self::piece::{Piece, ShardNames};
pub use self::shard::Shard;

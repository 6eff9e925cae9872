//! Trephine extracts a LoRA adapter from the difference between two checkpoints that are far larger than memory, one of
//! them often quantized.
//!
//! # The pipeline
//! ```text
//! tuned checkpoint ─┐
//!                   ├─ read ─ dequantize ─ subtract ─ factorize ─ shard + blake3 ─ assemble ─ adapter
//! base checkpoint ──┘    (bounded channels, a byte budget, a few modules at a time)
//! ```
//! 1. **Open.** [`checkpoint`] reads headers, index and config, and makes a catalogue of *modules*: logical weights
//!    `[out, in]`, each made of one or more stored tensors. Every offset is checked here, once.
//! 2. **Pair and plan.** [`delta`] pairs each selected module of the base with its partner in the tuned checkpoint.
//!    Shapes and options alone determine how each pair is factorized; the memory budget determines whether its delta is
//!    held, in bytes or f32, or recomputed at every pass. The plan is a value that can be shown (`--dry-run`).
//! 3. **Read.** Reader threads take a permit for a module's bytes, map its tensors window by window, have [`quant`]
//!    decode them, subtract, and sum the norm in f64. The same windows are hashed, so the manifest can name what
//!    was read.
//! 4. **Factorize.** [`factorize`] sees the delta as panels of rows. Randomized block Krylov or a Gram matrix gives
//!    `B·A` near the best approximation of that rank, with the singular values and an honest estimate of the distance.
//!    The tiling of a matrix follows from its shape, and sums are added in a fixed order, so neither the number of
//!    threads nor the memory budget changes a bit of the result.
//! 5. **Make durable.** One writer puts each module's factors in a shard: temporary name, sync, rename, sync of
//!    the folder; only then does the journal ([`durable`]) record it. A kill at any instant costs only the modules
//!    in flight.
//! 6. **Assemble.** [`lora`] streams the shards into the one file that PEFT, vLLM, SGLang and llama.cpp all load. The
//!    manifest, the model card and the spectra follow; the checksums come last, and only they make the folder complete.
//!
//! # More than one machine
//! Modules are independent and shards are files, so a run can be split. Every part
//! ([`commands::extract::extract_part`]) finds its share from the plan's costs alone and writes under a name of its own
//! in the shared output folder. The parts share no lock; they only read in each other's journals what is done.
//! [`commands::extract::assemble`] checks that every module is there exactly once and from the same run, and gives the
//! same bytes as one machine. [`run::status`] reports the progress of a run.
//!
//! # Terms
//! *Base* is the checkpoint that the adapter is added to, *tuned* is what the two together should become, and *delta*
//! is tuned - base. With an unquantized base (Method A) the delta is the change that training made. With a quantized
//! base (Method B) it is that change minus the base's quantization error, so the adapter corrects the error too.
//!
//! # The rooms
//! A module imports only from rooms further down this list, no two commands import each other, and no two files import
//! each other in a circle (`tests/house.rs` enforces it).
//!
//! | room | contents | where a new one goes |
//! |---|---|---|
//! | [`commands`] | one folder for each subcommand: extract, convert (dequantize, merge), analyze, autopsy, probe, fidelity, sanitize, calibrate, evaluate | a folder |
//! | [`report`] | the commands' tables as plots and one page | a figure: `report/figures` |
//! | [`run`] | the life of a run: identity, parts, heartbeat, log, progress | |
//! | [`delta`] | selection and pairing of modules; the difference of two checkpoints as a stream of rows | |
//! | [`corpus`] | text as tokens, by a model's tokenizer and chat template | |
//! | [`model`] | decoders run out of core, layer by layer: hidden states, losses, the inputs of every linear layer | an architecture: `model/decoder` |
//! | [`pipeline`] | bounded resources: byte budgets, buffers, ordered panels, memory accounting | |
//! | [`lora`] | adapters: names, config, reading, the rules of each loader, writing | an output format: `lora/write` |
//! | [`calibration`] | second moments of layers' inputs: collecting, writing, reading | |
//! | [`checkpoint`] | files on disk as logical modules; GGUF architectures | an architecture of GGUF: `checkpoint/gguf` |
//! | [`container`] | the file formats safetensors and GGUF | |
//! | [`storage`] | sources of bytes | a source: a file |
//! | [`durable`] | journal, atomic files, checksums, locks: what makes a run safe to kill | |
//! | [`quant`] | quantized formats: bytes in, f32 out; touches no file | a format: a file in `quant/format`, a line in the registry |
//! | [`factorize`] | panels in, factors out; touches no file | a method: `factorize/backend` |
//! | [`error`] | the error type: what failed, where, and the fix | |
//! | [`shared`] | names and shapes that many records share | |
//! | [`printable`] | text that is safe to print on a terminal | |
//! | `simd` | the vector instructions that loops may use | |
//!
//! The binary is thin: it turns arguments into [`commands::extract::Extraction`] and shows progress bars and tables.
//!
//! ```
//! use trephine::commands::extract::{Allowances, Extraction, ResultOptions, default_memory, extract};
//! use trephine::pipeline::RunOptions;
//! use trephine::run::Silent;
//!
//! # fn main() -> trephine::Result<()> {
//! # let home = tempfile::tempdir().unwrap();
//! # let folder = home.path().to_path_buf();
//! let job = Extraction {
//!     base: "tests/data/base-fp8".into(), // or a name in the Hugging Face cache: Qwen/Qwen3-32B-FP8
//!     tuned: "tests/data/tuned".into(),
//!     served: None,
//!     calibration: None,
//!     hybrid: None,
//!     out: folder.join("adapter"),
//!     deciding: ResultOptions { rank: 16, ..ResultOptions::for_base("Qwen/Qwen3-32B-FP8") },
//!     allow: Allowances::default(),
//!     running: RunOptions::new(2, default_memory()),
//! };
//! let outcome = extract(&job, &Silent)?;
//! println!("{:.1} % captured", 100.0 * outcome.manifest.total.captured_energy);
//! # assert!((outcome.manifest.total.captured_energy - 0.5222).abs() < 1e-3);
//! # Ok(())
//! # }
//! ```

#![deny(missing_docs)]

pub mod calibration;
pub mod checkpoint;
pub mod commands;
pub mod container;
pub mod corpus;
pub mod delta;
pub mod durable;
pub mod error;
pub mod factorize;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod lora;
pub mod model;
pub mod pipeline;
pub mod printable;
pub mod quant;
#[cfg(feature = "report")]
pub mod report;
pub mod run;
pub mod shared;
mod simd;
pub mod storage;

pub use error::{Error, Kind, Result};

//! The commands other than `extract`, one module each.

#[path = "../common/mod.rs"]
mod common;

mod analysis;
mod autopsy;
mod calibrate;
mod command_line;
mod completions;
mod convert_adapter;
mod dequantize;
mod doctor;
mod evaluate;
mod fidelity;
mod json;
mod merge;
mod peft;
mod probe;
mod report;
mod report_files;
mod rules;
mod sanitize;
mod sanitize_bad;

//! The life of a run: killed, resumed, split, verified; the files that make it safe.

#[path = "../common/mod.rs"]
mod common;

mod bad_luck;
mod changed_inputs;
mod every_command;
mod faults;
mod hostile_folder;
mod hostile_inputs;
mod hostile_numbers;
mod hostile_texts;
mod ledger_checksums;
mod ledger_journal;
mod ledger_shards;
mod parts;
mod parts_of_runs;
mod resume;
mod resume_changes;
mod verify;

//! The `trephine` program: parses arguments, runs the subcommand, and turns an error into its exit code.

use std::process::ExitCode;

use clap::Parser;

mod cli;

fn main() -> ExitCode {
    cli::ui::allocator::return_freed_blocks();
    let arguments = cli::ProgramArgs::parse();
    match cli::run(arguments) {
        Ok(code) => code,
        Err(error) => cli::fail(&error),
    }
}

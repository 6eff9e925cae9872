//! The `trephine` program: parses arguments, runs the subcommand, and turns an error into its exit code.

use std::process::ExitCode;

mod cli;

#[global_allocator]
static ALLOCATOR: cli::ui::limits::Telling = cli::ui::limits::Telling;

fn main() -> ExitCode {
    cli::ui::limits::prepare();
    trephine::storage::tell_of_cut_files();
    cli::ui::allocator::return_freed_blocks();
    let arguments = match cli::help::parse() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    match cli::run(arguments) {
        Ok(code) => code,
        Err(error) => cli::fail(&error),
    }
}

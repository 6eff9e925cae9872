//! `trephine completions`.

use std::process::ExitCode;

use clap::Args;
use clap_complete::{Shell, generate};
use trephine::Result;

use crate::cli::print;

/// Prints the completion script of a shell. Save it where the shell looks for completions.
///
/// For bash, `trephine completions bash > ~/.local/share/bash-completion/completions/trephine`; for zsh, a file
/// `_trephine` in a folder of `$fpath`; for fish, `~/.config/fish/completions/trephine.fish`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script.
pub fn run(arguments: &CompletionsArgs) -> Result<ExitCode> {
    let mut script = Vec::new();
    generate(arguments.shell, &mut crate::cli::help::program(), "trephine", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

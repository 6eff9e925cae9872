//! `trephine man`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command, CommandFactory};
use clap_mangen::Man;
use trephine::durable::{atomic_file, folder};
use trephine::{Error, Result};

use crate::cli::print;

/// Writes the manual pages, one for the program and one for each subcommand.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The folder to write them to, for example ~/.local/share/man/man1; without it, the program's own page goes to
    /// stdout
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Writes the pages.
pub fn run(arguments: &ManArgs) -> Result<ExitCode> {
    let mut program = crate::cli::ProgramArgs::command();
    program.build();
    let Some(out) = &arguments.out else {
        print(&String::from_utf8_lossy(&page(program)?))?;
        return Ok(ExitCode::SUCCESS);
    };
    folder::create(out)?;
    // `help` only repeats the other subcommands.
    let commands: Vec<Command> =
        program.get_subcommands().filter(|c| c.get_name() != "help").cloned().collect();
    write(out, program)?;
    commands.into_iter().try_for_each(|command| write(out, command))?;
    Ok(ExitCode::SUCCESS)
}

fn write(out: &Path, command: Command) -> Result<()> {
    // `trephine-extract`: the name by which `man` knows a subcommand.
    let name = format!("{}.1", command.get_display_name().unwrap_or(command.get_name()));
    let page = page(command)?;
    atomic_file::write(&out.join(name), |file| file.write_all(&page)).map(drop)
}

fn page(command: Command) -> Result<Vec<u8>> {
    let mut page = Vec::new();
    let rendered = Man::new(command).render(&mut page);
    rendered.map_err(|e| Error::unexpected("cannot write a manual page").because(e))?;
    Ok(page)
}

//! `trephine man`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command};
use clap_mangen::Man;
use trephine::durable::{atomic_file, folder};
use trephine::{Error, Result};

use crate::cli::help::{examples, program, related};
use crate::cli::print;

/// Writes the manual pages, one for the program and one for each subcommand.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The folder to write them to, for example ~/.local/share/man/man1; without it, the program's own page goes to
    /// stdout
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Writes the pages.
pub fn run(arguments: &ManArgs) -> Result<ExitCode> {
    let mut program = program();
    program.build();
    let Some(out) = &arguments.out else {
        print(&String::from_utf8_lossy(&page(program, "")?))?;
        return Ok(ExitCode::SUCCESS);
    };
    folder::create(out)?;
    // `help` only repeats the other subcommands.
    let commands: Vec<Command> =
        program.get_subcommands().filter(|c| c.get_name() != "help").cloned().collect();
    write(out, program, "")?;
    commands.into_iter().try_for_each(|command| {
        let name = command.get_name().to_owned();
        write(out, command, &name)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn write(out: &Path, command: Command, name: &str) -> Result<()> {
    // `trephine-extract`: the name by which `man` knows a subcommand.
    let file = format!("{}.1", command.get_display_name().unwrap_or(command.get_name()));
    let page = page(command, name)?;
    atomic_file::write(&out.join(file), |file| file.write_all(&page)).map(drop)
}

/// The page of a command; of the program under the empty name.
fn page(command: Command, name: &str) -> Result<Vec<u8>> {
    let mut page = Vec::new();
    // The examples get a section of their own, under the name that manual pages have for it.
    let after = if name.is_empty() { Some(crate::cli::help::EXIT_CODES) } else { None };
    let rendered = Man::new(command.after_help(after)).render(&mut page);
    rendered.map_err(|e| Error::unexpected("cannot write a manual page").because(e))?;
    page.extend_from_slice(more(name).as_bytes());
    Ok(page)
}

/// The sections EXAMPLES and SEE ALSO.
fn more(name: &str) -> String {
    let plain = |text: &str| text.replace('\\', "\\\\").replace('-', "\\-");
    let lines: Vec<String> = examples(name).iter().map(|line| plain(line)).collect();
    let mut others = related(name);
    others.truncate(6);
    let mut pages: Vec<String> =
        others.iter().map(|other| format!("\\fBtrephine\\-{}\\fR(1)", plain(other))).collect();
    if !name.is_empty() {
        pages.insert(0, "\\fBtrephine\\fR(1)".to_owned());
    }
    let examples = format!(".SH EXAMPLES\n.nf\n{}\n.fi\n", lines.join("\n"));
    match pages.is_empty() {
        true => examples,
        false => format!("{examples}.SH \"SEE ALSO\"\n{}\n", pages.join(", ")),
    }
}

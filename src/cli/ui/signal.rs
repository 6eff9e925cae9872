//! Signal handling: the process exits, and says how to resume.

use trephine::{Error, Result};

use crate::cli::ui::output::tell;
use crate::cli::ui::progress_bar::Bar;

/// Exits with code 75 from the signal handler's own thread. A product in flight cannot be waited for, and need not be:
/// a kill at any instant costs at most the modules in flight. If the run has handed its heartbeat to `bar`, the
/// heartbeat records the stop for those who read the folder's status.
pub fn leave_on_signal(bar: &Bar) -> Result<()> {
    let (command, life, counter) = (command_to_resume(), bar.life(), bar.counter());
    ctrlc::set_handler(move || {
        if let Some(life) = life.get() {
            life.stopped();
        }
        match counter() {
            Some((0, all)) => tell(&format!("\nstopped: nothing of {all} was finished. To start again:")),
            Some((done, all)) => {
                tell(&format!("\nstopped: {done} of {all} are finished and safe. To resume:"));
            }
            None => tell("\nstopped before any work. To start again:"),
        }
        tell(&format!("  {command}"));
        std::process::exit(75);
    })
    .map_err(|e| Error::unexpected("cannot listen for signals").because(e))
}

/// This command, but without `--overwrite`, which would discard what is done.
fn command_to_resume() -> String {
    let arguments = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned());
    let arguments: Vec<String> = arguments.filter(|argument| argument != "--overwrite").collect();
    shlex::try_join(arguments.iter().map(String::as_str)).unwrap_or_else(|_| arguments.join(" "))
}

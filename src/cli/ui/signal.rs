//! What a signal does: the process leaves, and says how to go on.

use trephine::{Error, Result};

use crate::cli::ui::output::tell;
use crate::cli::ui::progress_bar::Bar;

/// Leaves with exit code 75 from the signal's own thread. A product in flight cannot be waited for, and need not be:
/// a kill at any instant costs at most the modules in flight. Who reads the folder's state is told, as far as `bar` has
/// been told of any.
pub fn leave_on_signal(bar: &Bar) -> Result<()> {
    let (command, life) = (command_to_go_on(), bar.life());
    ctrlc::set_handler(move || {
        if let Some(life) = life.get() {
            life.stopped();
        }
        tell("\nstopped. What is finished is safe; to go on:");
        tell(&format!("  {command}"));
        std::process::exit(75);
    })
    .map_err(|e| Error::unexpected("cannot listen for signals").because(e))
}

/// This very command, but without `--overwrite`, which would throw away what is done.
fn command_to_go_on() -> String {
    let arguments = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned());
    let arguments: Vec<String> = arguments.filter(|argument| argument != "--overwrite").collect();
    shlex::try_join(arguments.iter().map(String::as_str)).unwrap_or_else(|_| arguments.join(" "))
}

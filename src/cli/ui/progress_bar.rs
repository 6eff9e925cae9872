//! Progress on stderr: a bar on a terminal, plain lines elsewhere, nothing when asked to be quiet.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use trephine::delta::ModuleRecord;
use trephine::printable::one_line;
use trephine::run::Life;
use trephine::run::Progress;

use crate::cli::ui::output::tell;

/// Shows the progress of a run on stderr.
pub struct Bar {
    bar: Option<ProgressBar>,
    quiet: bool,
    state: Mutex<State>,
    life: Arc<OnceLock<Arc<Life>>>,
}

struct State {
    started: Instant,
    modules: usize,
    done: usize,
    last_line: Instant,
}

const EVERY: Duration = Duration::from_secs(5);

impl Bar {
    /// A bar where stderr is a terminal.
    pub fn new(quiet: bool) -> Bar {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            bar.set_style(style("modules"));
            bar
        });
        let now = Instant::now();
        let state = Mutex::new(State { started: now, modules: 0, done: 0, last_line: now });
        Bar { bar, quiet, state, life: Arc::default() }
    }

    /// The run's heartbeat, set once the run has started.
    pub fn life(&self) -> Arc<OnceLock<Arc<Life>>> {
        Arc::clone(&self.life)
    }

    /// Prints a line above the bar.
    pub fn line(&self, text: &str) {
        match &self.bar {
            _ if self.quiet => {}
            Some(bar) => bar.suspend(|| tell(text)),
            None => tell(text),
        }
    }

    /// Removes the bar.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(unit: &str) -> ProgressStyle {
    let template = format!(
        "{{spinner}} {{prefix}} {unit} [{{bar:30}}] {{binary_bytes}}/{{binary_total_bytes}} \
         {{binary_bytes_per_sec}}, {{eta}} left  {{wide_msg}}"
    );
    ProgressStyle::with_template(&template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

impl Progress for Bar {
    fn begin(&self, modules: usize, bytes: u64, done_modules: usize, done_bytes: u64) {
        if let Ok(mut state) = self.state.lock() {
            (state.modules, state.done, state.started) = (modules, done_modules, Instant::now());
        }
        if let Some(bar) = &self.bar {
            bar.set_length(bytes);
            bar.set_position(done_bytes);
            bar.reset_eta();
            bar.set_prefix(format!("{done_modules}/{modules}"));
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        if done_modules > 0 {
            self.line(&format!("resuming: {done_modules} of {modules} modules are done"));
        }
    }

    fn read(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn module(&self, record: &ModuleRecord, took: Duration) {
        self.analyzed(&record.name, took);
    }

    fn analyzed(&self, name: &str, took: Duration) {
        let Ok(mut state) = self.state.lock() else { return };
        state.done += 1;
        match &self.bar {
            Some(bar) => {
                bar.set_prefix(format!("{}/{}", state.done, state.modules));
                bar.set_message(one_line(name).into_owned());
            }
            None if state.last_line.elapsed() >= EVERY || state.done == state.modules => {
                state.last_line = Instant::now();
                let (done, total) = (state.done, state.modules);
                let elapsed = state.started.elapsed().as_secs_f64();
                self.line(&format!(
                    "{done}/{total} modules, {elapsed:.1} s; {} took {:.2} s",
                    one_line(name),
                    took.as_secs_f64()
                ));
            }
            None => {}
        }
    }

    fn alive(&self, life: &Arc<Life>) {
        let _ = self.life.set(Arc::clone(life));
    }

    fn begin_files(&self, files: usize, bytes: u64, done_files: usize, done_bytes: u64) {
        if let Ok(mut state) = self.state.lock() {
            (state.modules, state.done, state.started) = (files, done_files, Instant::now());
        }
        if let Some(bar) = &self.bar {
            bar.set_length(bytes);
            bar.set_position(done_bytes);
            bar.reset_eta();
            bar.set_style(style("files"));
            bar.set_prefix(format!("{done_files}/{files}"));
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        if done_files > 0 {
            self.line(&format!("resuming: {done_files} of {files} files are done"));
        }
    }

    fn written(&self, bytes: u64) {
        self.read(bytes);
    }

    fn file(&self, name: &str, took: Duration) {
        let Ok(mut state) = self.state.lock() else { return };
        state.done += 1;
        let (done, total) = (state.done, state.modules);
        match &self.bar {
            Some(bar) => bar.set_prefix(format!("{done}/{total}")),
            None => self.line(&format!(
                "{done}/{total} files; {} took {:.2} s",
                one_line(name),
                took.as_secs_f64()
            )),
        }
    }

    fn note(&self, text: &str) {
        self.line(&format!("note: {}", one_line(text)));
    }

    fn assembling(&self) {
        if let Some(bar) = &self.bar {
            bar.set_message("assembling");
        }
    }
}

//! Progress on stderr: a bar on a terminal, plain lines elsewhere, nothing when asked to be quiet.

use std::fmt;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use trephine::delta::ModuleRecord;
use trephine::printable::one_line;
use trephine::run::Life;
use trephine::run::Progress;

use crate::cli::ui::output::tell;
use crate::cli::ui::work_clock::{WorkClock, in_words};

/// Shows the progress of a run on stderr.
pub struct Bar {
    bar: Option<ProgressBar>,
    quiet: bool,
    state: Arc<Mutex<State>>,
    life: Arc<OnceLock<Arc<Life>>>,
}

struct State {
    started: Instant,
    clock: Option<WorkClock>,
    bytes: u64,
    done_bytes: u64,
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
        let state =
            State { started: now, clock: None, bytes: 0, done_bytes: 0, modules: 0, done: 0, last_line: now };
        Bar { bar, quiet, state: Arc::new(Mutex::new(state)), life: Arc::default() }
    }

    /// The run's heartbeat, set once the run has started.
    pub fn life(&self) -> Arc<OnceLock<Arc<Life>>> {
        Arc::clone(&self.life)
    }

    /// What to say of finished work when the run is stopped: `3 of 7`, or nothing before anything was counted.
    pub fn counter(&self) -> impl Fn() -> Option<(usize, usize)> + Send + 'static {
        let state = Arc::clone(&self.state);
        // The handler must not wait for a thread that it is about to end.
        move || {
            state.try_lock().ok().filter(|state| state.modules > 0).map(|state| (state.done, state.modules))
        }
    }

    /// Prints a line above the bar.
    pub fn line(&self, text: &str) {
        match &self.bar {
            _ if self.quiet => {}
            Some(bar) => bar.suspend(|| tell(text)),
            None => tell(text),
        }
    }

    /// Counts a finished module: the count, and if a line is due, the seconds so far and what is said of the rest.
    fn finished_one(&self) -> Option<(String, Option<(f64, String)>)> {
        let mut state = self.state.lock().ok()?;
        state.done += 1;
        let count = format!("{}/{}", state.done, state.modules);
        let due = self.bar.is_none() && (state.last_line.elapsed() >= EVERY || state.done == state.modules);
        if due {
            state.last_line = Instant::now();
        }
        Some((count, due.then(|| (state.started.elapsed().as_secs_f64(), state.left()))))
    }

    fn with_clock(&self, change: impl FnOnce(&mut WorkClock, f64)) {
        let Ok(mut state) = self.state.lock() else { return };
        let elapsed = state.started.elapsed().as_secs_f64();
        if let Some(clock) = &mut state.clock {
            change(clock, elapsed);
        }
    }

    /// Removes the bar.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl State {
    /// `, about 8 s left`; nothing before that can be said, and at the end.
    fn left(&self) -> String {
        let elapsed = self.started.elapsed().as_secs_f64();
        let seconds = match &self.clock {
            Some(clock) => clock.seconds_left(elapsed),
            None if self.done_bytes == 0 => return String::new(),
            None => elapsed * self.bytes.saturating_sub(self.done_bytes) as f64 / self.done_bytes as f64,
        };
        if self.done == self.modules { String::new() } else { format!(", about {} left", in_words(seconds)) }
    }
}

/// A bar that is drawn from the clock of `state`, at every tick.
fn style_of_work(state: &Arc<Mutex<State>>) -> ProgressStyle {
    const WIDTH: usize = 30;
    let (bar, eta) = (Arc::clone(state), Arc::clone(state));
    let style = ProgressStyle::with_template("{spinner} {prefix} modules [{work}] {left}  {wide_msg}");
    style
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("work", move |_: &ProgressState, out: &mut dyn fmt::Write| {
            let Ok(state) = bar.lock() else { return };
            let elapsed = state.started.elapsed().as_secs_f64();
            let share = state.clock.as_ref().map_or(0.0, |clock| clock.share(elapsed));
            let full = (share * WIDTH as f64) as usize;
            let _ = write!(out, "{:=<full$}>{:width$}", "", "", width = WIDTH.saturating_sub(full + 1));
        })
        .with_key("left", move |_: &ProgressState, out: &mut dyn fmt::Write| {
            let Ok(state) = eta.lock() else { return };
            let seconds = state
                .clock
                .as_ref()
                .map_or(0.0, |clock| clock.seconds_left(state.started.elapsed().as_secs_f64()));
            let _ = write!(out, "about {} left", in_words(seconds));
        })
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
            (state.bytes, state.done_bytes) = (bytes.saturating_sub(done_bytes), 0);
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

    fn expect(&self, seconds: f64) {
        if let Ok(mut state) = self.state.lock() {
            (state.clock, state.started) = (Some(WorkClock::new(seconds)), Instant::now());
        }
        if let Some(bar) = &self.bar {
            bar.set_style(style_of_work(&self.state));
        }
    }

    fn step(&self, seconds: f64) {
        self.with_clock(|clock, _| clock.step(seconds));
    }

    fn enter(&self, seconds: f64) {
        self.with_clock(|clock, _| clock.enter(seconds));
    }

    fn leave(&self, seconds: f64) {
        self.with_clock(|clock, elapsed| clock.leave(seconds, elapsed));
    }

    fn read(&self, bytes: u64) {
        if let Ok(mut state) = self.state.lock() {
            state.done_bytes += bytes;
        }
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn module(&self, record: &ModuleRecord, took: Duration) {
        self.analyzed(&record.name, took);
    }

    fn analyzed(&self, name: &str, took: Duration) {
        let Some((count, line)) = self.finished_one() else { return };
        match &self.bar {
            // The lock is not held here: the bar takes it when it is drawn.
            Some(bar) => {
                bar.set_prefix(count);
                bar.set_message(one_line(name).into_owned());
            }
            None => {
                if let Some((elapsed, left)) = line {
                    let (name, took) = (one_line(name), took.as_secs_f64());
                    self.line(&format!("{count} modules, {elapsed:.1} s{left}; {name} took {took:.2} s"));
                }
            }
        }
    }

    fn alive(&self, life: &Arc<Life>) {
        let _ = self.life.set(Arc::clone(life));
    }

    fn begin_files(&self, files: usize, bytes: u64, done_files: usize, done_bytes: u64) {
        if let Ok(mut state) = self.state.lock() {
            (state.modules, state.done, state.started) = (files, done_files, Instant::now());
            (state.bytes, state.done_bytes) = (bytes.saturating_sub(done_bytes), 0);
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
        let (count, left) = {
            let Ok(mut state) = self.state.lock() else { return };
            state.done += 1;
            (format!("{}/{}", state.done, state.modules), state.left())
        };
        match &self.bar {
            Some(bar) => bar.set_prefix(count),
            None => {
                let (name, took) = (one_line(name), took.as_secs_f64());
                self.line(&format!("{count} files{left}; {name} took {took:.2} s"));
            }
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

//! Limits that the system sets a process (`ulimit`): reaching one is an error with a message and exit code 1, not a
//! signal, a panic or an abort. And one that tests set: the width of vectors.

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use trephine::factorize::{SimdLevel, limit_simd};
use trephine::{Error, Result};

use crate::cli::ui::output::tell;

/// The system's allocator, which ends the program with a message where there is no memory left.
pub struct Telling;

// SAFETY: every call goes to the system's allocator as it is; what is added returns no pointer.
unsafe impl GlobalAlloc for Telling {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let block = unsafe { System.alloc(layout) };
        if block.is_null() { out_of_memory() } else { block }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let block = unsafe { System.alloc_zeroed(layout) };
        if block.is_null() { out_of_memory() } else { block }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        let block = unsafe { System.realloc(block, layout, size) };
        if block.is_null() { out_of_memory() } else { block }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Says so without allocating, and ends the process.
fn out_of_memory() -> ! {
    const TEXT: &[u8] = b"error: the system gives this process no more memory\n\
        hint: raise its limit (ulimit -v, the job's or container's), or give less to --memory and --threads\n";
    // SAFETY: the text is valid for its length; both calls are plain system calls.
    unsafe {
        libc::write(libc::STDERR_FILENO, TEXT.as_ptr().cast(), TEXT.len());
        libc::_exit(1)
    }
}

/// Prepares the process: a file that may not grow is an error of the write, as many files may be open as are
/// allowed at all, and a thread that cannot be had is told of.
pub fn prepare() {
    // SAFETY: no handler is installed; the signal is only ignored, so that the write fails instead.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // Where the system allows less than it says, the limit stays.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let text = info.payload_as_str().unwrap_or_default();
        if text.starts_with("failed to spawn thread") || text.contains("ThreadPoolBuildError") {
            tell(&format!("error: the system gives this process no more threads: {text}"));
            tell(
                "hint: give fewer --threads, or raise the limit (ulimit -u, ulimit -v, the job's or container's)",
            );
            std::process::exit(1);
        }
        // The signal stack of a new thread, which the standard library takes before the thread's own code runs.
        if text.starts_with("failed to allocate") || text.starts_with("failed to set up alternative stack") {
            out_of_memory();
        }
        usual(info);
    }));
}

/// Keeps to narrower vector instructions than the processor has, if the environment asks for that: for tests of what
/// does not depend on them.
///
/// # Errors
/// A level that there is not.
pub fn limit_vectors() -> Result<()> {
    let Ok(name) = std::env::var("TREPHINE_SIMD") else { return Ok(()) };
    let level = SimdLevel::named(&name).ok_or_else(|| {
        Error::decide(format!("TREPHINE_SIMD is '{}'", name.escape_debug()))
            .hint("it is portable, avx2 or widest, or not set")
    })?;
    limit_simd(level);
    Ok(())
}

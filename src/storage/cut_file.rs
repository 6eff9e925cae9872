//! What is said where a mapped file is cut short by another process: touching a page behind its new end is a signal
//! (SIGBUS), which by itself ends the process with two words and no name.
//!
//! Every mapped range is noted with the file's path in a table that a signal handler may read. A program that calls
//! [`tell_of_cut_files`] ends with exit code 1 and the file's name then; a library that is used by another program
//! leaves its signals alone.

use std::ffi::c_void;
use std::path::Path;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use crate::printable::one_line;

/// The most ranges that are noted at once; further ones go without.
const RANGES: usize = 1024;

/// A free entry.
const FREE: usize = 0;

/// An entry that is being filled in: no page begins here.
const TAKEN: usize = 1;

/// A mapped range, and the text about its file.
struct Entry {
    start: AtomicUsize,
    end: AtomicUsize,
    text: AtomicPtr<u8>,
    length: AtomicUsize,
}

static TABLE: [Entry; RANGES] = [const {
    Entry {
        start: AtomicUsize::new(FREE),
        end: AtomicUsize::new(0),
        text: AtomicPtr::new(std::ptr::null_mut()),
        length: AtomicUsize::new(0),
    }
}; RANGES];

/// Where the last free entry was found.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// The action for SIGBUS before ours.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// What is said of a file whose pages are gone.
#[derive(Clone, Debug)]
pub(crate) struct Notice(Arc<str>);

impl Notice {
    pub(crate) fn new(path: &Path) -> Notice {
        let path = path.to_string_lossy();
        let text = format!(
            "error: the file was cut short while it was read, or its disk fails: {}\nhint: something writes to the \
             checkpoint: wait until it is whole, then run the command again\n",
            one_line(&path)
        );
        Notice(text.into())
    }
}

/// A range that is noted as long as this lives.
#[derive(Debug)]
pub(crate) struct Noted {
    at: Option<usize>,
    /// The handler reads its text.
    _notice: Notice,
}

/// Notes the mapped `bytes` of a file.
pub(crate) fn note(bytes: &[u8], notice: &Notice) -> Noted {
    let first = NEXT.load(Ordering::Relaxed);
    let take = |at: &usize| {
        TABLE[*at].start.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok()
    };
    let at = (0..RANGES).map(|step| (first + step) % RANGES).find(take);
    if let Some(at) = at {
        NEXT.store(at + 1, Ordering::Relaxed);
        let (entry, range) = (&TABLE[at], bytes.as_ptr_range());
        entry.text.store(notice.0.as_ptr().cast_mut(), Ordering::Relaxed);
        entry.length.store(notice.0.len(), Ordering::Relaxed);
        entry.end.store(range.end as usize, Ordering::Relaxed);
        entry.start.store(range.start as usize, Ordering::Release);
    }
    Noted { at, _notice: notice.clone() }
}

impl Drop for Noted {
    fn drop(&mut self) {
        if let Some(at) = self.at {
            TABLE[at].end.store(0, Ordering::Relaxed);
            TABLE[at].start.store(FREE, Ordering::Release);
        }
    }
}

/// Makes this process end with exit code 1 and the name of the file where a mapped file has been cut short. Any
/// other SIGBUS is left to whoever handled it before. For programs, not for libraries: a process has one handler
/// for a signal.
pub fn tell_of_cut_files() {
    // SAFETY: both structs are plain data, for which all zeros are a value; `handle` has the signature that
    // SA_SIGINFO asks for, and calls nothing that a signal handler may not.
    unsafe {
        let mut before: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before) != 0 {
            return;
        }
        let _ = BEFORE.set(before);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
}

extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the system gives a valid `info`; loads of atomics, `write`, `_exit` and `sigaction` are allowed here.
    // The text of the entry that holds the address is alive, for the thread that was interrupted is reading its range.
    unsafe {
        let address = (*info).si_addr() as usize;
        for entry in &TABLE {
            let start = entry.start.load(Ordering::Acquire);
            if start > TAKEN && (start..entry.end.load(Ordering::Relaxed)).contains(&address) {
                let (text, length) =
                    (entry.text.load(Ordering::Relaxed), entry.length.load(Ordering::Relaxed));
                libc::write(libc::STDERR_FILENO, text.cast(), length);
                libc::_exit(1);
            }
        }
        // The instruction runs again, under the action from before.
        match BEFORE.get() {
            Some(before) => libc::sigaction(libc::SIGBUS, before, std::ptr::null_mut()),
            None => libc::_exit(1),
        };
    }
}

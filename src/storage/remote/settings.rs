//! What a program sets once for all addresses that it reads.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

/// Settings of the link; none of them changes a byte of any result.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// A folder that keeps what was fetched, and at most how many bytes of it.
    pub cache: Option<(PathBuf, u64)>,
    /// A folder for what is read more than once and does not fit in memory.
    pub scratch: Option<PathBuf>,
    /// Whether `http://` is allowed beyond this machine.
    pub allow_http: bool,
    /// Requests in flight at once.
    pub connections: usize,
    /// How long a connection may be silent.
    pub stall: Duration,
    /// How often a request that brings nothing is repeated.
    pub retries: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            cache: None,
            scratch: None,
            allow_http: false,
            connections: 16,
            stall: Duration::from_secs(30),
            retries: 8,
        }
    }
}

static SETTINGS: OnceLock<Settings> = OnceLock::new();

/// Sets them for this process; the first call counts, and only before the first address is opened.
pub fn configure(settings: Settings) {
    let _ = SETTINGS.set(settings);
}

/// The settings of this process.
pub(crate) fn settings() -> &'static Settings {
    SETTINGS.get_or_init(Settings::default)
}

//! The options of every command that reads addresses.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use trephine::Result;

/// Options of the link to a hub, a web server or a bucket.
#[derive(Debug, Args)]
#[command(next_help_heading = "Addresses (hf://, https://, s3://)")]
pub struct LinkArgs {
    /// Keep what is fetched in this folder, to read it from there the next time
    #[arg(long, global = true, value_name = "DIR", hide_short_help = true)]
    cache: Option<PathBuf>,
    /// The most that --cache keeps
    #[arg(long, global = true, value_name = "SIZE", value_parser = crate::cli::ui::byte_size::parse, default_value = "64GiB",
          hide_short_help = true)]
    cache_size: u64,
    /// Where to keep what is fetched, is read more than once and does not fit in --memory
    #[arg(long, global = true, value_name = "DIR", hide_short_help = true)]
    scratch: Option<PathBuf>,
    /// The most requests at once
    #[arg(long, global = true, default_value_t = 16, hide_short_help = true,
          value_parser = clap::value_parser!(u16).range(1..=256))]
    connections: u16,
    /// How long a server may be silent, in seconds
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 30, hide_short_help = true,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    stall_timeout: u64,
    /// How often a request that brings nothing is repeated
    #[arg(long, global = true, default_value_t = 8, hide_short_help = true)]
    retries: u32,
    /// Read http:// addresses beyond this machine: anybody on the way can read and change what is fetched
    #[arg(long, global = true, hide_short_help = true)]
    allow_http: bool,
}

impl LinkArgs {
    /// Sets them for this process.
    pub fn configure(self) {
        let mut settings = trephine::storage::remote::Settings::default();
        settings.cache = self.cache.map(|folder| (folder, self.cache_size));
        settings.scratch = self.scratch;
        settings.connections = usize::from(self.connections);
        settings.stall = Duration::from_secs(self.stall_timeout);
        settings.retries = self.retries;
        settings.allow_http = self.allow_http;
        trephine::storage::remote::configure(settings);
    }
}

/// What crossed the link, in a line; `None` if nothing did.
pub fn traffic() -> Option<String> {
    let traffic = trephine::storage::remote::traffic();
    let bytes = crate::cli::ui::byte_size::show(traffic.bytes);
    (traffic.requests > 0)
        .then(|| format!("link: {} requests, {bytes} ({} bytes)", traffic.requests, traffic.bytes))
}

/// Says it on stderr after a command that has ended well.
pub fn tell_traffic<T>(result: &Result<T>) {
    if let (Ok(_), Some(line)) = (result, traffic()) {
        crate::cli::ui::output::tell(&line);
    }
}

//! One request: with redirects that are followed by hand, under the rules of [`guard`], and secrets that are sent to
//! the host they belong to and printed nowhere.

use std::fmt;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use ureq::http::{HeaderMap, HeaderName};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Body, Proxy};
use url::Url;

use crate::storage::regular_file;
use crate::storage::remote::http::guard::{self, PublicOnly};
use crate::storage::remote::http::retry::Failure;
use crate::storage::remote::settings::settings;
use crate::{Error, Result};

/// The most redirects that one request follows.
const MOST_REDIRECTS: usize = 8;

/// A text that is never printed.
#[derive(Clone)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What to ask for. The address may hold a signature: it is not for messages.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) url: Url,
    /// A header with a credential for this host.
    pub(crate) authorization: Option<Secret>,
    /// Whether a public server has named this address.
    pub(crate) from_public: bool,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("host", &self.url.host_str()).finish_non_exhaustive()
    }
}

impl Target {
    /// An address without credentials.
    pub(crate) fn plain(url: Url) -> Target {
        Target { url, authorization: None, from_public: false }
    }
}

/// An answer whose body has not been read.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    /// Headers of the redirects before it, the first one first.
    pub(crate) hops: Vec<HeaderMap>,
    /// Where it came from, if not from where it was asked.
    pub(crate) redirected: Option<Target>,
}

impl Answer {
    /// A header's text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

/// A header's text.
pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// What crossed the link so far in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Requests sent, redirects and repetitions among them.
    pub requests: u64,
    /// Bytes of answers read.
    pub bytes: u64,
}

static REQUESTS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

/// What crossed the link so far in this process.
pub fn traffic() -> Traffic {
    Traffic { requests: REQUESTS.load(Ordering::Relaxed), bytes: BYTES.load(Ordering::Relaxed) }
}

/// Counts bytes that were read.
pub(crate) fn count(bytes: usize) {
    BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// Asks for a range of an object, or for all of it, and returns the first answer that is no redirect.
pub(crate) fn get(
    target: &Target,
    range: Option<&Range<u64>>,
    condition: Option<(&str, &str)>,
) -> std::result::Result<Answer, Failure> {
    guard::check_scheme(&target.url)?;
    let mut at = target.clone();
    let mut hops = Vec::new();
    for hop in 0..=MOST_REDIRECTS {
        let response = send(&at, range, condition)?;
        let status = response.status().as_u16();
        let (parts, body) = response.into_parts();
        if !matches!(status, 301 | 302 | 303 | 307 | 308) {
            let redirected = (hop > 0).then_some(at);
            return Ok(Answer { status, headers: parts.headers, body, hops, redirected });
        }
        let Some(next) = header(&parts.headers, "location").and_then(|text| at.url.join(text).ok()) else {
            return Err(Error::input(format!("the server answers {status} without an address")).into());
        };
        at = follow(&at, next)?;
        hops.push(parts.headers);
    }
    Err(Error::input("the server sends the reader round in circles").into())
}

/// The next target of a redirect: credentials stay with the host that they are for.
fn follow(at: &Target, next: Url) -> Result<Target> {
    if !next.username().is_empty() || next.password().is_some() {
        return Err(Error::input("the server sends the reader to an address with a password"));
    }
    let same = next.origin() == at.url.origin();
    let from_public = at.from_public || !same && guard::is_public_host(&at.url);
    guard::check_redirect(&next, from_public)?;
    let authorization = at.authorization.clone().filter(|_| same);
    Ok(Target { url: next, authorization, from_public })
}

fn send(
    target: &Target,
    range: Option<&Range<u64>>,
    condition: Option<(&str, &str)>,
) -> std::result::Result<ureq::http::Response<Body>, Failure> {
    let mut request = agent(target)?.get(target.url.as_str()).header("accept-encoding", "identity");
    if let Some(range) = range {
        request = request.header("range", format!("bytes={}-{}", range.start, range.end - 1));
    }
    if let Some((name, value)) = condition
        && let Ok(name) = HeaderName::from_bytes(name.as_bytes())
    {
        request = request.header(name, value);
    }
    if let Some(Secret(text)) = &target.authorization {
        request = request.header("authorization", text);
    }
    REQUESTS.fetch_add(1, Ordering::Relaxed);
    request.call().map_err(Failure::of_transport)
}

/// The connections of this process: by whether a proxy may be asked, and whether any address will do.
struct Agents {
    here: Agent,
    anywhere: Agent,
    public: Agent,
}

fn agent(target: &Target) -> Result<&'static Agent> {
    static AGENTS: OnceLock<Agents> = OnceLock::new();
    let agents = match AGENTS.get() {
        Some(agents) => agents,
        None => {
            let made = Agents::new()?;
            AGENTS.get_or_init(|| made)
        }
    };
    Ok(match (guard::is_loopback(&target.url), target.from_public) {
        (_, true) => &agents.public,
        (true, false) => &agents.here,
        (false, false) => &agents.anywhere,
    })
}

impl Agents {
    fn new() -> Result<Agents> {
        let settings = settings();
        let mut tls = TlsConfig::builder();
        if let Some(roots) = own_roots()? {
            tls = tls.root_certs(roots);
        }
        let tls = tls.build();
        let configured = |proxy: Option<Proxy>| {
            Agent::config_builder()
                .tls_config(tls.clone())
                .proxy(proxy)
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .user_agent(concat!("trephine/", env!("CARGO_PKG_VERSION")))
                .accept_encoding("identity")
                .max_idle_connections(2 * settings.connections)
                .max_idle_connections_per_host(settings.connections)
                .input_buffer_size(64 << 10)
                .output_buffer_size(16 << 10)
                .timeout_resolve(Some(settings.stall))
                .timeout_connect(Some(settings.stall))
                .timeout_recv_response(Some(settings.stall))
                .timeout_per_read(Some(settings.stall))
                .build()
        };
        let made =
            |config| Agent::with_parts(config, DefaultConnector::default(), DefaultResolver::default());
        let proxied = configured(Proxy::try_from_env());
        let public = Agent::with_parts(proxied.clone(), DefaultConnector::default(), PublicOnly::default());
        // No proxy reaches this machine's own servers.
        Ok(Agents { here: made(configured(None)), anywhere: made(proxied), public })
    }
}

/// The certificates that `SSL_CERT_FILE` names, as for OpenSSL and curl; `None` for the built-in ones of Mozilla.
fn own_roots() -> Result<Option<RootCerts>> {
    let Some(path) = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let path = std::path::Path::new(&path);
    let bytes = regular_file::read(path).map_err(|e| regular_file::cannot_read(path, e))?;
    let certificates: Vec<_> = parse_pem(&bytes)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(Error::decide("SSL_CERT_FILE holds no certificate").path(path));
    }
    Ok(Some(RootCerts::from(certificates)))
}

//! What is tried again, after how long, and how often.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::time::{Duration, SystemTime};

use crate::storage::remote::settings::settings;
use crate::{Error, Result};

/// The first pause; each further one is twice as long.
const FIRST: Duration = Duration::from_millis(250);

/// The longest pause of our own.
const LONGEST: Duration = Duration::from_secs(20);

/// The longest pause that a server may ask for.
const PATIENCE: Duration = Duration::from_secs(300);

/// Bytes that count as progress.
const MANY: u64 = 64 << 10;

/// Why a request brought nothing.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It may succeed later, after the pause that the server asks for.
    Passing(Box<Error>, Option<Duration>),
    /// A signed link is not valid any more: a new one may be.
    Expired(Error),
    /// It would fail again.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Final(error)
    }
}

impl Failure {
    /// A failure that may not last.
    pub(crate) fn passing(error: Error, pause: Option<Duration>) -> Failure {
        Failure::Passing(Box::new(error), pause)
    }

    /// The failure of a connection.
    pub(crate) fn of_transport(error: ureq::Error) -> Failure {
        let passing = |what: &str| Failure::passing(Error::unexpected(what), None);
        match error {
            ureq::Error::Timeout(_) => passing("the server is silent"),
            ureq::Error::HostNotFound => passing("the host is not found"),
            ureq::Error::Io(e) => Failure::of_io(e),
            ureq::Error::ConnectionFailed | ureq::Error::BodyStalled => passing("the connection failed"),
            ureq::Error::Protocol(e) => {
                Failure::passing(Error::input("the server's answer is not HTTP").because(e.to_string()), None)
            }
            ureq::Error::LargeResponseHeader(..) => Error::input("the server's headers do not end").into(),
            ureq::Error::Other(error) => match error.downcast::<Error>() {
                Ok(own) => Failure::Final(*own),
                Err(other) => {
                    Failure::passing(Error::unexpected("the connection failed").because(other), None)
                }
            },
            // The other errors' texts repeat neither addresses nor headers.
            ureq::Error::Rustls(e) => Error::unexpected("no secure connection").because(e.to_string()).into(),
            ureq::Error::Tls(e) => Error::unexpected("no secure connection").because(e).into(),
            _ => Error::unexpected("the request cannot be sent").into(),
        }
    }

    /// The failure of reading an answer.
    pub(crate) fn of_io(error: io::Error) -> Failure {
        if let Some(inner) = error.get_ref() {
            let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(inner);
            while let Some(at) = cause {
                if let Some(ureq::Error::Timeout(_)) = at.downcast_ref::<ureq::Error>() {
                    return Failure::passing(Error::unexpected("the server is silent"), None);
                }
                // What a certificate lacks, no repetition brings.
                if at.to_string().contains("invalid peer certificate") {
                    let hint = "SSL_CERT_FILE names a file of the certificates to trust";
                    return Error::unexpected("no secure connection").because(error).hint(hint).into();
                }
                cause = at.source();
            }
        }
        let silent = matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock);
        let what = if silent { "the server is silent" } else { "the connection broke" };
        Failure::passing(Error::unexpected(what).because(error.kind().to_string()), None)
    }

    /// The error, whatever kind of failure it is.
    pub(crate) fn error(self) -> Error {
        match self {
            Failure::Passing(error, _) => *error,
            Failure::Expired(error) | Failure::Final(error) => error,
        }
    }
}

/// The patience with one object: how often nothing came since something did.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    tries: u32,
    renewed: u32,
    gained: u64,
}

impl Patience {
    /// Some bytes came. Patience is new once they are many: a server that sends ten and breaks off, again and again, is
    /// not waited for.
    pub(crate) fn progress(&mut self, bytes: u64) {
        self.gained += bytes;
        if self.gained >= MANY {
            *self = Patience::default();
        }
    }

    /// Waits as long as `failure` asks for.
    ///
    /// # Errors
    /// It is final, or was met too often.
    pub(crate) fn wait(&mut self, failure: Failure) -> Result<()> {
        match failure {
            Failure::Final(error) => Err(error),
            Failure::Expired(error) => {
                self.renewed += 1;
                if self.renewed > 8 { Err(error) } else { Ok(()) }
            }
            Failure::Passing(error, asked) => {
                self.tries += 1;
                if self.tries > settings().retries {
                    return Err(error
                        .hint("the same command resumes; --retries and --stall-timeout set the patience"));
                }
                if let Some(asked) = asked.filter(|asked| *asked > PATIENCE) {
                    let what = format!("the server asks to come back in {} s", asked.as_secs());
                    return Err(Error::unexpected(what).hint("run the same command again then: it resumes"));
                }
                std::thread::sleep(pause(self.tries, asked));
                Ok(())
            }
        }
    }
}

/// The pause before the next try: what the server asks for and a little more, or a growing one of which half is chance,
/// so that many readers do not come back at once.
fn pause(tries: u32, asked: Option<Duration>) -> Duration {
    let full = FIRST.saturating_mul(1 << tries.saturating_sub(1).min(10)).min(LONGEST);
    let chance = f64::from(random() >> 8) / f64::from(1u32 << 24);
    match asked {
        Some(asked) => asked + FIRST.mul_f64(chance),
        None => full.mul_f64(0.5 + 0.5 * chance),
    }
}

/// Chance that differs between processes and calls; no result depends on it.
fn random() -> u32 {
    (RandomState::new().hash_one(0) >> 32) as u32
}

/// `Retry-After`: seconds, or a date; one that has passed asks for no pause.
pub(crate) fn retry_after(text: Option<&str>) -> Option<Duration> {
    let text = text?.trim();
    let until = |date: SystemTime| date.duration_since(SystemTime::now()).unwrap_or_default();
    let seconds = text.parse().ok().map(Duration::from_secs);
    seconds.or_else(|| httpdate::parse_http_date(text).ok().map(until))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_obey_the_server() {
        for (tries, most) in [(1, 250), (2, 500), (4, 2000), (60, 20_000)] {
            let pause = pause(tries, None).as_millis();
            assert!((most / 2..=most).contains(&pause), "{tries}: {pause} ms");
        }
        let asked = pause(1, retry_after(Some("7")));
        assert!(asked >= Duration::from_secs(7) && asked < Duration::from_secs(8));
        assert_eq!(retry_after(Some("Fri, 31 Dec 1999 23:59:59 GMT")), Some(Duration::ZERO));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        let asked = retry_after(Some(&soon)).unwrap();
        assert!(asked > Duration::from_secs(50) && asked <= Duration::from_secs(60), "{asked:?}");
        assert_eq!(retry_after(Some("soon")), None);
        let mut patience = Patience::default();
        let error = patience.wait(Failure::passing(Error::unexpected("x"), Some(Duration::from_secs(9999))));
        assert!(error.unwrap_err().to_string().contains("9999 s"));
        assert!(patience.wait(Failure::Final(Error::input("no"))).is_err());
    }
}

//! Which hosts may be asked. The user chooses an address; a server that is asked may send the reader on, but not to
//! another scheme, and not from the public network into a private one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs};

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;
use url::{Host, Url};

use crate::storage::remote::settings::settings;
use crate::{Error, Result};

/// Whether an address belongs to everybody's network.
pub(crate) fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => match embedded(ip) {
            Some(ip) => is_public_v4(ip),
            None => {
                let first = ip.segments()[0];
                let local = first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfe80 || first & 0xffc0 == 0xfec0;
                !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || local)
            }
        },
    }
}

/// The address of version 4 inside one of version 6: mapped, compatible, NAT64 or 6to4.
fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = ip.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match s {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] if high != 0 => Some(v4(high, low)),
        [0x64, 0xff9b, .., high, low] => Some(v4(high, low)),
        [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let benchmark = a == 198 && (b == 18 || b == 19);
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_broadcast()
        || ip.is_documentation()
        || ip.is_multicast()
        || a == 0
        || a >= 240
        || shared
        || benchmark)
}

/// Whether a host is this machine, by name or number.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// Checks the scheme of an address that is about to be asked.
///
/// # Errors
/// Neither `https`, nor `http` to this machine or where that is allowed.
pub(crate) fn check_scheme(url: &Url) -> Result<()> {
    match url.scheme() {
        "https" => Ok(()),
        "http" if is_loopback(url) || settings().allow_http => Ok(()),
        "http" => Err(Error::decide("http:// is not encrypted, and is read from this machine only")
            .hint("give https://, or --allow-http in a network that you trust")),
        other => {
            Err(Error::input(format!("the server sends the reader to an address of the scheme '{other}'")))
        }
    }
}

/// Whether every address of a host is public. A host that cannot be resolved is taken for public: its connection fails.
pub(crate) fn is_public_host(url: &Url) -> bool {
    let port = url.port_or_known_default().unwrap_or(443);
    match url.host() {
        Some(Host::Ipv4(ip)) => is_public(ip.into()),
        Some(Host::Ipv6(ip)) => is_public(ip.into()),
        Some(Host::Domain(name)) => {
            !is_loopback(url)
                && (name, port).to_socket_addrs().map_or(true, |mut all| all.all(|at| is_public(at.ip())))
        }
        None => true,
    }
}

/// Checks that a public server sends the reader to a public one.
///
/// # Errors
/// It names a private address, or another scheme.
pub(crate) fn check_redirect(to: &Url, from_public: bool) -> Result<()> {
    check_scheme(to)?;
    let private = match to.host() {
        Some(Host::Ipv4(ip)) => !is_public(ip.into()),
        Some(Host::Ipv6(ip)) => !is_public(ip.into()),
        _ => is_loopback(to),
    };
    if from_public && private {
        return Err(private_address());
    }
    Ok(())
}

fn private_address() -> Error {
    Error::input("a public server sends the reader to a private address, which is refused")
}

/// A resolver that gives public addresses only: what a name means is decided when the connection is made.
#[derive(Debug, Default)]
pub(crate) struct PublicOnly(DefaultResolver);

impl Resolver for PublicOnly {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> std::result::Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.0.resolve(uri, config, timeout)?;
        if config.proxy().is_none() && found.iter().any(|at| !is_public(at.ip())) {
            return Err(ureq::Error::Other(Box::new(private_address())));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_in_every_disguise() {
        for text in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a00:1",
            "2002:a00:1::1",
            "::7f00:1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        for text in ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "::ffff:1.1.1.1", "172.32.0.1", "100.128.0.1"] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn redirects_go_to_the_same_kind_of_network() {
        let to = |text: &str, public| check_redirect(&Url::parse(text).unwrap(), public);
        assert!(to("https://cdn.example.org/x", true).is_ok());
        assert!(to("https://10.0.0.1/x", false).is_ok());
        for bad in
            ["https://10.0.0.1/x", "https://[::1]/x", "http://169.254.169.254/latest", "http://localhost/x"]
        {
            assert!(to(bad, true).is_err(), "{bad}");
        }
        for bad in ["file:///etc/passwd", "ftp://h/x", "http://cdn.example.org/x"] {
            assert!(to(bad, false).is_err(), "{bad}");
        }
        assert!(is_public_host(&Url::parse("https://1.1.1.1/").unwrap()));
        assert!(!is_public_host(&Url::parse("http://localhost:80/").unwrap()));
    }
}

//! What the user wrote: `hf://OWNER/NAME@REVISION/path`, `https://host/path/`, `s3://bucket/prefix`.

use url::Url;

use crate::{Error, Result};

/// A parsed address. Paths end with `/` where they are not empty; `file` is the one file that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A model at a Hugging Face hub.
    Hub { repository: String, revision: Option<String>, path: String },
    /// A folder at a web server.
    Web(Url),
    /// A prefix in a bucket.
    Bucket { bucket: String, path: String },
}

/// An address, and the file in it if it is one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) place: Place,
    pub(crate) file: Option<String>,
}

/// Parses an address.
///
/// # Errors
/// An unknown scheme, a password or a query in the address, a name that is none.
pub(crate) fn parse(spec: &str) -> Result<Address> {
    let (scheme, rest) = spec.split_once("://").unwrap_or(("", spec));
    match scheme.to_ascii_lowercase().as_str() {
        "hf" => hub(rest),
        "s3" => bucket(rest),
        "http" | "https" => web(spec),
        other => Err(Error::decide(format!("addresses of the scheme '{other}' are not read"))
            .hint("give hf://OWNER/NAME, https://HOST/PATH/ or s3://BUCKET/PREFIX")),
    }
}

/// Splits `path` into a folder that is empty or ends with `/`, and the file, if it ends like one of weights.
fn split(path: &str) -> (String, Option<String>) {
    let path = path.trim_end_matches('/');
    let (folder, last) = path.rsplit_once('/').map_or(("", path), |(folder, last)| (folder, last));
    let slashed = |folder: &str| if folder.is_empty() { String::new() } else { format!("{folder}/") };
    match is_weights(last) {
        true => (slashed(folder), Some(last.to_owned())),
        false => (slashed(path), None),
    }
}

fn is_weights(name: &str) -> bool {
    [".safetensors", ".gguf", ".bin", ".pt", ".pth"].iter().any(|end| name.ends_with(end))
}

/// Whether a part of a path stays below what is before it.
fn is_plain(part: &str) -> bool {
    !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0'])
}

fn checked(path: String, spec: &str) -> Result<String> {
    if path.trim_end_matches('/').split('/').all(|part| path.is_empty() || is_plain(part)) {
        return Ok(path);
    }
    Err(Error::decide(format!("'{spec}' is not the path of a folder or file")))
}

fn hub(rest: &str) -> Result<Address> {
    let usage = || {
        Error::decide(format!("'hf://{rest}' names no model"))
            .hint("give hf://OWNER/NAME, hf://OWNER/NAME@REVISION or hf://OWNER/NAME@REVISION/FILE.gguf")
    };
    let mut parts = rest.split('/');
    let (owner, rest_of_name) = (parts.next().unwrap_or_default(), parts.next().ok_or_else(usage)?);
    if ["datasets", "spaces"].contains(&owner) {
        return Err(usage());
    }
    let (name, revision) = match rest_of_name.split_once('@') {
        Some((name, revision)) => (name, Some(revision)),
        None => (rest_of_name, None),
    };
    let word = |word: &str| {
        is_plain(word)
            && !word.starts_with(['.', '-'])
            && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    if !word(owner) || !word(name) || revision == Some("") {
        return Err(usage());
    }
    let mut path: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
    let mut revision = revision.map(|revision| revision.replace("%2F", "/"));
    // The hub's own references have slashes: refs/pr/7, refs/convert/parquet.
    if revision.as_deref() == Some("refs") && path.len() >= 2 {
        revision = Some(format!("refs/{}/{}", path[0], path[1]));
        path.drain(..2);
    }
    let (path, file) = split(&path.join("/"));
    let repository = format!("{owner}/{name}");
    Ok(Address { place: Place::Hub { repository, revision, path: checked(path, rest)? }, file })
}

fn bucket(rest: &str) -> Result<Address> {
    let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if bucket.is_empty()
        || !bucket.chars().all(named)
        || !bucket.starts_with(|c: char| c.is_ascii_alphanumeric())
    {
        return Err(Error::decide(format!("'s3://{rest}' names no bucket")).hint("give s3://BUCKET/PREFIX"));
    }
    let (path, file) = split(path);
    Ok(Address { place: Place::Bucket { bucket: bucket.to_owned(), path: checked(path, rest)? }, file })
}

fn web(spec: &str) -> Result<Address> {
    // What is wrong is said without the address: it may hold a password.
    let mut url = Url::parse(spec).map_err(|e| Error::decide("the address cannot be read").because(e))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::decide(
            "an address with a password is refused: it would be recorded with the run",
        ));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Error::decide(
            "an address with a query is refused: signatures would be recorded with the run",
        )
        .hint("use hf:// or s3://, which sign each request from the credentials in the environment"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(Error::decide("the address names no host"));
    }
    if url.host_str() == Some("huggingface.co") && !url.path().contains("/resolve/") {
        let repository = url.path().trim_matches('/').split('/').take(2).collect::<Vec<_>>().join("/");
        return Err(Error::decide("this is a page of the hub, not a folder of files")
            .path(spec)
            .hint(format!("give hf://{repository}")));
    }
    let (folder, file) = split(url.path().trim_start_matches('/'));
    url.set_path(&folder);
    Ok(Address { place: Place::Web(url), file })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(repository: &str, revision: Option<&str>, path: &str, file: Option<&str>) -> Address {
        let place = Place::Hub {
            repository: repository.into(),
            revision: revision.map(str::to_owned),
            path: path.into(),
        };
        Address { place, file: file.map(str::to_owned) }
    }

    #[test]
    fn addresses_as_people_write_them() {
        assert_eq!(parse("hf://Qwen/Qwen3-32B").unwrap(), hub("Qwen/Qwen3-32B", None, "", None));
        assert_eq!(parse("hf://a/b@v1.0/sub/").unwrap(), hub("a/b", Some("v1.0"), "sub/", None));
        let pr = parse("hf://a/b@refs/pr/7/q.gguf").unwrap();
        assert_eq!(pr, hub("a/b", Some("refs/pr/7"), "", Some("q.gguf")));
        let web = parse("https://host:8443/models/m").unwrap();
        assert_eq!(web.place, Place::Web(Url::parse("https://host:8443/models/m/").unwrap()));
        let file = parse("http://127.0.0.1/x/m.safetensors").unwrap();
        assert_eq!(file.place, Place::Web(Url::parse("http://127.0.0.1/x/").unwrap()));
        assert_eq!(file.file.as_deref(), Some("m.safetensors"));
        let place = Place::Bucket { bucket: "b-1".into(), path: "x/y/".into() };
        assert_eq!(parse("s3://b-1/x/y").unwrap(), Address { place, file: None });
        let root = parse("s3://b").unwrap().place;
        assert_eq!(root, Place::Bucket { bucket: "b".into(), path: String::new() });
    }

    #[test]
    fn what_is_no_address_or_holds_a_secret_is_refused_without_repeating_it() {
        for spec in [
            "ftp://h/x",
            "hf://onlyname",
            "hf://a/../x",
            "hf://a/b@",
            "hf://datasets/a/b",
            "s3:///x",
            "https://",
        ] {
            assert!(parse(spec).is_err(), "{spec}");
        }
        for spec in ["s3://b/../x", "hf://a/b/../../c"] {
            assert!(parse(spec).is_err(), "{spec}");
        }
        for spec in ["https://me:hunter2@host/m/", "https://host/m/?X-Amz-Signature=hunter2"] {
            let error = parse(spec).unwrap_err();
            assert!(!format!("{error} {:?}", error.cure()).contains("hunter2"), "{error}");
        }
        let page = parse("https://huggingface.co/Qwen/Qwen3-8B/tree/main").unwrap_err();
        assert_eq!(page.cure(), Some("give hf://Qwen/Qwen3-8B"));
    }
}

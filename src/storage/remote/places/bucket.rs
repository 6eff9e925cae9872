//! A prefix in a bucket of an S3-compatible store. Requests are signed by `rusty-s3`, each anew, in its address.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusty_s3::actions::ListObjectsV2;
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use url::Url;

use crate::storage::Version;
use crate::storage::regular_file;
use crate::storage::remote::http::answer::Tag;
use crate::storage::remote::http::client::{Answer, Target};
use crate::storage::remote::http::object::{Origin, ask};
use crate::{Error, Result};

const DENIED: &str = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (`aws configure export-credentials --format env` \
                      prints those of a profile), and AWS_REGION";

/// How long a signature is valid.
const VALID: Duration = Duration::from_secs(900);

/// The longest answer of a listing: a thousand names of at most a kilobyte, and what is said of each.
const LONGEST: u64 = 8 << 20;

/// The most names below a prefix.
const MOST_NAMES: usize = 100_000;

/// The most answers that a listing is made of: each has a thousand names, or fewer where a store likes.
const MOST_PAGES: usize = 1000;

/// A prefix in a bucket.
#[derive(Debug)]
pub(crate) struct BucketFolder {
    bucket: Bucket,
    credentials: Option<Credentials>,
    /// Empty, or ends with `/`.
    prefix: String,
    location: PathBuf,
}

impl BucketFolder {
    /// The prefix `path` of a bucket, and the names below it. `None` for the names where the credentials may read but
    /// not list.
    ///
    /// # Errors
    /// No bucket of this name; an endpoint that is none; credentials that are not there or refused.
    pub(crate) fn find(
        name: &str,
        path: &str,
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<(BucketFolder, Option<Vec<String>>)> {
        let location = PathBuf::from(format!("s3://{name}/{path}").trim_end_matches('/'));
        let setup = Setup::read(variable)?;
        let region = setup.region.unwrap_or_else(|| "us-east-1".to_owned());
        let (endpoint, style) = match &setup.endpoint {
            Some(endpoint) => (endpoint.clone(), UrlStyle::Path),
            // A certificate for *.s3.amazonaws.com does not hold for a name with dots.
            None if name.contains('.') => (format!("https://s3.{region}.amazonaws.com"), UrlStyle::Path),
            None => (format!("https://s3.{region}.amazonaws.com"), UrlStyle::VirtualHost),
        };
        let bad = || {
            Error::decide("AWS_ENDPOINT_URL is not an address").hint("give http:// or https:// and a host")
        };
        let endpoint = Url::parse(&endpoint).map_err(|_| bad())?;
        let bucket = Bucket::new(endpoint, style, name.to_owned(), region).map_err(|_| bad())?;
        let folder =
            BucketFolder { bucket, credentials: setup.credentials, prefix: path.to_owned(), location };
        let names = folder.list().map_err(|e| e.path(&folder.location))?;
        Ok((folder, names))
    }

    fn list(&self) -> Result<Option<Vec<String>>> {
        let mut names = Vec::new();
        let mut continued: Option<String> = None;
        for page in 0.. {
            if page == MOST_PAGES {
                let what = format!("the store's list of names does not end after {MOST_PAGES} answers");
                return Err(Error::input(what));
            }
            let target = || {
                let mut list = self.bucket.list_objects_v2(self.credentials.as_ref());
                list.with_prefix(self.prefix.clone());
                if let Some(token) = &continued {
                    list.with_continuation_token(token.clone());
                }
                Ok(Target::plain(list.sign(VALID)))
            };
            let answer = match ask(target, LONGEST, DENIED) {
                Ok(Some(answer)) => answer,
                Ok(None) => return Err(Error::input("the store has no such bucket")),
                // Whoever may read objects need not be allowed to list them.
                Err(e) if e.to_string().contains("403") => return Ok(None),
                Err(e) => return Err(e),
            };
            let bad = |why: String| Error::input("the store's list of names cannot be read").because(why);
            let text = String::from_utf8(answer).map_err(|e| bad(e.to_string()))?;
            let page = ListObjectsV2::parse_response(&text).map_err(|e| bad(e.to_string()))?;
            names.extend(page.contents.into_iter().filter_map(|object| {
                let name = object.key.strip_prefix(&self.prefix)?;
                (!name.is_empty() && !name.ends_with('/')).then(|| name.to_owned())
            }));
            if names.len() > MOST_NAMES {
                let what = format!("the prefix holds more than {MOST_NAMES} objects");
                return Err(Error::decide(what).hint("give the prefix of one model"));
            }
            match page.next_continuation_token {
                Some(token) if continued.as_ref() != Some(&token) => continued = Some(token),
                _ => break,
            }
        }
        if names.is_empty() {
            return Err(Error::input("the bucket has nothing below this prefix"));
        }
        names.sort();
        Ok(Some(names))
    }
}

impl Origin for BucketFolder {
    fn location(&self) -> &Path {
        &self.location
    }

    fn target(&self, name: &str) -> Result<Target> {
        let key = format!("{}{name}", self.prefix);
        Ok(Target::plain(self.bucket.get_object(self.credentials.as_ref(), &key).sign(VALID)))
    }

    fn version(&self, answer: &Answer) -> Result<Option<Version>> {
        let version = answer.header("x-amz-version-id").filter(|version| *version != "null");
        let version = version.map(|version| Version::Tag(format!("version {version}")));
        Ok(version.or_else(|| Tag::of(&answer.headers).version()))
    }

    fn denied(&self) -> &'static str {
        DENIED
    }
}

/// Where a store is, and as whom it is asked, by the rules of the AWS SDKs: the environment first, then the shared
/// files.
struct Setup {
    endpoint: Option<String>,
    region: Option<String>,
    credentials: Option<Credentials>,
}

impl Setup {
    fn read(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Setup> {
        let text = |name: &str| variable(name)?.into_string().ok().filter(|text| !text.trim().is_empty());
        let home = text("HOME").map(PathBuf::from);
        let file = |name: &str, default: &str| {
            let path = text(name).map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(default)));
            path.and_then(|path| regular_file::read_text(&path).ok())
                .map_or_else(BTreeMap::new, |text| sections(&text))
        };
        let secrets = file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials");
        let config = file("AWS_CONFIG_FILE", ".aws/config");
        let chosen = text("AWS_PROFILE");
        let profile = chosen.clone().unwrap_or_else(|| "default".to_owned());
        let of_config = config.get(&format!("profile {profile}")).or_else(|| config.get(&profile));
        if chosen.is_some() && of_config.is_none() && !secrets.contains_key(&profile) {
            return Err(Error::decide(format!(
                "AWS_PROFILE names '{profile}', which the shared files do not have"
            )));
        }
        let known = |key: &str| {
            let found = secrets.get(&profile).and_then(|section| section.get(key));
            found.or_else(|| of_config?.get(key)).cloned().filter(|value| !value.is_empty())
        };
        let endpoint = text("AWS_ENDPOINT_URL_S3").or_else(|| text("AWS_ENDPOINT_URL"));
        let region = text("AWS_REGION").or_else(|| text("AWS_DEFAULT_REGION"));
        let stored = || {
            let (key, secret) = (known("aws_access_key_id")?, known("aws_secret_access_key")?);
            Some(match known("aws_session_token") {
                Some(token) => Credentials::new_with_token(key, secret, token),
                None => Credentials::new(key, secret),
            })
        };
        let given = || {
            let (key, secret) = (text("AWS_ACCESS_KEY_ID")?, text("AWS_SECRET_ACCESS_KEY")?);
            Some(match text("AWS_SESSION_TOKEN") {
                Some(token) => Credentials::new_with_token(key, secret, token),
                None => Credentials::new(key, secret),
            })
        };
        Ok(Setup {
            endpoint: endpoint.or_else(|| known("endpoint_url")),
            region: region.or_else(|| known("region")),
            credentials: given().or_else(stored),
        })
    }
}

/// The sections of a shared file, each with its keys and values. Nested ones, which are indented, are left out.
fn sections(text: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut sections: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let mut name = None;
    for line in text.lines() {
        let indented = line.starts_with([' ', '\t']);
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) || indented {
            continue;
        }
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            let words: Vec<&str> = section.0.split_whitespace().collect();
            name = Some(words.join(" "));
        } else if let (Some(name), Some((key, value))) = (&name, line.split_once('=')) {
            let section = sections.entry(name.clone()).or_default();
            section.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(home: &Path, set: &[(&str, &str)]) -> Result<Setup> {
        Setup::read(&|name| {
            let given = set.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
            given.or_else(|| (name == "HOME").then(|| home.as_os_str().to_owned()))
        })
    }

    #[test]
    fn credentials_come_from_the_environment_or_the_shared_files() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        let secrets = "[default]\naws_access_key_id = AK0\naws_secret_access_key=s=0\n\n# x\n[ work ]\n\
                       AWS_ACCESS_KEY_ID = AK1\naws_secret_access_key = s1\naws_session_token = t1\n";
        std::fs::write(home.path().join(".aws/credentials"), secrets).unwrap();
        let config =
            "[profile work]\nregion = eu-west-3\nendpoint_url = http://127.0.0.1:9\ns3 =\n  region = no\n";
        std::fs::write(home.path().join(".aws/config"), config).unwrap();
        let found = setup(home.path(), &[]).unwrap();
        let credentials = found.credentials.unwrap();
        assert_eq!((credentials.key(), credentials.secret(), credentials.token()), ("AK0", "s=0", None));
        let work = setup(home.path(), &[("AWS_PROFILE", "work")]).unwrap();
        let credentials = work.credentials.unwrap();
        assert_eq!((credentials.key(), credentials.token()), ("AK1", Some("t1")));
        assert_eq!(work.region.as_deref(), Some("eu-west-3"));
        assert_eq!(work.endpoint.as_deref(), Some("http://127.0.0.1:9"));
        let given = [("AWS_ACCESS_KEY_ID", "AK2"), ("AWS_SECRET_ACCESS_KEY", "s2"), ("AWS_REGION", "r")];
        let found = setup(home.path(), &given).unwrap();
        assert_eq!(found.credentials.unwrap().key(), "AK2");
        assert_eq!(found.region.as_deref(), Some("r"));
        assert!(setup(home.path(), &[("AWS_PROFILE", "none")]).is_err());
        assert!(setup(Path::new("/nowhere"), &[]).unwrap().credentials.is_none());
    }
}

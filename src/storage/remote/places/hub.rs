//! A model at a Hugging Face hub: its names and its commit from the hub's interface, its files by its `resolve`
//! addresses, which may lead to signed links elsewhere. As `huggingface_hub` does it (`file_download.py`).

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use url::Url;

use crate::storage::Version;
use crate::storage::regular_file;
use crate::storage::remote::http::answer::{Tag, changed};
use crate::storage::remote::http::client::{Answer, Secret, Target, header};
use crate::storage::remote::http::object::{Origin, ask};
use crate::storage::remote::places::web::below;
use crate::{Error, Result};

const DENIED: &str = "accept the model's terms on its page, then `hf auth login`, or set HF_TOKEN";

/// The longest answer about a model; one of some thousand files has some hundred kilobytes.
const LONGEST: u64 = 32 << 20;

/// A model at a commit.
#[derive(Debug)]
pub(crate) struct HubModel {
    /// `ENDPOINT/OWNER/NAME/resolve/COMMIT/`, and the path of a folder in it.
    url: Url,
    token: Option<Secret>,
    commit: String,
    location: PathBuf,
}

/// What the hub says of a model.
#[derive(Deserialize)]
struct Described {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl HubModel {
    /// Looks a model up: its revision is pinned to a commit, and the names of the files below `path` are returned.
    ///
    /// # Errors
    /// No such model or revision; a model that the token may not read.
    pub(crate) fn find(
        repository: &str,
        revision: Option<&str>,
        path: &str,
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<(HubModel, Vec<String>)> {
        let text = |name: &str| variable(name)?.into_string().ok().filter(|text| !text.trim().is_empty());
        let asked = format!("hf://{repository}");
        if text("HF_HUB_OFFLINE").is_some_and(|flag| flag != "0") {
            return Err(Error::decide("HF_HUB_OFFLINE is set")
                .path(asked)
                .hint("unset it to read from the hub"));
        }
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let endpoint = Url::parse(&format!("{}/", endpoint.trim_end_matches('/')))
            .map_err(|e| Error::decide("HF_ENDPOINT is not an address").because(e))?;
        let token = token(variable);
        let revision = revision.unwrap_or("main");
        let mut api = below(&endpoint, &format!("api/models/{repository}/revision"))?;
        // A revision with slashes is one part of the path.
        api.path_segments_mut().map_err(|()| Error::decide("HF_ENDPOINT is not an address"))?.push(revision);
        let target = || Ok(Target { authorization: token.clone(), ..Target::plain(api.clone()) });
        let answer = ask(target, LONGEST, DENIED).map_err(|e| e.path(&asked))?;
        let Some(answer) = answer else {
            let hint = format!("look at {endpoint}{repository}; a private one needs a token: {DENIED}");
            return Err(Error::input(format!("the hub has no such model, or no revision '{revision}'"))
                .path(asked)
                .hint(hint));
        };
        let described: Described = serde_json::from_slice(&answer)
            .map_err(|e| Error::input("the hub's answer cannot be read").path(&asked).because(e))?;
        let commit = described.sha;
        if commit.is_empty() || !commit.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(Error::input("the hub names no commit").path(asked));
        }
        let inside = format!("{repository}/resolve/{commit}/{path}");
        let mut url = below(&endpoint, inside.trim_end_matches('/'))?;
        url.path_segments_mut().map_err(|()| Error::decide("HF_ENDPOINT is not an address"))?.push("");
        let names = described.siblings.into_iter().map(|sibling| sibling.rfilename);
        let mut names: Vec<String> =
            names.filter_map(|name| Some(name.strip_prefix(path)?.to_owned())).collect();
        names.sort();
        let location = PathBuf::from(format!("{asked}@{commit}/{path}").trim_end_matches('/'));
        Ok((HubModel { url, token, commit, location }, names))
    }
}

impl Origin for HubModel {
    fn location(&self) -> &Path {
        &self.location
    }

    fn target(&self, name: &str) -> Result<Target> {
        Ok(Target { authorization: self.token.clone(), ..Target::plain(below(&self.url, name)?) })
    }

    /// The tag of the content, which is its SHA-256 for large files: the hub tells it before it sends the reader on.
    fn version(&self, answer: &Answer) -> Result<Option<Version>> {
        let all = || answer.hops.iter().chain([&answer.headers]);
        if all().filter_map(|headers| header(headers, "x-repo-commit")).any(|commit| commit != self.commit) {
            return Err(changed("the hub answers from another commit"));
        }
        let linked = all().find_map(|headers| header(headers, "x-linked-etag"));
        let linked = linked.map(|tag| Version::Tag(tag.trim_matches('"').to_owned()));
        // Without a tag of the hub's own, the commit says what the content is.
        let own = || Tag::of(&answer.headers).version().filter(|_| answer.hops.is_empty());
        Ok(linked.or_else(own).or_else(|| Some(Version::Tag(format!("commit {}", self.commit)))))
    }

    fn denied(&self) -> &'static str {
        DENIED
    }
}

/// The header with the user's token: from `HF_TOKEN`, or the file that `hf auth login` writes.
fn token(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<Secret> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let text = |name: &str| set(name)?.into_string().ok();
    let on = |name: &str| {
        text(name).is_some_and(|flag| ["1", "on", "yes", "true"].contains(&&*flag.to_lowercase()))
    };
    let given = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN"));
    let home = || {
        set("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| set("XDG_CACHE_HOME").map(|cache| PathBuf::from(cache).join("huggingface")))
            .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache/huggingface")))
    };
    let stored = || {
        let path = set("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home()?.join("token")))?;
        regular_file::read_text(&path).ok().filter(|_| !on("HF_HUB_DISABLE_IMPLICIT_TOKEN"))
    };
    let token = given.or_else(stored)?;
    let token = token.trim();
    (!token.is_empty()).then(|| Secret(format!("Bearer {token}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_found_where_the_hub_s_own_client_finds_it() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(".cache/huggingface");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("token"), "hf_stored\n").unwrap();
        let asked = |set: Vec<(&'static str, OsString)>| {
            token(&move |name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone()))
                .map(|Secret(text)| text)
        };
        let at_home = ("HOME", home.path().as_os_str().to_owned());
        assert_eq!(asked(vec![at_home.clone()]).as_deref(), Some("Bearer hf_stored"));
        assert_eq!(asked(vec![("HF_TOKEN", "hf_x".into()), at_home.clone()]).as_deref(), Some("Bearer hf_x"));
        assert_eq!(asked(vec![("HF_HOME", folder.into_os_string())]).as_deref(), Some("Bearer hf_stored"));
        assert_eq!(asked(vec![("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1".into()), at_home]), None);
        assert_eq!(format!("{:?}", Secret("hf_x".into())), "(secret)");
    }
}

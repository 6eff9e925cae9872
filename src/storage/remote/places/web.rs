//! A folder at a plain web server, which lists nothing.

use std::path::{Path, PathBuf};

use url::Url;

use crate::storage::remote::http::client::Target;
use crate::storage::remote::http::object::Origin;
use crate::{Error, Result};

/// Names of files that a folder without an index may hold, and that are asked for one by one.
pub(crate) const PROBED: [&str; 4] =
    ["model.safetensors", "adapter_model.safetensors", "adapter_config.json", "adapter_model.bin"];

/// A folder below an address that ends with `/`.
#[derive(Debug)]
pub(crate) struct WebFolder {
    url: Url,
    location: PathBuf,
}

impl WebFolder {
    pub(crate) fn new(url: Url) -> WebFolder {
        let location = PathBuf::from(url.as_str());
        WebFolder { url, location }
    }
}

/// The address of the file `name` below `folder`.
///
/// # Errors
/// A name that would lead out of it.
pub(crate) fn below(folder: &Url, name: &str) -> Result<Url> {
    let mut url = folder.clone();
    let bad = || Error::input(format!("'{name}' is not the name of a file in the folder"));
    if name.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err(bad());
    }
    url.path_segments_mut().map_err(|()| bad())?.pop_if_empty().extend(name.split('/'));
    Ok(url)
}

impl Origin for WebFolder {
    fn location(&self) -> &Path {
        &self.location
    }

    fn target(&self, name: &str) -> Result<Target> {
        below(&self.url, name).map(Target::plain)
    }

    fn denied(&self) -> &'static str {
        "this server wants credentials, and none are sent to plain web servers"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_their_folder() {
        let folder = Url::parse("https://h/a%20b/").unwrap();
        assert_eq!(
            below(&folder, "x y#?.safetensors").unwrap().as_str(),
            "https://h/a%20b/x%20y%23%3F.safetensors"
        );
        assert_eq!(below(&folder, "sub/m.gguf").unwrap().path(), "/a%20b/sub/m.gguf");
        for bad in ["../x", "a/../../x", "", "/x", "a//b"] {
            assert!(below(&folder, bad).is_err(), "{bad}");
        }
    }
}

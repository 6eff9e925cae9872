//! Stand-ins for a web server, a hub and a bucket, each over the files of a folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::server::{Reply, Request, Server, part};

/// A tag of content, in quotes.
pub fn etag(content: &[u8]) -> String {
    format!("\"{}\"", &blake3::hash(content).to_hex()[..32])
}

/// Answers for the file `name` of a folder.
pub fn file(request: &Request, root: &Path, name: &str) -> Reply {
    match fs::read(root.join(name.trim_start_matches('/'))) {
        Ok(content) => part(request, &content, &etag(&content)),
        Err(_) => Reply::of(404, "no such file"),
    }
}

/// A plain web server over `root`; `bend` may change an answer.
pub fn web(root: &Path, bend: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Server {
    let root = root.to_owned();
    Server::start(move |request| bend(request, file(request, &root, &request.path)))
}

/// The same over TLS.
pub fn secure_web(root: &Path) -> Server {
    let root = root.to_owned();
    Server::start_tls(move |request| file(request, &root, &request.path))
}

/// The hub's commit for everything.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The token that the hub wants.
pub const TOKEN: &str = "hf_very_secret_token";

/// A stand-in for the hub: models `OWNER/NAME` are the folders `root/NAME`. Large files are sent from signed links on
/// another host, each valid for `valid` requests.
pub fn hub(root: &Path, valid: u64) -> Server {
    let root = root.to_owned();
    let signed = AtomicU64::new(0);
    let uses = std::sync::Mutex::new(BTreeMap::<String, u64>::new());
    Server::start(move |request| {
        let path = request.path.trim_start_matches('/');
        if let Some(rest) = path.strip_prefix("cdn/") {
            assert_eq!(request.header("authorization"), None, "the token is for the hub alone");
            let sign = request.parameter("Signature").unwrap_or_default();
            let mut uses = uses.lock().unwrap();
            let used = uses.entry(sign).or_default();
            *used += 1;
            if *used > valid {
                return Reply::of(403, "Request has expired");
            }
            return file(request, &root, rest);
        }
        if request.header("authorization") != Some(&format!("Bearer {TOKEN}")) {
            return Reply::of(401, "").with("X-Error-Message", "Invalid username or password.");
        }
        if let Some(rest) = path.strip_prefix("api/models/") {
            let words: Vec<&str> = rest.split('/').collect();
            let [_, name, kind @ ("revision" | "tree"), _] = words[..] else { return Reply::of(404, "") };
            let Ok(entries) = fs::read_dir(root.join(name)) else { return Reply::of(404, "") };
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            if kind == "tree" {
                let size = |file: &str| fs::metadata(root.join(name).join(file)).unwrap().len();
                let entry = |file: String| {
                    let oid = "0".repeat(40);
                    serde_json::json!({"type": "file", "path": file, "size": size(&file), "oid": oid})
                };
                let tree = serde_json::Value::from(names.map(entry).collect::<Vec<_>>());
                return Reply::of(200, tree.to_string()).with("Content-Type", "application/json");
            }
            let siblings: Vec<_> = names.map(|name| serde_json::json!({"rfilename": name})).collect();
            let id = format!("test/{name}");
            let described = serde_json::json!({"id": id, "modelId": id, "sha": COMMIT, "private": false,
                "downloads": 0, "likes": 0, "tags": [], "siblings": siblings});
            return Reply::of(200, described.to_string()).with("Content-Type", "application/json");
        }
        let words: Vec<&str> = path.splitn(5, '/').collect();
        let [_, model, "resolve", revision, name] = words[..] else { return Reply::of(404, "") };
        let Ok(content) = fs::read(root.join(model).join(name)) else {
            return Reply::of(404, "").with("X-Error-Code", "EntryNotFound");
        };
        assert_eq!(revision, COMMIT, "a revision is pinned");
        if !name.ends_with(".safetensors") && !name.ends_with(".gguf") {
            return part(request, &content, &etag(&content)).with("X-Repo-Commit", COMMIT);
        }
        let number = signed.fetch_add(1, Ordering::SeqCst);
        let port = request.header("host").unwrap().rsplit(':').next().unwrap().to_owned();
        Reply::of(302, "")
            .with(
                "Location",
                format!("http://localhost:{port}/cdn/{model}/{name}?Signature=s{number}&Expires=1"),
            )
            .with("X-Repo-Commit", COMMIT)
            .with("X-Linked-Etag", etag(&content))
            .with("X-Linked-Size", content.len())
    })
}

pub const KEY: &str = "AKIATESTTESTTEST";
pub const SECRET: &str = "secret/of+the=store";
pub const SESSION: &str = "session-token-of-the-store==";

/// A stand-in for an S3-compatible store: bucket `models`, keys are the paths below `root`. Signatures are checked by
/// the rules of AWS Signature Version 4, written here a second time.
pub fn bucket(root: &Path) -> Server {
    let root = root.to_owned();
    Server::start(move |request| {
        if let Err(why) = check_signature(request) {
            let body = format!("<Error><Code>SignatureDoesNotMatch</Code><Message>{why}</Message></Error>");
            return Reply::of(403, body);
        }
        let Some(key) = request.path.strip_prefix("/models") else { return Reply::of(404, "") };
        let key = key.trim_start_matches('/');
        if !key.is_empty() {
            return file(request, &root, key).with("x-amz-request-id", "1");
        }
        let prefix = request.parameter("prefix").unwrap_or_default();
        let mut keys = Vec::new();
        walk(&root, "", &mut keys);
        keys.retain(|key| key.starts_with(&prefix));
        // Pages of two.
        let from = request.parameter("continuation-token").map_or(0, |token| token.parse().unwrap());
        let page = &keys[from.min(keys.len())..(from + 2).min(keys.len())];
        let contents: String =
            page.iter().map(|key| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>")).collect();
        let more = from + 2 < keys.len();
        let next = if more {
            format!("<NextContinuationToken>{}</NextContinuationToken>", from + 2)
        } else {
            String::new()
        };
        Reply::of(
            200,
            format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                 <Name>models</Name><Prefix>{prefix}</Prefix><EncodingType>url</EncodingType><MaxKeys>2</MaxKeys>\
                 <IsTruncated>{more}</IsTruncated>{contents}{next}</ListBucketResult>"
            ),
        )
    })
}

fn walk(folder: &Path, prefix: &str, keys: &mut Vec<String>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() { walk(&path, &format!("{name}/"), keys) } else { keys.push(name) }
    }
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn encoded(text: &str, slash: bool) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || slash && byte == b'/';
    text.bytes()
        .map(|byte| if plain(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// <https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html>
fn check_signature(request: &Request) -> Result<(), &'static str> {
    let given = |name: &str| request.parameter(name);
    let signature = given("X-Amz-Signature").ok_or("not signed")?;
    let credential = given("X-Amz-Credential").ok_or("no credential")?;
    let (key, scope) = credential.split_once('/').ok_or("no scope")?;
    if key != KEY {
        return Err("unknown key");
    }
    if given("X-Amz-Security-Token").as_deref() != Some(SESSION) {
        return Err("no session");
    }
    let mut pairs: Vec<(String, String)> = request
        .query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .filter(|(name, _)| *name != "X-Amz-Signature")
        .map(|(name, value)| {
            let again = |text: &str| encoded(&crate::server::decoded(text), false);
            (again(name), again(value))
        })
        .collect();
    pairs.sort();
    let query: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let host = request.header("host").ok_or("no host")?;
    let canonical = format!(
        "GET\n{}\n{}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD",
        encoded(&request.path, true),
        query.join("&")
    );
    let date = given("X-Amz-Date").ok_or("no date")?;
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(&Sha256::digest(canonical.as_bytes())));
    let words: Vec<&str> = scope.split('/').collect();
    let [day, region, "s3", "aws4_request"] = words[..] else { return Err("a scope that is none") };
    if region != "eu-test-1" || !date.starts_with(day) {
        return Err("another region or day");
    }
    let mut signing = format!("AWS4{SECRET}").into_bytes();
    for word in [day, region, "s3", "aws4_request"] {
        signing = hmac(&signing, word);
    }
    if hex(&hmac(&signing, &text)) == signature { Ok(()) } else { Err("another signature") }
}

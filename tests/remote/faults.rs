//! Links that break, servers that are busy, and servers that lie: the right adapter, or an error by name.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tempfile::tempdir;

use crate::common::{Ended, data, extract, run};
use crate::server::{Reply, Request, Server};
use crate::stores::{TOKEN, hub, web};

const FAST: [&str; 6] = ["--rank", "4", "--stall-timeout", "2", "--base-model-name", "b"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

/// Extracts from a server that bends its answers; the adapter's bytes where it succeeds.
fn extracted(
    bend: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
) -> (Ended, Option<Vec<u8>>, Server) {
    extracted_with("2", bend)
}

fn extracted_with(
    retries: &str,
    bend: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
) -> (Ended, Option<Vec<u8>>, Server) {
    let home = tempdir().unwrap();
    let server = web(&root(), bend);
    let out = home.path().join("out");
    let ended = run(extract(&server.url("base-fp8/"), &server.url("tuned/"), &out)
        .args(FAST)
        .args(["--retries", retries]));
    let bytes = fs::read(out.join("adapter_model.safetensors")).ok();
    (ended, bytes, server)
}

fn expected() -> Vec<u8> {
    static EXPECTED: Mutex<Option<Vec<u8>>> = Mutex::new(None);
    let mut expected = EXPECTED.lock().unwrap();
    let made = expected.get_or_insert_with(|| {
        let home = tempdir().unwrap();
        let out = home.path().join("out");
        run(extract(&data("base-fp8"), &data("tuned"), &out).args(FAST)).code(0);
        fs::read(out.join("adapter_model.safetensors")).unwrap()
    });
    made.clone()
}

/// A number that looks like chance and is the same every time.
fn chance(number: u64) -> usize {
    (number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407) >> 33) as usize
}

#[test]
fn connections_that_break_anywhere_are_taken_up_there() {
    let (ended, bytes, _server) = extracted_with("40", |request, reply| {
        let at = chance(request.number) % reply.body.len().max(1);
        let cut = (request.number % 3 == 1).then_some(at);
        Reply { cut, ..reply }
    });
    ended.code(0);
    assert!(bytes.unwrap() == expected());
}

#[test]
fn a_busy_server_is_asked_again_when_it_says() {
    for status in [429, 503, 500] {
        let busy = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&busy);
        let (ended, bytes, _server) = extracted_with("40", move |request, reply| {
            // Every other request is turned away.
            if request.number % 2 == 0 {
                counted.fetch_add(1, Ordering::SeqCst);
                return Reply::of(status, "busy").with("Retry-After", "0");
            }
            reply
        });
        ended.code(0);
        assert!(busy.load(Ordering::SeqCst) > 3);
        assert!(bytes.unwrap() == expected());
    }
}

#[test]
fn retry_after_is_waited_for_and_too_long_is_said() {
    let first = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&first);
    let (ended, _, _server) = extracted(move |request, reply| {
        if request.number == 0 {
            *seen.lock().unwrap() = Some(std::time::Instant::now());
            return Reply::of(429, "").with("Retry-After", "1");
        }
        if request.number == 1 {
            let waited = seen.lock().unwrap().unwrap().elapsed();
            assert!(waited.as_millis() >= 1000, "asked again after {waited:?}");
        }
        reply
    });
    ended.code(0);
    let (ended, bytes, _server) = extracted(|_, _| Reply::of(503, "").with("Retry-After", "86400"));
    ended.code(1).says("come back in 86400 s");
    assert!(bytes.is_none());
}

/// A server that lies about tensors' bytes, and what is said of it.
#[track_caller]
fn lie(words: &str, bend: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) {
    let (ended, bytes, _server) = extracted(move |request, reply| {
        let is_late = request.range().is_some_and(|range| range.start > 0);
        let is_weights = request.path.ends_with("base-fp8/model.safetensors");
        if is_late && is_weights { bend(request, reply) } else { reply }
    });
    assert!(ended.code == Some(3) || ended.code == Some(1), "{words}: {ended:?}");
    let ended = ended.says(words);
    assert!(ended.stderr.contains("base-fp8/model.safetensors"), "{}", ended.stderr);
    assert!(bytes.is_none(), "{words}: an adapter was made");
}

#[test]
fn a_server_that_ignores_ranges() {
    let whole = fs::read(root().join("base-fp8/model.safetensors")).unwrap();
    lie("it ignores ranges", move |_, reply| {
        let etag = reply.headers.iter().find(|(name, _)| *name == "ETag").unwrap().1.clone();
        Reply::of(200, whole.clone()).with("ETag", etag)
    });
}

#[test]
fn a_server_that_sends_another_part() {
    lie("another part", |request, reply| {
        let range = request.range().unwrap();
        let position = format!("bytes {}-{}/1284296", range.start - 1, range.end - 2);
        reply.without("Content-Range").with("Content-Range", position)
    });
}

#[test]
fn a_server_that_tells_no_position() {
    lie("a part without its position", |_, reply| reply.without("Content-Range"));
}

#[test]
fn a_server_that_announces_too_few_or_too_many_bytes() {
    lie("were asked for", |_, reply| {
        let body = reply.body[..reply.body.len() - 1].to_vec();
        Reply { body, ..reply }
    });
    lie("were asked for", |_, mut reply| {
        reply.body.push(0);
        reply
    });
}

#[test]
fn a_server_that_always_breaks_off() {
    lie("the answer ended after", |_, reply| Reply { cut: Some(0), ..reply });
}

#[test]
fn a_server_that_sends_garbage() {
    lie("is not HTTP", |_, reply| Reply { garbage: Some(vec![0xff; 4096]), ..reply });
}

#[test]
fn a_server_that_hangs() {
    lie("silent", |_, reply| Reply { silent: Some(10), ..reply });
    lie("silent", |_, reply| Reply { silent: Some(0), ..reply });
}

#[test]
fn a_server_that_never_answers() {
    let (ended, bytes, _server) = extracted_with("1", |request, reply| {
        if request.path.ends_with("base-fp8/model.safetensors") {
            std::thread::sleep(std::time::Duration::from_secs(4));
        }
        reply
    });
    ended.code(1).says("silent").says("base-fp8/model.safetensors");
    assert!(bytes.is_none());
}

#[test]
fn a_server_that_sends_ever_less() {
    // A few bytes each time are no progress.
    lie("the answer ended after", |_, reply| Reply { cut: Some(7), ..reply });
}

#[test]
fn a_server_that_trickles() {
    // Each byte is in time, and all of them together are not.
    let slow = Some(std::time::Duration::from_millis(100));
    let trickle = move |reply: Reply| Reply { slow, ..reply };
    let (ended, bytes, _server) = extracted_with("0", move |request, reply| {
        let is_late = request.range().is_some_and(|range| range.start > 0);
        if is_late { trickle(reply) } else { reply }
    });
    ended.code(1).says("the server sent").says("bytes in 2 s");
    assert!(bytes.is_none());
    // Neither is a hub that says of no end, and never comes to it.
    let server = Server::start(move |_| trickle(Reply { chunked: true, ..Reply::of(200, vec![b' '; 4096]) }));
    let home = tempdir().unwrap();
    let ended = run(extract("hf://test/base", "hf://test/tuned", &home.path().join("out"))
        .args(FAST)
        .args(["--retries", "0"])
        .env("HF_ENDPOINT", server.url("")));
    ended.code(1).says("the server sent").says("hf://test/base");
}

#[test]
fn a_list_of_names_that_never_ends() {
    let server = Server::start(|request| {
        let next = request.number + 1;
        let list = "<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                    <Name>models</Name><Prefix></Prefix><EncodingType>url</EncodingType>\
                    <MaxKeys>1000</MaxKeys><IsTruncated>true</IsTruncated>";
        Reply::of(
            200,
            format!("{list}<NextContinuationToken>{next}</NextContinuationToken></ListBucketResult>"),
        )
    });
    let home = tempdir().unwrap();
    let ended = run(extract("s3://models/base", "s3://models/tuned", &home.path().join("out"))
        .args(FAST)
        .env("AWS_ENDPOINT_URL", server.url(""))
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", "secret"));
    ended.code(3).says("does not end after 1000 answers").says("s3://models/");
    // Of one listing, or of both.
    assert!(server.requests().len() <= 2000);
}

#[test]
fn what_a_server_says_of_a_region_is_no_command() {
    for (region, hint) in [("eu-west-3", "set AWS_REGION=eu-west-3"), ("x;touch y", "set AWS_REGION\n")] {
        let server = Server::start(move |_| Reply::of(400, "").with("x-amz-bucket-region", region));
        let home = tempdir().unwrap();
        let mut command = extract("s3://models/base", "s3://models/tuned", &home.path().join("out"));
        run(command.args(FAST).env("AWS_ENDPOINT_URL", server.url(""))).code(2).says(hint);
    }
}

/// Extracts from the hub's stand-in, whose links are valid for so many requests each.
fn extracted_by_links(valid: u64) -> (Ended, Option<Vec<u8>>, Vec<(Request, u16)>) {
    let home = tempdir().unwrap();
    let server = hub(&root(), valid);
    let out = home.path().join("out");
    let ended = run(extract("hf://test/base-fp8", "hf://test/tuned", &out)
        .args(FAST)
        .env("HF_ENDPOINT", server.url(""))
        .env("HF_TOKEN", TOKEN));
    let log = server.log.lock().unwrap().clone();
    (ended, fs::read(out.join("adapter_model.safetensors")).ok(), log)
}

#[test]
fn links_that_expire_in_the_middle_are_asked_for_anew() {
    let (ended, bytes, log) = extracted_by_links(2);
    ended.code(0);
    assert!(bytes.unwrap() == expected());
    let count = |status: u16| log.iter().filter(|(_, answered)| *answered == status).count();
    assert!(count(403) > 5 && count(302) > 5, "{} expired, {} new links", count(403), count(302));
}

#[test]
fn links_that_are_never_valid_are_an_error() {
    let (ended, bytes, log) = extracted_by_links(0);
    ended.code(2).says("access is denied").says("model.safetensors");
    assert!(bytes.is_none() && log.len() < 100, "{} requests", log.len());
}

#[test]
fn a_server_that_sends_an_absurd_length() {
    lie("an object of 9000000000000000000 bytes", |request, reply| {
        let range = request.range().unwrap();
        let position = format!("bytes {}-{}/9000000000000000000", range.start, range.end - 1);
        reply.without("Content-Range").with("Content-Range", position)
    });
}

#[test]
fn a_server_that_packs_what_was_not_to_be_packed() {
    lie("it is compressed", |_, reply| reply.with("Content-Encoding", "gzip"));
}

#[test]
fn content_that_changes_between_ranges_is_seen_by_its_tag_or_its_length() {
    lie("changed at the server", |_, reply| reply.without("ETag").with("ETag", "\"another\""));
    lie("changed at the server", |_, _| Reply::of(412, ""));
    lie("changed at the server", |_, _| Reply::of(404, ""));
    lie("it had 1284296 bytes and now has 1284297", |request, reply| {
        let range = request.range().unwrap();
        let position = format!("bytes {}-{}/1284297", range.start, range.end - 1);
        reply.without("Content-Range").with("Content-Range", position)
    });
}

#[test]
fn redirects_in_circles_and_to_other_schemes_are_refused() {
    let redirect = |to: &'static str| move |_: &Request, _: Reply| Reply::of(302, "").with("Location", to);
    let (ended, ..) = extracted(redirect("/again"));
    ended.code(3).says("in circles");
    let (ended, ..) = extracted(redirect("file:///etc/passwd"));
    ended.code(3).says("scheme 'file'");
    let (ended, ..) = extracted(redirect("http://192.0.2.1/x"));
    ended.code(2).says("http:// is not encrypted");
}

#[test]
fn plain_http_beyond_this_machine_needs_a_flag() {
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    let ended = run(extract("http://192.0.2.1/m/", &data("tuned"), &out).args(FAST));
    ended.code(2).says("--allow-http");
}

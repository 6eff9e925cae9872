//! A small HTTP/1.1 server on loopback, whose answers a test may bend.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its number since the server began.
    pub number: u64,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The range that is asked for, its end exclusive.
    pub fn range(&self) -> Option<std::ops::Range<usize>> {
        let (start, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some(start.parse().ok()?..last.parse::<usize>().ok()? + 1)
    }

    pub fn parameter(&self, name: &str) -> Option<String> {
        self.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then(|| decoded(value))
        })
    }
}

/// Text without percent signs.
pub fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' && tail.len() >= 2 {
            let hex = std::str::from_utf8(&tail[..2]).unwrap();
            bytes.push(u8::from_str_radix(hex, 16).unwrap());
            rest = &tail[2..];
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// What `Content-Length` says, if not the body's length.
    pub announced: Option<usize>,
    /// After how many bytes of the body the connection breaks.
    pub cut: Option<usize>,
    /// After how many bytes of the body the server falls silent.
    pub silent: Option<usize>,
    /// How long the server waits before each byte of the body.
    pub slow: Option<Duration>,
    /// Whether the body comes in pieces, and no length is said.
    pub chunked: bool,
    /// What is sent in place of everything.
    pub garbage: Option<Vec<u8>>,
}

impl Reply {
    pub fn of(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply { status, body: body.into(), ..Reply::default() }
    }

    pub fn with(mut self, name: &'static str, value: impl ToString) -> Reply {
        self.headers.push((name, value.to_string()));
        self
    }

    pub fn without(mut self, name: &str) -> Reply {
        self.headers.retain(|(key, _)| *key != name);
        self
    }
}

/// Part of `content`, as a well-behaved server answers.
pub fn part(request: &Request, content: &[u8], etag: &str) -> Reply {
    if request.header("if-match").is_some_and(|wanted| wanted != etag) {
        return Reply::of(412, "");
    }
    let Some(range) = request.range() else {
        return Reply::of(200, content).with("ETag", etag).with("Accept-Ranges", "bytes");
    };
    let end = range.end.min(content.len());
    if range.start >= content.len() {
        return Reply::of(416, "").with("Content-Range", format!("bytes */{}", content.len()));
    }
    let position = format!("bytes {}-{}/{}", range.start, end - 1, content.len());
    Reply::of(206, &content[range.start..end]).with("ETag", etag).with("Content-Range", position)
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// A running server; it ends when it is dropped.
pub struct Server {
    pub address: SocketAddr,
    /// Every request and the status of its answer.
    pub log: Arc<Mutex<Vec<(Request, u16)>>>,
    /// Bytes of bodies sent.
    pub sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Server {
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
        Server::started(None, handler)
    }

    /// The same over TLS, with the certificate beside this file, which nobody has signed.
    pub fn start_tls(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
        use rustls::pki_types::pem::PemObject;
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/remote");
        let certificate =
            rustls::pki_types::CertificateDer::from_pem_file(format!("{folder}/certificate.pem")).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::from_pem_file(format!("{folder}/key.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
        Server::started(Some(Arc::new(config)), handler)
    }

    fn started(
        tls: Option<Arc<rustls::ServerConfig>>,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (log, sent, stop) =
            (Arc::new(Mutex::new(Vec::new())), Arc::default(), Arc::new(AtomicBool::new(false)));
        let server =
            Server { address, log: Arc::clone(&log), sent: Arc::clone(&sent), stop: Arc::clone(&stop) };
        let handler: Arc<Handler> = Arc::new(handler);
        let number = Arc::new(AtomicU64::new(0));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let (handler, log, sent) = (Arc::clone(&handler), Arc::clone(&log), Arc::clone(&sent));
                let (stop, number) = (Arc::clone(&stop), Arc::clone(&number));
                let tls = tls.clone();
                std::thread::spawn(move || {
                    stream.set_nodelay(true).unwrap();
                    let shared =
                        Shared { handler: &*handler, log: &log, sent: &sent, stop: &stop, number: &number };
                    drop(match tls {
                        None => serve(stream, &shared),
                        Some(tls) => {
                            let connection = rustls::ServerConnection::new(tls).unwrap();
                            serve(rustls::StreamOwned::new(connection, stream), &shared)
                        }
                    });
                });
            }
        });
        server
    }

    /// An address at it.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().iter().map(|(request, _)| request.clone()).collect()
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

struct Shared<'a> {
    handler: &'a Handler,
    log: &'a Mutex<Vec<(Request, u16)>>,
    sent: &'a AtomicU64,
    stop: &'a AtomicBool,
    number: &'a AtomicU64,
}

fn serve(stream: impl Read + Write, shared: &Shared<'_>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader, shared.number)? {
        let mut reply = (shared.handler)(&request);
        if request.method == "HEAD" {
            reply.announced = reply.announced.or(Some(reply.body.len()));
            reply.body.clear();
        }
        shared.log.lock().unwrap().push((request, reply.status));
        let writer = reader.get_mut();
        if let Some(garbage) = &reply.garbage {
            writer.write_all(garbage)?;
            return writer.flush();
        }
        let mut head = format!("HTTP/1.1 {} x\r\n", reply.status);
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &if reply.chunked {
            "Transfer-Encoding: chunked\r\n\r\n".to_owned()
        } else {
            format!("Content-Length: {}\r\n\r\n", reply.announced.unwrap_or(reply.body.len()))
        };
        writer.write_all(head.as_bytes())?;
        let end = reply.cut.or(reply.silent).unwrap_or(reply.body.len()).min(reply.body.len());
        for piece in reply.body[..end].chunks(if reply.slow.is_some() { 1 } else { end.max(1) }) {
            if let Some(pause) = reply.slow {
                writer.flush()?;
                std::thread::sleep(pause);
            }
            if reply.chunked {
                write!(writer, "{:x}\r\n", piece.len())?;
            }
            writer.write_all(piece)?;
            if reply.chunked {
                writer.write_all(b"\r\n")?;
            }
        }
        if reply.chunked {
            writer.write_all(b"0\r\n\r\n")?;
        }
        writer.flush()?;
        shared.sent.fetch_add(end as u64, Ordering::SeqCst);
        if reply.silent.is_some() {
            while !shared.stop.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        if reply.cut.is_some() || reply.silent.is_some() {
            return Ok(());
        }
    }
    Ok(())
}

fn read_request(reader: &mut impl BufRead, number: &AtomicU64) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let method = line.split(' ').next().unwrap_or_default().to_owned();
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length = length.and_then(|(_, value)| value.parse().ok()).unwrap_or(0);
    reader.by_ref().take(length).read_to_end(&mut Vec::new())?;
    let number = number.fetch_add(1, Ordering::SeqCst);
    Ok(Some(Request { method, path: decoded(path), query: query.to_owned(), headers, number }))
}

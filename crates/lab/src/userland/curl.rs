//! `curl`, as far as people use it to look at a mesh: its options, messages and exit codes.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Process, Sink};

const USER_AGENT: &str = "curl/8.14.1";
/// How long a request may take when nobody says.
const PATIENCE: Duration = Duration::from_secs(600);
/// What curl itself waits for a connection when nobody says.
const CONNECT_PATIENCE: Duration = Duration::from_secs(300);

#[derive(Clone, Default)]
struct Options {
    urls: Vec<String>,
    silent: bool,
    show_error: bool,
    fail: bool,
    fail_with_body: bool,
    include: bool,
    head: bool,
    insecure: bool,
    follow: bool,
    verbose: bool,
    outputs: Vec<String>,
    write_out: Option<String>,
    method: Option<String>,
    headers: Vec<String>,
    data: Option<Vec<u8>>,
    get: bool,
    user_agent: Option<String>,
    user: Option<String>,
    cookie: Option<String>,
    max_time: Option<Duration>,
    connect_timeout: Option<Duration>,
    retry: u32,
    retry_all: bool,
    retry_refused: bool,
    retry_delay: Option<Duration>,
    max_redirects: usize,
    /// (host, port) → address.
    resolve: BTreeMap<(String, u16), IpAddr>,
    connect_to: Option<(String, u16)>,
    ca: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

/// A curl error: exit code and message.
struct Failure(i32, String);

impl Failure {
    fn new(code: i32, message: impl Into<String>) -> Self {
        Self(code, message.into())
    }
}

pub(super) async fn main(arguments: &[String], process: Process) -> i32 {
    let options = match read(arguments, &process).await {
        Ok(options) => options,
        Err(Failure(code, message)) => {
            if code == 0 {
                let _ = process.stdout.write(message.as_bytes()).await;
            } else {
                process.complain(format!("curl: {message}")).await;
            }
            return code;
        }
    };
    let mut status = 0;
    for (i, url) in options.urls.iter().enumerate() {
        status = transfer(url, options.outputs.get(i), &options, &process).await;
    }
    status
}

async fn transfer(url: &str, output: Option<&String>, options: &Options, process: &Process) -> i32 {
    let mut attempt = 0;
    loop {
        let mut report = Report::new(url);
        let limit = options.max_time.unwrap_or(PATIENCE);
        let work = fetch(url, output, options, process, &mut report);
        let result = match tokio::time::timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => {
                let waited = report.started.elapsed().as_millis();
                let text = if report.connected.is_none() {
                    format!("Connection timed out after {waited} milliseconds")
                } else {
                    format!("Operation timed out after {waited} milliseconds with {} bytes received", report.downloaded)
                };
                Err(Failure::new(28, text))
            }
        };
        let transient = match &result {
            Ok(()) => matches!(report.status, 408 | 429 | 500 | 502 | 503 | 504),
            Err(Failure(28, _)) => true,
            Err(Failure(7, _)) => options.retry_refused || options.retry_all,
            Err(Failure(22, _)) => matches!(report.status, 408 | 429 | 500 | 502 | 503 | 504) || options.retry_all,
            Err(_) => options.retry_all,
        };
        if transient && attempt < options.retry {
            let delay = options.retry_delay.unwrap_or(Duration::from_secs(1 << attempt.min(6)));
            attempt += 1;
            tokio::time::sleep(delay).await;
            continue;
        }
        let (code, message) = match result {
            Ok(()) => (0, String::new()),
            Err(Failure(code, message)) => (code, message),
        };
        if code != 0 && (!options.silent || options.show_error) {
            process.complain(format!("curl: ({code}) {message}")).await;
        }
        if let Some(format) = &options.write_out {
            let text = report.write_out(format, code, &message);
            let _ = process.stdout.write(text.as_bytes()).await;
        }
        return code;
    }
}

/// What is known of a transfer so far.
struct Report {
    url: String,
    started: Instant,
    resolved: Option<Duration>,
    connected: Option<Duration>,
    secured: Option<Duration>,
    first_byte: Option<Duration>,
    remote: Option<SocketAddr>,
    local: Option<SocketAddr>,
    status: u16,
    downloaded: usize,
    uploaded: usize,
    header_size: usize,
    content_type: String,
    redirects: usize,
    redirect_url: String,
    connects: usize,
    method: String,
    scheme: String,
    headers: Option<http::HeaderMap>,
}

impl Report {
    fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            started: Instant::now(),
            resolved: None,
            connected: None,
            secured: None,
            first_byte: None,
            remote: None,
            local: None,
            status: 0,
            downloaded: 0,
            uploaded: 0,
            header_size: 0,
            content_type: String::new(),
            redirects: 0,
            redirect_url: String::new(),
            connects: 0,
            method: "GET".to_owned(),
            scheme: String::new(),
            headers: None,
        }
    }

    fn write_out(&self, format: &str, code: i32, message: &str) -> String {
        let seconds = |d: Option<Duration>| format!("{:.6}", d.unwrap_or_default().as_secs_f64());
        let ip = |a: Option<SocketAddr>| a.map(|a| a.ip().to_string()).unwrap_or_default();
        let port = |a: Option<SocketAddr>| a.map_or("-1".to_owned(), |a| a.port().to_string());
        let mut out = String::new();
        let mut rest = format;
        while let Some(at) = rest.find(['%', '\\']) {
            out += &rest[..at];
            rest = &rest[at..];
            if let Some(after) = rest.strip_prefix("%{") {
                let Some(end) = after.find('}') else { break };
                out += &match &after[..end] {
                    "http_code" | "response_code" => format!("{:03}", self.status),
                    "time_total" => seconds(Some(self.started.elapsed())),
                    "time_namelookup" => seconds(self.resolved),
                    "time_connect" => seconds(self.connected),
                    "time_appconnect" => seconds(self.secured),
                    "time_pretransfer" => seconds(self.secured.or(self.connected)),
                    "time_starttransfer" => seconds(self.first_byte),
                    "time_redirect" => seconds(None),
                    "size_download" => self.downloaded.to_string(),
                    "size_upload" => self.uploaded.to_string(),
                    "size_header" => self.header_size.to_string(),
                    "speed_download" => {
                        ((self.downloaded as f64 / self.started.elapsed().as_secs_f64().max(1e-6)) as u64).to_string()
                    }
                    "remote_ip" => ip(self.remote),
                    "remote_port" => port(self.remote),
                    "local_ip" => ip(self.local),
                    "local_port" => port(self.local),
                    "url" | "url_effective" => self.url.clone(),
                    "num_redirects" => self.redirects.to_string(),
                    "redirect_url" => self.redirect_url.clone(),
                    "num_connects" => self.connects.to_string(),
                    "content_type" => self.content_type.clone(),
                    "errormsg" => message.to_owned(),
                    "exitcode" => code.to_string(),
                    "method" => self.method.clone(),
                    "scheme" => self.scheme.clone(),
                    "http_version" => "1.1".to_owned(),
                    "ssl_verify_result" => "0".to_owned(),
                    "header_json" => self.header_json(),
                    header if header.starts_with("header{") => String::new(),
                    other => format!("%{{{other}}}"),
                };
                rest = &after[end + 1..];
                continue;
            }
            let mut chars = rest.chars();
            let first = chars.next();
            match (first, chars.next()) {
                (Some('%'), Some('%')) => out.push('%'),
                (Some('\\'), Some('n')) => out.push('\n'),
                (Some('\\'), Some('t')) => out.push('\t'),
                (Some('\\'), Some('r')) => out.push('\r'),
                (Some('\\'), Some('\\')) => out.push('\\'),
                (Some(a), Some(b)) => out.extend([a, b]),
                (Some(a), None) => out.push(a),
                (None, _) => {}
            }
            rest = chars.as_str();
        }
        out + rest
    }

    fn header_json(&self) -> String {
        let mut all: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (name, value) in self.headers.iter().flat_map(http::HeaderMap::iter) {
            all.entry(name.as_str()).or_default().push(String::from_utf8_lossy(value.as_bytes()).into_owned());
        }
        serde_json::to_string(&all).unwrap_or_default()
    }
}

/// One transfer with its redirects.
async fn fetch(
    url: &str,
    output: Option<&String>,
    options: &Options,
    process: &Process,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut url = url.to_owned();
    let mut method = options.method.clone();
    let mut data = options.data.clone();
    if options.get
        && let Some(query) = data.take()
    {
        let joint = if url.contains('?') { '&' } else { '?' };
        url = format!("{url}{joint}{}", String::from_utf8_lossy(&query));
    }
    loop {
        let target = Target::parse(&url)?;
        report.url.clone_from(&target.url);
        report.scheme = target.scheme.to_uppercase();
        let verb = match (&method, &data) {
            (Some(method), _) => method.clone(),
            (None, _) if options.head => "HEAD".to_owned(),
            (None, Some(_)) => "POST".to_owned(),
            (None, None) => "GET".to_owned(),
        };
        report.method.clone_from(&verb);
        let response = exchange(&target, &verb, data.as_deref(), options, process, report).await?;
        report.status = response.status().as_u16();
        report.headers = Some(response.headers().clone());
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        report.content_type = header("content-type").unwrap_or_default();
        let location = header("location").filter(|_| response.status().is_redirection());
        if let Some(location) = location {
            let next = target.join(&location);
            report.redirect_url.clone_from(&next);
            if options.follow {
                if report.redirects >= options.max_redirects {
                    return Err(Failure::new(47, format!("Maximum ({}) redirects followed", options.max_redirects)));
                }
                report.redirects += 1;
                if matches!(report.status, 301..=303) && verb != "HEAD" && options.method.is_none() {
                    (method, data) = (None, None);
                }
                if options.include || options.head {
                    let sink = sink(output, process).await?;
                    write(&sink, head_text(&response).as_bytes()).await?;
                }
                url = next;
                continue;
            }
        }
        if options.fail && report.status >= 400 {
            return Err(Failure::new(22, format!("The requested URL returned error: {}", report.status)));
        }
        let sink = sink(output, process).await?;
        if options.include || options.head {
            write(&sink, head_text(&response).as_bytes()).await?;
        }
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| receive_failure(&error, report.downloaded))?;
            if let Some(bytes) = frame.data_ref() {
                report.downloaded += bytes.len();
                write(&sink, bytes).await?;
            }
        }
        if options.fail_with_body && report.status >= 400 {
            return Err(Failure::new(22, format!("The requested URL returned error: {}", report.status)));
        }
        return Ok(());
    }
}

async fn sink(output: Option<&String>, process: &Process) -> Result<Sink, Failure> {
    match output.map(String::as_str) {
        None | Some("-" | "/dev/stdout") => Ok(process.stdout.clone()),
        Some("/dev/null") => Ok(Sink::null()),
        Some("/dev/stderr") => Ok(process.stderr.clone()),
        Some(path) => match tokio::fs::File::create(process.place(path)).await {
            Ok(file) => Ok(Sink::new(file)),
            Err(_) => Err(Failure::new(23, format!("Failed to open the file {path}"))),
        },
    }
}

async fn write(sink: &Sink, bytes: &[u8]) -> Result<(), Failure> {
    sink.write(bytes).await.map_err(|_| Failure::new(23, "Failure writing output to destination"))
}

/// Connects, sends one request and returns the head of the answer.
async fn exchange(
    target: &Target,
    method: &str,
    data: Option<&[u8]>,
    options: &Options,
    process: &Process,
    report: &mut Report,
) -> Result<http::Response<Incoming>, Failure> {
    let limit = options.connect_timeout.unwrap_or(CONNECT_PATIENCE);
    let started = Instant::now();
    let connecting = connect(target, options, process, report);
    let stream = match tokio::time::timeout(limit, connecting).await {
        Ok(stream) => stream?,
        Err(_) => {
            let waited = started.elapsed().as_millis();
            return Err(Failure::new(28, format!("Connection timed out after {waited} milliseconds")));
        }
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| Failure::new(56, e.to_string()))?;
    // The connection ends with the response body, whose task it is.
    tokio::spawn(stolos_serve::meter::inherit(async move {
        let _ = connection.with_upgrades().await;
    }));
    let request = request(target, method, data, options)?;
    if options.verbose {
        let path = request.uri();
        note(process, options, '>', &format!("{method} {path} HTTP/1.1")).await;
        for (name, value) in request.headers() {
            let line = format!("{}: {}", title(name.as_str()), String::from_utf8_lossy(value.as_bytes()));
            note(process, options, '>', &line).await;
        }
        note(process, options, '>', "").await;
    }
    report.uploaded = data.map_or(0, <[u8]>::len);
    let response = sender.send_request(request).await.map_err(|error| receive_failure(&error, 0))?;
    report.first_byte = Some(report.started.elapsed());
    report.header_size = head_text(&response).len();
    if options.verbose {
        for line in head_text(&response).lines() {
            note(process, options, '<', line).await;
        }
    }
    Ok(response)
}

fn request(
    target: &Target,
    method: &str,
    data: Option<&[u8]>,
    options: &Options,
) -> Result<Request<Full<Bytes>>, Failure> {
    let bad = |what: &str| Failure::new(3, format!("URL rejected: {what}"));
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| bad("Malformed method"))?;
    let uri: Uri = target.path.parse().map_err(|_| bad("Malformed input to a URL function"))?;
    let mut request = Request::new(Full::new(Bytes::copy_from_slice(data.unwrap_or_default())));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    let value = |text: &str| HeaderValue::from_str(text).map_err(|_| bad("Bad header"));
    headers.insert("host", value(&target.authority)?);
    if let Some(user) = options.user.as_deref().or(target.user.as_deref()) {
        let token = base64::engine::general_purpose::STANDARD.encode(user);
        headers.insert("authorization", value(&format!("Basic {token}"))?);
    }
    headers.insert("user-agent", value(options.user_agent.as_deref().unwrap_or(USER_AGENT))?);
    headers.insert("accept", value("*/*")?);
    if let Some(cookie) = &options.cookie {
        headers.insert("cookie", value(cookie)?);
    }
    if let Some(data) = data {
        headers.insert("content-length", value(&data.len().to_string())?);
        headers.insert("content-type", value("application/x-www-form-urlencoded")?);
    }
    let mut given: Vec<HeaderName> = Vec::new();
    for header in &options.headers {
        if let Some((name, text)) = header.split_once(':') {
            let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| bad("Bad header"))?;
            if text.trim().is_empty() {
                headers.remove(name);
            } else if given.contains(&name) {
                headers.append(name, value(text.trim())?);
            } else {
                headers.insert(name.clone(), value(text.trim())?);
                given.push(name);
            }
        } else if let Some(name) = header.strip_suffix(';') {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("Bad header"))?;
            headers.insert(name, HeaderValue::from_static(""));
        }
    }
    Ok(request)
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

async fn connect(
    target: &Target,
    options: &Options,
    process: &Process,
    report: &mut Report,
) -> Result<Box<dyn Duplex>, Failure> {
    let (host, port) = match &options.connect_to {
        Some((host, port)) => (host.as_str(), *port),
        None => (target.host.as_str(), target.port),
    };
    let fixed = options.resolve.get(&(host.to_owned(), port)).or_else(|| options.resolve.get(&("*".to_owned(), port)));
    let addresses = match fixed {
        Some(address) => vec![*address],
        None => {
            let found = process.net.resolve(host).await;
            found.map_err(|_| Failure::new(6, format!("Could not resolve host: {host}")))?
        }
    };
    report.resolved = Some(report.started.elapsed());
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    let mut stream = None;
    for address in addresses {
        let to = SocketAddr::new(address, port);
        note(process, options, '*', &format!("  Trying {to}...")).await;
        match process.net.dial(to).await {
            Ok(found) => {
                report.remote = Some(to);
                report.local = found.local_addr().ok();
                stream = Some(found);
                break;
            }
            Err(error) => last = error,
        }
    }
    let Some(stream) = stream else {
        let waited = report.started.elapsed().as_millis();
        note(process, options, '*', &format!("connect failed: {last}")).await;
        let message = format!("Failed to connect to {host} port {port} after {waited} ms: Could not connect to server");
        return Err(Failure::new(7, message));
    };
    report.connects += 1;
    report.connected = Some(report.started.elapsed());
    let remote = report.remote.map(|r| r.ip().to_string()).unwrap_or_default();
    note(process, options, '*', &format!("Connected to {host} ({remote}) port {port}")).await;
    if target.scheme == "http" {
        return Ok(Box::new(stream));
    }
    let config = tls(options, process).await?;
    let name = ServerName::try_from(target.host.clone()).map_err(|_| Failure::new(3, "URL rejected: bad host name"))?;
    let secured = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.map_err(|error| {
        let certificate = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
        match certificate {
            Some(rustls::Error::InvalidCertificate(problem)) => {
                Failure::new(60, format!("SSL certificate problem: {problem:?}"))
            }
            _ => Failure::new(35, format!("TLS connect error: {error}")),
        }
    })?;
    report.secured = Some(report.started.elapsed());
    Ok(Box::new(secured))
}

async fn tls(options: &Options, process: &Process) -> Result<Arc<rustls::ClientConfig>, Failure> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let broken = |error: rustls::Error| Failure::new(35, error.to_string());
    let builder =
        rustls::ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = builder.map_err(broken)?;
    let builder = if options.insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider)))
    } else {
        let mut roots = rustls::RootCertStore::empty();
        if let Some(path) = &options.ca {
            for certificate in certificates(path, process).await? {
                let _ = roots.add(certificate);
            }
        }
        builder.with_root_certificates(roots)
    };
    let mut config = match &options.cert {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let chain = certificates(path, process).await?;
            let key = options.key.as_deref().unwrap_or(path);
            let pem = tokio::fs::read(process.place(key)).await.unwrap_or_default();
            let unusable = || Failure::new(58, format!("could not load PEM private key from {key}"));
            let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| unusable())?;
            builder.with_client_auth_cert(chain, key).map_err(|_| unusable())?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

async fn certificates(path: &str, process: &Process) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let unusable = || Failure::new(77, format!("error adding trust anchors from file: {path}"));
    let pem = tokio::fs::read(process.place(path)).await.map_err(|_| unusable())?;
    CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|_| unusable())
}

/// `-k`: believes every certificate.
#[derive(Debug)]
struct Anyone(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

async fn note(process: &Process, options: &Options, mark: char, text: &str) {
    if options.verbose {
        process.complain(format!("{mark} {text}")).await;
    }
}

fn receive_failure(error: &hyper::Error, received: usize) -> Failure {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            if error.kind() == io::ErrorKind::ConnectionReset {
                return Failure::new(56, "Recv failure: Connection reset by peer");
            }
            if error.kind() == io::ErrorKind::BrokenPipe {
                return Failure::new(55, "Send failure: Broken pipe");
            }
        }
        source = cause.source();
    }
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return if received == 0 {
            Failure::new(52, "Empty reply from server")
        } else {
            Failure::new(18, "transfer closed with outstanding read data remaining")
        };
    }
    if error.is_parse() {
        return Failure::new(1, "Received HTTP/0.9 when not allowed");
    }
    Failure::new(56, format!("Recv failure: {error}"))
}

fn head_text(response: &http::Response<Incoming>) -> String {
    let status = response.status();
    let reason = status.canonical_reason().unwrap_or("");
    let mut text = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16());
    for (name, value) in response.headers() {
        text += &format!("{name}: {}\r\n", String::from_utf8_lossy(value.as_bytes()));
    }
    text + "\r\n"
}

/// `content-type` → `Content-Type`, for what curl shows of its own headers.
fn title(name: &str) -> String {
    let parts = name.split('-').map(|part| {
        let mut chars = part.chars();
        chars.next().map(|c| c.to_ascii_uppercase()).into_iter().chain(chars).collect::<String>()
    });
    parts.collect::<Vec<_>>().join("-")
}

/// A URL taken apart.
struct Target {
    url: String,
    scheme: &'static str,
    user: Option<String>,
    host: String,
    port: u16,
    authority: String,
    path: String,
}

impl Target {
    fn parse(url: &str) -> Result<Self, Failure> {
        let (scheme, rest) = match url.split_once("://") {
            Some(("http" | "HTTP", rest)) => ("http", rest),
            Some(("https" | "HTTPS", rest)) => ("https", rest),
            Some((other, _)) => return Err(Failure::new(1, format!("Protocol \"{other}\" not supported"))),
            None => ("http", url),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let path = path.split('#').next().unwrap_or("");
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let (user, authority) = match authority.rsplit_once('@') {
            Some((user, authority)) => (Some(user.to_owned()), authority),
            None => (None, authority),
        };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && !host.ends_with(':') => {
                let port = port.parse().map_err(|_| {
                    Failure::new(3, "URL rejected: Port number was not a decimal number between 0 and 65535")
                })?;
                (host, port)
            }
            _ => (authority, if scheme == "http" { 80 } else { 443 }),
        };
        if host.is_empty() {
            return Err(Failure::new(3, "URL rejected: No host part in the URL"));
        }
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let url = if path == "/" && !url.ends_with('/') { url + "/" } else { url };
        Ok(Self {
            url,
            scheme,
            user,
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            authority: authority.to_owned(),
            path,
        })
    }

    fn join(&self, location: &str) -> String {
        if location.contains("://") {
            location.to_owned()
        } else if let Some(rest) = location.strip_prefix("//") {
            format!("{}://{rest}", self.scheme)
        } else if location.starts_with('/') {
            format!("{}://{}{location}", self.scheme, self.authority)
        } else {
            let folder = self.path.split('?').next().and_then(|p| p.rsplit_once('/')).map_or("", |(f, _)| f);
            format!("{}://{}{folder}/{location}", self.scheme, self.authority)
        }
    }
}

async fn read(arguments: &[String], process: &Process) -> Result<Options, Failure> {
    let mut options = Options { max_redirects: 50, ..Options::default() };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == "--" {
            options.urls.extend(rest.by_ref().cloned());
        } else if let Some(long) = argument.strip_prefix("--") {
            let (name, inline) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (long, None),
            };
            let mut value = || inline.clone().or_else(|| rest.next().cloned());
            apply(&mut options, name, argument, &mut value, process).await?;
        } else if argument.starts_with('-') && argument.len() > 1 {
            let letters: Vec<char> = argument[1..].chars().collect();
            let mut i = 0;
            while i < letters.len() {
                let name = long(letters[i]).ok_or_else(|| unknown(&format!("-{}", letters[i])))?;
                let remaining: String = letters[i + 1..].iter().collect();
                let mut taken = false;
                let mut value = || {
                    taken = true;
                    if remaining.is_empty() { rest.next().cloned() } else { Some(remaining.clone()) }
                };
                apply(&mut options, name, argument, &mut value, process).await?;
                if taken {
                    break;
                }
                i += 1;
            }
        } else {
            options.urls.push(argument.clone());
        }
    }
    if options.urls.is_empty() {
        return Err(Failure::new(2, "(2) no URL specified\ncurl: try 'curl --help' for more information"));
    }
    Ok(options)
}

fn long(letter: char) -> Option<&'static str> {
    Some(match letter {
        's' => "silent",
        'S' => "show-error",
        'f' => "fail",
        'i' => "include",
        'I' => "head",
        'k' => "insecure",
        'L' => "location",
        'v' => "verbose",
        'o' => "output",
        'w' => "write-out",
        'X' => "request",
        'H' => "header",
        'd' => "data",
        'G' => "get",
        'A' => "user-agent",
        'u' => "user",
        'b' => "cookie",
        'm' => "max-time",
        'E' => "cert",
        'V' => "version",
        'h' => "help",
        'N' => "no-buffer",
        '4' => "ipv4",
        'g' => "globoff",
        'q' => "disable",
        '#' => "progress-bar",
        'e' => "referer",
        _ => return None,
    })
}

fn unknown(option: &str) -> Failure {
    Failure::new(2, format!("option {option}: is unknown\ncurl: try 'curl --help' for more information"))
}

async fn apply(
    options: &mut Options,
    name: &str,
    written: &str,
    value: &mut (dyn FnMut() -> Option<String> + Send),
    process: &Process,
) -> Result<(), Failure> {
    let mut needed = || {
        value().ok_or_else(|| {
            Failure::new(
                2,
                format!("option {written}: requires parameter\ncurl: try 'curl --help' for more information"),
            )
        })
    };
    let seconds = |text: String| {
        let parsed = text.parse::<f64>().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
        parsed.ok_or_else(|| Failure::new(2, format!("option {written}: expected a proper numerical parameter")))
    };
    match name {
        "silent" => options.silent = true,
        "show-error" => options.show_error = true,
        "fail" => options.fail = true,
        "fail-with-body" => options.fail_with_body = true,
        "include" | "show-headers" => options.include = true,
        "head" => options.head = true,
        "insecure" => options.insecure = true,
        "location" | "location-trusted" => options.follow = true,
        "verbose" => options.verbose = true,
        "output" => options.outputs.push(needed()?),
        "write-out" => options.write_out = Some(needed()?),
        "request" => options.method = Some(needed()?),
        "header" => options.headers.push(needed()?),
        "data" | "data-ascii" | "data-raw" | "data-binary" | "json" => {
            let text = needed()?;
            let more = match text.strip_prefix('@').filter(|_| name != "data-raw") {
                Some(path) => {
                    let read = if path == "-" {
                        process.stdin.read_all().await
                    } else {
                        tokio::fs::read(process.place(path)).await
                    };
                    let mut bytes = read.map_err(|_| Failure::new(26, format!("Failed to open {path}")))?;
                    if name == "data" {
                        bytes.retain(|b| *b != b'\n' && *b != b'\r');
                    }
                    bytes
                }
                None => text.into_bytes(),
            };
            match &mut options.data {
                Some(data) => {
                    data.push(b'&');
                    data.extend(more);
                }
                None => options.data = Some(more),
            }
            if name == "json" {
                options.headers.insert(0, "Content-Type: application/json".to_owned());
            }
        }
        "get" => options.get = true,
        "user-agent" => options.user_agent = Some(needed()?),
        "referer" => {
            let text = format!("Referer: {}", needed()?);
            options.headers.push(text);
        }
        "user" => options.user = Some(needed()?),
        "cookie" => options.cookie = Some(needed()?),
        "max-time" => options.max_time = Some(seconds(needed()?)?).filter(|t| !t.is_zero()),
        "connect-timeout" => options.connect_timeout = Some(seconds(needed()?)?).filter(|t| !t.is_zero()),
        "retry" => options.retry = needed()?.parse().unwrap_or(0),
        "retry-delay" => options.retry_delay = Some(seconds(needed()?)?),
        "retry-all-errors" => options.retry_all = true,
        "retry-connrefused" => options.retry_refused = true,
        "retry-max-time" => {
            needed()?;
        }
        "max-redirs" => options.max_redirects = needed()?.parse().unwrap_or(50),
        "resolve" => {
            let text = needed()?;
            let bad = || Failure::new(49, format!("Couldn't parse CURLOPT_RESOLVE entry '{text}'"));
            let mut parts = text.trim_start_matches('+').splitn(3, ':');
            let (Some(host), Some(port), Some(address)) = (parts.next(), parts.next(), parts.next()) else {
                return Err(bad());
            };
            let address = address.split(',').next().unwrap_or("").trim_matches(['[', ']']);
            let entry = (port.parse().map_err(|_| bad())?, address.parse().map_err(|_| bad())?);
            options.resolve.insert((host.to_owned(), entry.0), entry.1);
        }
        "connect-to" => {
            let text = needed()?;
            let parts: Vec<&str> = text.split(':').collect();
            if let [_, _, host, port] = parts[..] {
                options.connect_to = Some((host.to_owned(), port.parse().unwrap_or(0)));
            }
        }
        "cacert" => options.ca = Some(needed()?),
        "cert" => options.cert = Some(needed()?),
        "key" => options.key = Some(needed()?),
        "version" => {
            let text = format!("{USER_AGENT} (stolos-lab, built-in stand-in)\nProtocols: http https\n");
            return Err(Failure::new(0, text));
        }
        "help" => return Err(Failure::new(0, "Usage: curl [options...] <url>\n")),
        "http1.1" | "no-buffer" | "ipv4" | "globoff" | "disable" | "progress-bar" | "no-progress-meter"
        | "compressed" | "no-keepalive" | "path-as-is" | "tlsv1.2" | "tlsv1.3" => {}
        "noproxy" | "tls-max" => {
            needed()?;
        }
        _ => return Err(unknown(written)),
    }
    Ok(())
}

//! Access log lines, in the format the control plane asks for.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::metrics::Timestamp;

/// One access log: its format, and which entries it takes.
#[derive(Debug, PartialEq)]
pub(crate) struct Log {
    pub(crate) format: Format,
    /// Only entries with one of these response flags; `None` takes all.
    pub(crate) only_flags: Option<Vec<String>>,
}

/// How a line is written.
#[derive(Debug, PartialEq)]
pub(crate) enum Format {
    Json(Vec<(String, Value)>),
    Text(Vec<Part>),
}

/// One value of a JSON line.
#[derive(Debug, PartialEq)]
pub(crate) enum Value {
    /// One operator alone keeps its type and may be null.
    Alone(Operator),
    Mixed(Vec<Part>),
    Object(Vec<(String, Value)>),
}

/// A piece of text.
#[derive(Debug, PartialEq)]
pub(crate) enum Part {
    Literal(String),
    Operator(Operator),
}

/// `%…%`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operator {
    StartTime,
    Method,
    Path,
    Authority,
    Protocol,
    RequestHeader(HeaderName, Option<usize>),
    ResponseHeader(HeaderName, Option<usize>),
    ResponseCode,
    ResponseFlags,
    ResponseCodeDetails,
    TerminationDetails,
    TransportFailure,
    BytesReceived,
    BytesSent,
    Duration,
    ResponseDuration,
    UpstreamHost,
    UpstreamCluster,
    UpstreamLocalAddress,
    UpstreamPeerUri,
    DownstreamPeerUri,
    DownstreamLocalAddress,
    DownstreamRemoteAddress,
    DownstreamRemoteHost,
    RequestedServerName,
    RouteName,
    FilterChainName,
    AttemptCount,
    /// Known, but nothing here ever has it.
    Nothing,
}

/// An operator nobody here knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("access log operator `%{0}%` is not supported")]
pub(crate) struct Unknown(String);

/// What is told of one request or connection.
#[derive(Default)]
pub(crate) struct Entry<'a> {
    pub(crate) start: Timestamp,
    pub(crate) duration: Duration,
    pub(crate) first_byte: Option<Duration>,
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) authority: &'a str,
    pub(crate) protocol: &'a str,
    pub(crate) request: &'a [(HeaderName, HeaderValue)],
    pub(crate) response: &'a [(HeaderName, HeaderValue)],
    pub(crate) code: u16,
    pub(crate) flags: &'a str,
    pub(crate) details: &'a str,
    pub(crate) failure: &'a str,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) upstream_host: &'a str,
    pub(crate) upstream_cluster: &'a str,
    pub(crate) upstream_local: Option<std::net::SocketAddr>,
    pub(crate) upstream_uri: &'a str,
    pub(crate) downstream_uri: &'a str,
    pub(crate) downstream_local: Option<std::net::SocketAddr>,
    pub(crate) downstream_remote: Option<std::net::SocketAddr>,
    pub(crate) server_name: &'a str,
    pub(crate) route: &'a str,
    pub(crate) chain: &'a str,
    pub(crate) attempts: u32,
}

impl Log {
    /// Whether this log takes the entry.
    fn takes(&self, entry: &Entry<'_>) -> bool {
        let only = self.only_flags.as_ref();
        only.is_none_or(|only| entry.flags.split(',').any(|flag| only.iter().any(|known| known == flag)))
    }

    /// Writes the line for an entry.
    fn write(&self, line: &mut String, entry: &Entry<'_>) {
        match &self.format {
            Format::Json(fields) => write_object(line, fields, entry),
            Format::Text(parts) => write_parts(line, parts, entry),
        }
        let end = line.trim_end_matches('\n').len();
        line.truncate(end);
    }
}

fn write_object(line: &mut String, fields: &[(String, Value)], entry: &Entry<'_>) {
    line.push('{');
    for (at, (key, value)) in fields.iter().enumerate() {
        if at > 0 {
            line.push(',');
        }
        write_quoted(line, key);
        line.push(':');
        match value {
            Value::Object(fields) => write_object(line, fields, entry),
            Value::Mixed(parts) => {
                let mut text = String::new();
                write_parts(&mut text, parts, entry);
                write_quoted(line, &text);
            }
            Value::Alone(operator) => match operator.of(entry) {
                Shown::None => line.push_str("null"),
                Shown::Number(number) => push_number(line, number),
                Shown::Text(text) => write_quoted(line, text),
                Shown::Made(text) => write_quoted(line, &text),
                plain @ (Shown::Address(_) | Shown::Host(_) | Shown::Time(_)) => {
                    line.push('"');
                    plain.push(line);
                    line.push('"');
                }
            },
        }
    }
    line.push('}');
}

fn write_parts(line: &mut String, parts: &[Part], entry: &Entry<'_>) {
    for part in parts {
        match part {
            Part::Literal(text) => line.push_str(text),
            Part::Operator(operator) => operator.of(entry).push(line),
        }
    }
}

fn write_quoted(line: &mut String, text: &str) {
    line.push('"');
    let mut rest = text;
    // What must be escaped is ASCII, so that the text can be cut before and behind it.
    while let Some(at) = rest.bytes().position(|byte| byte < b' ' || byte == b'"' || byte == b'\\') {
        line.push_str(&rest[..at]);
        match rest.as_bytes()[at] {
            b'"' => line.push_str("\\\""),
            b'\\' => line.push_str("\\\\"),
            b'\n' => line.push_str("\\n"),
            b'\r' => line.push_str("\\r"),
            b'\t' => line.push_str("\\t"),
            byte => drop(write!(line, "\\u{byte:04x}")),
        }
        rest = &rest[at + 1..];
    }
    line.push_str(rest);
    line.push('"');
}

/// Writes a number without the machinery of `fmt`: there are a dozen in every line.
fn push_number(line: &mut String, number: u64) {
    line.push_str(itoa::Buffer::new().format(number));
}

fn push_host(line: &mut String, host: IpAddr) {
    let IpAddr::V4(host) = host else {
        let _ = write!(line, "{host}");
        return;
    };
    for (at, octet) in host.octets().into_iter().enumerate() {
        if at > 0 {
            line.push('.');
        }
        push_number(line, octet.into());
    }
}

enum Shown<'a> {
    None,
    Number(u64),
    Text(&'a str),
    Made(String),
    Address(SocketAddr),
    Host(IpAddr),
    Time(Timestamp),
}

impl Shown<'_> {
    /// Writes it as it is.
    fn push(self, line: &mut String) {
        match self {
            Self::None => line.push('-'),
            Self::Number(number) => push_number(line, number),
            Self::Text(text) => line.push_str(text),
            Self::Made(text) => line.push_str(&text),
            Self::Address(SocketAddr::V4(address)) => {
                push_host(line, (*address.ip()).into());
                line.push(':');
                push_number(line, address.port().into());
            }
            Self::Address(address) => drop(write!(line, "{address}")),
            Self::Host(host) => push_host(line, host),
            Self::Time(time) => time.push(line),
        }
    }
}

impl Operator {
    fn of<'a>(&self, entry: &'a Entry<'_>) -> Shown<'a> {
        let text = |text: &'a str| if text.is_empty() { Shown::None } else { Shown::Text(text) };
        let millis = |duration: Duration| Shown::Number(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
        let address = |address: Option<SocketAddr>| address.map_or(Shown::None, Shown::Address);
        let header = |headers: &'a [(HeaderName, HeaderValue)], name: &HeaderName, most: &Option<usize>| {
            let value = headers.iter().find(|(known, _)| known == name).and_then(|(_, value)| value.to_str().ok());
            value.map_or(Shown::None, |value| match most {
                Some(most) => Shown::Made(value.chars().take(*most).collect()),
                None => Shown::Text(value),
            })
        };
        match self {
            Self::StartTime => Shown::Time(entry.start),
            Self::Method => text(entry.method),
            Self::Path => text(entry.path),
            Self::Authority => text(entry.authority),
            Self::Protocol => text(entry.protocol),
            Self::RequestHeader(name, most) => header(entry.request, name, most),
            Self::ResponseHeader(name, most) => header(entry.response, name, most),
            Self::ResponseCode => Shown::Number(entry.code.into()),
            Self::ResponseFlags => Shown::Text(if entry.flags.is_empty() { "-" } else { entry.flags }),
            Self::ResponseCodeDetails => text(entry.details),
            Self::TransportFailure => text(entry.failure),
            Self::BytesReceived => Shown::Number(entry.received),
            Self::BytesSent => Shown::Number(entry.sent),
            Self::Duration => millis(entry.duration),
            Self::ResponseDuration => entry.first_byte.map_or(Shown::None, millis),
            Self::UpstreamHost => text(entry.upstream_host),
            Self::UpstreamCluster => text(entry.upstream_cluster),
            Self::UpstreamLocalAddress => address(entry.upstream_local),
            Self::UpstreamPeerUri => text(entry.upstream_uri),
            Self::DownstreamPeerUri => text(entry.downstream_uri),
            Self::DownstreamLocalAddress => address(entry.downstream_local),
            Self::DownstreamRemoteAddress => address(entry.downstream_remote),
            Self::DownstreamRemoteHost => {
                entry.downstream_remote.map_or(Shown::None, |address| Shown::Host(address.ip()))
            }
            Self::RequestedServerName => text(entry.server_name),
            Self::RouteName => text(entry.route),
            Self::FilterChainName => text(entry.chain),
            Self::AttemptCount => Shown::Number(entry.attempts.into()),
            Self::TerminationDetails | Self::Nothing => Shown::None,
        }
    }

    fn parse(text: &str) -> Result<Self, Unknown> {
        let unknown = || Unknown(text.to_owned());
        let (name, rest) = match text.find(['(', ':']) {
            Some(at) => text.split_at(at),
            None => (text, ""),
        };
        let (argument, most) = match rest.strip_prefix('(') {
            Some(rest) => {
                let (argument, after) = rest.rsplit_once(')').ok_or_else(unknown)?;
                (argument, after.strip_prefix(':'))
            }
            None => ("", rest.strip_prefix(':')),
        };
        let most = most.map(str::parse).transpose().map_err(|_| unknown())?;
        Ok(match name {
            "START_TIME" => Self::StartTime,
            // `%REQ(A?B)%` is A, or B where there is no A.
            "REQ" => match argument.split('?').next_back().unwrap_or_default().to_ascii_lowercase().as_str() {
                ":method" => Self::Method,
                ":path" => Self::Path,
                ":authority" => Self::Authority,
                // No header can be called that; nothing is shown for it.
                name if name.starts_with(':') => Self::Nothing,
                name => Self::RequestHeader(name.parse().map_err(|_| unknown())?, most),
            },
            "RESP" if argument.eq_ignore_ascii_case(":status") => Self::ResponseCode,
            "RESP" => Self::ResponseHeader(argument.parse().map_err(|_| unknown())?, most),
            "PROTOCOL" => Self::Protocol,
            "RESPONSE_CODE" => Self::ResponseCode,
            "RESPONSE_FLAGS" => Self::ResponseFlags,
            "RESPONSE_CODE_DETAILS" => Self::ResponseCodeDetails,
            "CONNECTION_TERMINATION_DETAILS" => Self::TerminationDetails,
            "UPSTREAM_TRANSPORT_FAILURE_REASON" => Self::TransportFailure,
            "BYTES_RECEIVED" => Self::BytesReceived,
            "BYTES_SENT" => Self::BytesSent,
            "DURATION" => Self::Duration,
            "RESPONSE_DURATION" => Self::ResponseDuration,
            "UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS" => Self::UpstreamHost,
            "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Self::UpstreamCluster,
            "UPSTREAM_LOCAL_ADDRESS" => Self::UpstreamLocalAddress,
            "UPSTREAM_PEER_URI_SAN" => Self::UpstreamPeerUri,
            "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Self::AttemptCount,
            "DOWNSTREAM_PEER_URI_SAN" => Self::DownstreamPeerUri,
            "DOWNSTREAM_LOCAL_ADDRESS" => Self::DownstreamLocalAddress,
            "DOWNSTREAM_REMOTE_ADDRESS" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Self::DownstreamRemoteAddress,
            "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Self::DownstreamRemoteHost,
            "REQUESTED_SERVER_NAME" => Self::RequestedServerName,
            "ROUTE_NAME" => Self::RouteName,
            "FILTER_CHAIN_NAME" => Self::FilterChainName,
            "DYNAMIC_METADATA" | "FILTER_STATE" | "CLUSTER_METADATA" => Self::Nothing,
            _ => return Err(unknown()),
        })
    }
}

/// Splits a format text into literals and operators.
pub(crate) fn parts(text: &str) -> Result<Vec<Part>, Unknown> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find('%') {
        let (literal, after) = rest.split_at(start);
        let after = &after[1..];
        let end = after.find('%').ok_or_else(|| Unknown(after.to_owned()))?;
        let (operator, tail) = after.split_at(end);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal.to_owned()));
        }
        parts.push(if operator.is_empty() {
            Part::Literal("%".to_owned())
        } else {
            Part::Operator(Operator::parse(operator)?)
        });
        rest = &tail[1..];
    }
    if !rest.is_empty() {
        parts.push(Part::Literal(rest.to_owned()));
    }
    Ok(parts)
}

/// A JSON format.
pub(crate) fn json(format: &prost_types::Struct) -> Result<Vec<(String, Value)>, Unknown> {
    use prost_types::value::Kind;
    let value = |value: &prost_types::Value| -> Result<Value, Unknown> {
        Ok(match &value.kind {
            Some(Kind::StringValue(text)) => {
                let mut parts = parts(text)?;
                match parts.as_mut_slice() {
                    [Part::Operator(_)] => match parts.remove(0) {
                        Part::Operator(operator) => Value::Alone(operator),
                        literal => Value::Mixed(vec![literal]),
                    },
                    _ => Value::Mixed(parts),
                }
            }
            Some(Kind::StructValue(inner)) => Value::Object(json(inner)?),
            Some(Kind::NumberValue(number)) => Value::Mixed(vec![Part::Literal(number.to_string())]),
            Some(Kind::BoolValue(yes)) => Value::Mixed(vec![Part::Literal(yes.to_string())]),
            _ => Value::Alone(Operator::Nothing),
        })
    };
    format.fields.iter().map(|(key, field)| Ok((key.clone(), value(field)?))).collect()
}

/// Envoy's own text format.
pub(crate) const DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \
    \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// The headers that logs show.
#[derive(Debug, Default)]
pub(crate) struct Headers {
    pub(crate) request: Vec<HeaderName>,
    pub(crate) response: Vec<HeaderName>,
}

/// Which headers these logs show, so that only those are kept until the end.
pub(crate) fn headers(logs: &[Arc<Log>]) -> Headers {
    fn of_part(part: &Part, out: &mut Headers) {
        if let Part::Operator(operator) = part {
            of_operator(operator, out);
        }
    }
    fn of_operator(operator: &Operator, out: &mut Headers) {
        let (name, list) = match operator {
            Operator::RequestHeader(name, _) => (name, &mut out.request),
            Operator::ResponseHeader(name, _) => (name, &mut out.response),
            _ => return,
        };
        if !list.contains(name) {
            list.push(name.clone());
        }
    }
    fn of_fields(fields: &[(String, Value)], out: &mut Headers) {
        for (_, value) in fields {
            match value {
                Value::Alone(operator) => of_operator(operator, out),
                Value::Mixed(parts) => parts.iter().for_each(|part| of_part(part, out)),
                Value::Object(fields) => of_fields(fields, out),
            }
        }
    }
    let mut out = Headers::default();
    for log in logs {
        match &log.format {
            Format::Json(fields) => of_fields(fields, &mut out),
            Format::Text(parts) => parts.iter().for_each(|part| of_part(part, &mut out)),
        }
    }
    out
}

/// Whether any of these logs shows what `wanted` stands for.
pub(crate) fn show(logs: &[Arc<Log>], wanted: &Operator) -> bool {
    fn parts(parts: &[Part], wanted: &Operator) -> bool {
        parts.iter().any(|part| matches!(part, Part::Operator(operator) if operator == wanted))
    }
    fn fields(of: &[(String, Value)], wanted: &Operator) -> bool {
        of.iter().any(|(_, value)| match value {
            Value::Alone(operator) => operator == wanted,
            Value::Mixed(of) => parts(of, wanted),
            Value::Object(of) => fields(of, wanted),
        })
    }
    logs.iter().any(|log| match &log.format {
        Format::Json(of) => fields(of, wanted),
        Format::Text(of) => parts(of, wanted),
    })
}

/// What the log will show of some headers.
pub(crate) fn kept(headers: &HeaderMap, names: &[HeaderName]) -> Vec<(HeaderName, HeaderValue)> {
    names.iter().filter_map(|name| Some((name.clone(), headers.get(name)?.clone()))).collect()
}

thread_local! {
    /// The line that is being written; used only within one call.
    static LINE: RefCell<String> = RefCell::default();
}

/// Writes an entry to every log that takes it.
pub(crate) fn write(logs: &[Arc<Log>], output: &stolos_serve::Output, entry: &Entry<'_>) {
    const USUAL: usize = 4096;
    for log in logs.iter().filter(|log| log.takes(entry)) {
        // Taken, so that an output that logs something itself finds an empty one.
        let mut line = LINE.take();
        line.clear();
        log.write(&mut line, entry);
        output.line(&line);
        if line.capacity() <= USUAL {
            LINE.set(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stolos_xds::message::{string, structure};

    #[test]
    fn a_line_is_what_the_format_says() {
        let format = structure([
            ("response_code", string("%RESPONSE_CODE%")),
            ("flags", string("%RESPONSE_FLAGS%")),
            ("request", string("%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%")),
            ("id", string("%REQ(X-REQUEST-ID)%")),
            ("uri", string("%UPSTREAM_PEER_URI_SAN%")),
            ("agent", string("%REQ(USER-AGENT):3%")),
            ("literal", string("100%%")),
        ]);
        let log = Log { format: Format::Json(json(&format).unwrap()), only_flags: None };
        let line = |log: &Log, entry: &Entry<'_>| {
            let mut line = String::new();
            log.write(&mut line, entry);
            line
        };
        let mut headers = HeaderMap::new();
        headers.insert("x-request-id", "a\"b".parse().unwrap());
        headers.insert("user-agent", "curl".parse().unwrap());
        let headers = kept(
            &headers,
            &super::headers(&[Arc::new(Log { format: Format::Json(json(&format).unwrap()), only_flags: None })])
                .request,
        );
        let entry = Entry { method: "GET", path: "/", code: 200, request: &headers, ..Entry::default() };
        insta::assert_snapshot!(line(&log, &entry), @r#"{"agent":"cur","flags":"-","id":"a\"b","literal":"100%","request":"GET /","response_code":200,"uri":null}"#);
        let text = Log { format: Format::Text(parts("%RESPONSE_CODE% %UPSTREAM_HOST%\n").unwrap()), only_flags: None };
        insta::assert_snapshot!(line(&text, &entry), @"200 -");
        let pseudo = parts("%REQ(:SCHEME)% %RESP(:STATUS)% %REQ(X-NONE?:AUTHORITY)%").unwrap();
        let pseudo = Log { format: Format::Text(pseudo), only_flags: None };
        insta::assert_snapshot!(line(&pseudo, &entry), @"- 200 -");
        let only = Log { only_flags: Some(vec!["NR".into()]), ..text };
        assert!(!only.takes(&entry) && only.takes(&Entry { flags: "UF,NR", ..Entry::default() }));
        let (log, only) = (Arc::new(log), Arc::new(only));
        for (wanted, json, text) in [
            (Operator::UpstreamPeerUri, true, false),
            (Operator::UpstreamHost, false, true),
            (Operator::Path, true, false),
        ] {
            assert_eq!(show(&[Arc::clone(&log)], &wanted), json, "{wanted:?}");
            assert_eq!(show(&[Arc::clone(&only)], &wanted), text, "{wanted:?}");
            assert_eq!(show(&[Arc::clone(&only), Arc::clone(&log)], &wanted), json || text);
        }
        assert_eq!(parts("%SOMETHING%"), Err(Unknown("SOMETHING".into())));
        assert!(parts(DEFAULT).is_ok());
    }

    #[test]
    fn numbers_addresses_and_times_are_written_as_they_display() {
        let shown = |shown: Shown<'_>| {
            let mut line = String::new();
            shown.push(&mut line);
            line
        };
        for number in [0, 7, 10, 1_234_567_890, u64::MAX] {
            assert_eq!(shown(Shown::Number(number)), number.to_string());
        }
        for address in ["127.0.0.1:80", "255.10.0.9:65535", "[::1]:443"] {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(shown(Shown::Address(address)), address.to_string());
            assert_eq!(shown(Shown::Host(address.ip())), address.ip().to_string());
        }
        let now = Timestamp::now();
        assert_eq!(shown(Shown::Time(now)), now.to_string());
        assert_eq!(shown(Shown::Time(now)), now.to_string(), "once more, from memory");
    }

    proptest::proptest! {
        #[test]
        fn quoted_text_is_json(text: String) {
            let mut line = String::new();
            write_quoted(&mut line, &text);
            let read: String = serde_json::from_str(&line).unwrap();
            proptest::prop_assert_eq!(read, text);
        }
    }
}

//! What the first bytes of a connection say: a PROXY header, a TLS ClientHello, an HTTP request. Pure; never panics.

use std::net::{IpAddr, SocketAddr};

/// The most that is buffered of a connection before it is given up: a 16 KiB hello and one more record.
pub(crate) const MOST: usize = 16 * 1024 + 16 * 1024 + 256 + 5;

/// What looking at a beginning gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Look<T> {
    /// Cannot be said before more bytes arrive.
    More,
    /// It is not that.
    No,
    /// It is.
    Yes(T),
}

/// What a PROXY v2 header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proxied {
    /// How many bytes the header takes.
    pub(crate) length: usize,
    /// Source and destination; `None` for a connection of the sender itself.
    pub(crate) addresses: Option<(SocketAddr, SocketAddr)>,
}

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Reads a PROXY v2 header.
pub(crate) fn proxy_v2(bytes: &[u8]) -> Look<Proxied> {
    let known = bytes.len().min(SIGNATURE.len());
    if bytes[..known] != SIGNATURE[..known] {
        return Look::No;
    }
    let Some(head) = bytes.get(12..16) else { return Look::More };
    let body_length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    // Addresses take 36 bytes; more than 4 KiB of extensions is nobody we know.
    if head[0] >> 4 != 2 || body_length > 4096 {
        return Look::No;
    }
    let Some(body) = bytes.get(16..16 + body_length) else { return Look::More };
    let length = 16 + body_length;
    let address = |at: usize, size: usize| -> Option<IpAddr> {
        let raw = body.get(at..at + size)?;
        match size {
            4 => <[u8; 4]>::try_from(raw).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(raw).ok().map(IpAddr::from),
        }
    };
    let port = |at: usize| body.get(at..at + 2).map(|raw| u16::from_be_bytes([raw[0], raw[1]]));
    let pair = |size: usize| {
        let source = SocketAddr::new(address(0, size)?, port(2 * size)?);
        Some((source, SocketAddr::new(address(size, size)?, port(2 * size + 2)?)))
    };
    match (head[0] & 0xf, head[1]) {
        (0, _) => Look::Yes(Proxied { length, addresses: None }),
        (1, 0x11) => pair(4).map_or(Look::No, |both| Look::Yes(Proxied { length, addresses: Some(both) })),
        (1, 0x21) => pair(16).map_or(Look::No, |both| Look::Yes(Proxied { length, addresses: Some(both) })),
        _ => Look::No,
    }
}

/// Writes a PROXY v2 header. Addresses of two families are the sender's mistake and give a header without any.
pub(crate) fn proxy_v2_header(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    let (kind, family, addresses) = match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => (0x21, 0x11, [source.octets(), destination.octets()].concat()),
        (IpAddr::V6(source), IpAddr::V6(destination)) => (0x21, 0x21, [source.octets(), destination.octets()].concat()),
        _ => return [&SIGNATURE[..], &[0x20, 0, 0, 0]].concat(),
    };
    let length = if family == 0x11 { 12_u8 } else { 36 };
    [&SIGNATURE[..], &[kind, family, 0, length], &addresses, &ports].concat()
}

/// What a ClientHello says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The server name, in lower case.
    pub(crate) server_name: Option<String>,
    /// The application protocols, in the client's order.
    pub(crate) protocols: Vec<String>,
}

/// Reads a ClientHello, which may be spread over several records.
pub(crate) fn client_hello(bytes: &[u8]) -> Look<Hello> {
    const HANDSHAKE: u8 = 22;
    const CLIENT_HELLO: u8 = 1;
    const MOST_HELLO: usize = 16 * 1024;

    let mut gathered: Vec<u8> = Vec::new();
    let mut rest = bytes;
    loop {
        match rest.first() {
            None => return Look::More,
            Some(&HANDSHAKE) => {}
            Some(_) => return Look::No,
        }
        if rest.get(1).is_some_and(|major| *major != 3) {
            return Look::No;
        }
        let Some(head) = rest.get(..5) else { return Look::More };
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        if length == 0 || length > 16 * 1024 + 256 {
            return Look::No;
        }
        let present = &rest[5..rest.len().min(5 + length)];
        // The usual hello is in one record and is read where it lies.
        let message: &[u8] = if gathered.is_empty() {
            present
        } else {
            gathered.extend_from_slice(present);
            &gathered
        };
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Look::No;
        }
        if let Some(head) = message.get(1..4) {
            let size = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            if size > MOST_HELLO {
                return Look::No;
            }
            if let Some(body) = message.get(4..4 + size) {
                return hello_body(body).map_or(Look::No, Look::Yes);
            }
        }
        if present.len() < length {
            return Look::More;
        }
        if gathered.is_empty() {
            gathered.extend_from_slice(present);
        }
        rest = &rest[5 + length..];
    }
}

fn hello_body(body: &[u8]) -> Option<Hello> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?;
    reader.short_list(1)?;
    reader.short_list(2)?;
    reader.short_list(1)?;
    let mut hello = Hello::default();
    if reader.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = Reader(reader.short_list(2)?);
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let mut extension = Reader(extensions.short_list(2)?);
        match kind {
            0 => {
                let mut names = Reader(extension.short_list(2)?);
                while !names.0.is_empty() {
                    let host_name = names.number(1)? == 0;
                    let name = names.short_list(2)?;
                    if host_name {
                        hello.server_name = Some(std::str::from_utf8(name).ok()?.to_ascii_lowercase());
                    }
                }
            }
            16 => {
                let mut names = Reader(extension.short_list(2)?);
                while !names.0.is_empty() {
                    hello.protocols.push(String::from_utf8_lossy(names.short_list(1)?).into_owned());
                }
            }
            _ => {}
        }
    }
    Some(hello)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(self.take(bytes)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    }

    fn short_list(&mut self, length_bytes: usize) -> Option<&'a [u8]> {
        let length = self.number(length_bytes)?;
        self.take(length)
    }
}

/// Which HTTP a plain connection speaks, under the name filter chains use.
pub(crate) fn http(bytes: &[u8]) -> Look<&'static str> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const LONGEST_METHOD: usize = 32;
    const LONGEST_LINE: usize = 16 * 1024;

    if bytes.is_empty() {
        return Look::More;
    }
    let known = bytes.len().min(PREFACE.len());
    if bytes[..known] == PREFACE[..known] {
        return if known == PREFACE.len() { Look::Yes("h2c") } else { Look::More };
    }
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let method = bytes.iter().take_while(|byte| token(byte)).count();
    match bytes.get(method) {
        _ if method > LONGEST_METHOD => return Look::No,
        None => return Look::More,
        Some(b' ') if method > 0 => {}
        Some(_) => return Look::No,
    }
    let Some(end) = bytes.iter().take(LONGEST_LINE).position(|byte| *byte == b'\n') else {
        return if bytes.len() >= LONGEST_LINE { Look::No } else { Look::More };
    };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    match line {
        _ if line.ends_with(b" HTTP/1.1") => Look::Yes("http/1.1"),
        _ if line.ends_with(b" HTTP/1.0") => Look::Yes("http/1.0"),
        _ => Look::No,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A ClientHello as it lies on the wire.
    pub(crate) fn hello_bytes(server_name: &str, protocols: &[&str]) -> Vec<u8> {
        let list = |bytes: &[u8], width: usize| {
            let length = bytes.len().to_be_bytes();
            [&length[8 - width..], bytes].concat()
        };
        let alpn: Vec<u8> = protocols.iter().flat_map(|p| list(p.as_bytes(), 1)).collect();
        let name = [&[0][..], &list(server_name.as_bytes(), 2)].concat();
        let extensions =
            [[&[0, 0][..], &list(&list(&name, 2), 2)].concat(), [&[0, 16][..], &list(&list(&alpn, 2), 2)].concat()]
                .concat();
        let body = [&[3, 3][..], &[7; 32], &[0], &list(&[0x13, 1], 2), &[1, 0], &list(&extensions, 2)].concat();
        let message = [&[1][..], &list(&body, 3)].concat();
        [&[22, 3, 1][..], &list(&message, 2)].concat()
    }

    #[test]
    fn a_hello_is_read_whole_in_pieces_and_over_records() {
        let name = "outbound_.5000_._.helloworld.sample.svc.cluster.local";
        let bytes = hello_bytes(&name.to_uppercase(), &["istio", "h2"]);
        let expected = Hello { server_name: Some(name.into()), protocols: vec!["istio".into(), "h2".into()] };
        for cut in 0..bytes.len() {
            assert_eq!(client_hello(&bytes[..cut]), Look::More, "{cut}");
        }
        assert_eq!(client_hello(&bytes), Look::Yes(expected.clone()));
        let message = &bytes[5..];
        for cut in 1..message.len() {
            let record = |part: &[u8]| {
                let length = u16::try_from(part.len()).unwrap().to_be_bytes();
                [&[22, 3, 3][..], &length, part].concat()
            };
            let two = [record(&message[..cut]), record(&message[cut..])].concat();
            assert_eq!(client_hello(&two), Look::Yes(expected.clone()), "{cut}");
        }
        assert_eq!(client_hello(b"GET / HTTP/1.1\r\n"), Look::No);
    }

    #[test]
    fn plain_http_is_told_from_the_rest() {
        let cases: [(&[u8], Look<&str>); 8] = [
            (b"GET / HTTP/1.1\r\n", Look::Yes("http/1.1")),
            (b"GET / HTTP/1.0\n", Look::Yes("http/1.0")),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Look::Yes("h2c")),
            (b"PRI * HT", Look::More),
            (b"OPTIO", Look::More),
            (b"GET / HTTP/1.1", Look::More),
            (b"\x00\x01binary", Look::No),
            (b"HELO there\r\n", Look::No),
        ];
        for (bytes, expected) in cases {
            assert_eq!(http(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    pub(crate) fn proxy_bytes(source: &str, destination: &str) -> Vec<u8> {
        proxy_v2_header(source.parse().unwrap(), destination.parse().unwrap())
    }

    #[test]
    fn a_proxy_header_gives_both_addresses() {
        for (source, destination) in [("10.0.0.1:1234", "10.96.0.1:5000"), ("[fd00::1]:1", "[fd00::2]:65535")] {
            let bytes = proxy_bytes(source, destination);
            for cut in 0..bytes.len() {
                assert_eq!(proxy_v2(&bytes[..cut]), Look::More);
            }
            let addresses = Some((source.parse().unwrap(), destination.parse().unwrap()));
            assert_eq!(proxy_v2(&bytes), Look::Yes(Proxied { length: bytes.len(), addresses }));
        }
        assert_eq!(proxy_v2(b"GET /"), Look::No);
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = (proxy_v2(&bytes), client_hello(&bytes), http(&bytes));
        }

        #[test]
        fn nothing_near_the_real_thing_panics(at in 0usize..200, value: u8, cut in 0usize..250) {
            let mut bytes = hello_bytes("a.b", &["h2"]);
            let length = bytes.len();
            bytes[at % length] = value;
            bytes.truncate(cut);
            let _ = client_hello(&bytes);
            let mut bytes = proxy_bytes("1.2.3.4:5", "6.7.8.9:10");
            let length = bytes.len();
            bytes[at % length] = value;
            bytes.truncate(cut);
            let _ = proxy_v2(&bytes);
        }
    }
}

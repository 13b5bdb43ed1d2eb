//! What a fuzz target does with bytes that are said to be HTTP/1.1.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use http::{HeaderMap, Request, Response, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, ReadBuf};

use super::{guard, headers};

/// A client that says what it has to say in pieces of at most so many bytes, and closes.
struct Script {
    rest: Bytes,
    piece: usize,
}

impl AsyncRead for Script {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let count = self.piece.min(self.rest.len()).min(buffer.remaining());
        buffer.put_slice(&self.rest[..count]);
        self.rest.advance(count);
        Poll::Ready(Ok(()))
    }
}

/// A request that passed the guard: its first line, its headers, and its body if it came whole.
type Passed = (String, HeaderMap, Option<Bytes>);

/// The requests of a connection that the guard lets through, as they would go on.
fn requests(bytes: Bytes, piece: usize) -> Vec<Passed> {
    let passed: Arc<Mutex<Vec<Passed>>> = Arc::default();
    let (keep, most) = (Arc::clone(&passed), bytes.len() + 16);
    let service = service_fn(move |request: Request<Incoming>| {
        let keep = Arc::clone(&keep);
        async move {
            let (mut parts, body) = request.into_parts();
            if guard::judge(&parts).is_ok() {
                check(&parts.headers, parts.uri.path());
                headers::remove_hop_by_hop(&mut parts.headers);
                assert!(!parts.headers.contains_key(header::TRANSFER_ENCODING), "the framing of one hop goes on");
                let line = format!("{} {} {:?}", parts.method, parts.uri, parts.version);
                let body = body.collect().await.ok().map(http_body_util::Collected::to_bytes);
                keep.lock().unwrap_or_else(PoisonError::into_inner).push((line, parts.headers, body));
            }
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let io = TokioIo::new(tokio::io::join(Script { rest: bytes, piece }, tokio::io::sink()));
    let serving = http1::Builder::new().max_buf_size(64 * 1024).serve_connection(io, service);
    let mut serving = std::pin::pin!(serving);
    // hyper lets others run now and then.
    let mut context = Context::from_waker(Waker::noop());
    let ended = (0..most).any(|_| serving.as_mut().poll(&mut context).is_ready());
    assert!(ended, "a client that has closed is waited for");
    let passed = passed.lock().unwrap_or_else(PoisonError::into_inner);
    passed.clone()
}

/// What whoever reads a request next may rely on.
fn check(all: &HeaderMap, path: &str) {
    assert!(all.get_all(header::HOST).iter().count() <= 1, "two hosts");
    let lengths = all.get_all(header::CONTENT_LENGTH).iter().count();
    assert!(lengths + usize::from(all.contains_key(header::TRANSFER_ENCODING)) <= 1, "two lengths");
    let path = headers::normalized(path, true).unwrap_or_else(|| path.to_owned());
    let plainer = headers::normalized(&path, true).filter(|plainer| *plainer != path);
    assert_eq!(plainer, None, "a path that can be made plainer still: {path}");
    assert!(!path.split('/').any(|segment| segment == ".." || segment == "."), "{path}");
}

/// Reads whatever `bytes` are as requests, whole and in pieces: they are the same, and can be read in one way only.
pub(crate) fn requests_alike(bytes: &[u8]) {
    let Some((&cut, bytes)) = bytes.split_first() else { return };
    let bytes = Bytes::copy_from_slice(bytes);
    let whole = requests(bytes.clone(), usize::MAX);
    // A body that breaks off may have been read to another place: the request before it is the same.
    assert_eq!(whole, requests(bytes, usize::from(cut) + 1), "how bytes arrive must not matter");
}

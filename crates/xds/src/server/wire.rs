//! How responses are written: from the shared resources straight into the pieces that the connection takes.
//!
//! A message of its own would be made for each proxy only to be written and thrown away, with a copy of every resource
//! in it; a thousand proxies that get the same would cost a thousand copies more. And a response is written piece by
//! piece, each when the one before has been taken: nobody's is ever in memory as a whole. (tonic's own body writes all
//! of it into one buffer, which keeps the size of the largest for as long as the stream lives: megabytes for a proxy
//! that from then on gets a few hundred bytes at a time.)

use std::convert::Infallible;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::body::{Bytes, Frame};
use prost::bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use prost_types::Any;
use tokio::sync::mpsc;
use tonic::Status;

use super::session::{Answer, Mode};
use crate::version::Resource;

/// A piece ends with the resource that makes it as large as this.
const PIECE: usize = 32 << 10;
/// What goes before a gRPC message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// The responses of one stream, as the body of its HTTP response.
pub(super) struct Responses {
    mode: Mode,
    answers: mpsc::Receiver<Result<Answer, Status>>,
    /// The answer that is being written, and how many of its resources have been.
    writing: Option<(Answer, usize)>,
    ended: bool,
}

impl Responses {
    pub(super) fn new(mode: Mode, answers: mpsc::Receiver<Result<Answer, Status>>) -> Self {
        Self { mode, answers, writing: None, ended: false }
    }

    fn end(&mut self, status: &Status) -> Frame<Bytes> {
        self.ended = true;
        let mut trailers = http::HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            // No header can say its message; the code alone always can be said.
            let _ = Status::new(status.code(), "").add_header(&mut trailers);
        }
        Frame::trailers(trailers)
    }
}

impl hyper::body::Body for Responses {
    type Data = Bytes;
    type Error = Infallible;

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let mode = self.mode;
        let (answer, written) = match self.writing.take() {
            Some(writing) => writing,
            None => match ready!(self.answers.poll_recv(context)) {
                Some(Ok(answer)) => (answer, 0),
                Some(Err(status)) => return Poll::Ready(Some(Ok(self.end(&status)))),
                None => return Poll::Ready(Some(Ok(self.end(&Status::ok(""))))),
            },
        };
        let (piece, written) = piece(mode, &answer, written);
        self.writing = written.map(|written| (answer, written));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

/// What follows of an answer after so many of its resources, and how many are written then; `None` if all of it is.
fn piece(mode: Mode, answer: &Answer, from: usize) -> (Bytes, Option<usize>) {
    let (mut to, mut size) = (from, 0);
    while to < answer.resources.len() && size < PIECE {
        size += in_list(mode, &answer.resources[to]);
        to += 1;
    }
    let ends = to == answer.resources.len();
    size += if from == 0 { PREFIX + begin_length(answer) } else { 0 };
    size += if ends { end_length(mode, answer) } else { 0 };
    let mut buffer = Vec::with_capacity(size);
    if from == 0 {
        let all: usize = answer.resources.iter().map(|resource| in_list(mode, resource)).sum();
        let length = begin_length(answer) + all + end_length(mode, answer);
        buffer.put_u8(0);
        // Beyond 4 GiB there would be nothing to say it with; a proxy takes a sixteenth of that at most.
        buffer.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        put(VERSION, answer.version.as_bytes(), &mut buffer);
    }
    write_resources(mode, answer, from..to, &mut buffer);
    if ends {
        write_end(mode, answer, &mut buffer);
    }
    (buffer.into(), (!ends).then_some(to))
}

/// Fields of `DeltaDiscoveryResponse` and of `DiscoveryResponse`; these two begin alike.
const VERSION: u32 = 1;
const RESOURCES: u32 = 2;
const TYPE_URL: u32 = 4;
const NONCE: u32 = 5;
const REMOVED: u32 = 6;

/// Fields of `Resource`.
mod resource {
    pub(super) const VERSION: u32 = 1;
    pub(super) const BODY: u32 = 2;
    pub(super) const NAME: u32 = 3;
}

/// Fields of `Any`.
mod any {
    pub(super) const TYPE_URL: u32 = 1;
    pub(super) const VALUE: u32 = 2;
}

/// The bytes of a field of this many; none of an empty one, as proto3 has it.
fn field(tag: u32, length: usize) -> usize {
    if length == 0 { 0 } else { delimited(tag, length) }
}

fn delimited(tag: u32, length: usize) -> usize {
    key_len(tag) + encoded_len_varint(length as u64) + length
}

fn any_length(any: &Any) -> usize {
    field(any::TYPE_URL, any.type_url.len()) + field(any::VALUE, any.value.len())
}

fn resource_length(resource: &Resource) -> usize {
    field(resource::VERSION, resource.version.len())
        + delimited(resource::BODY, any_length(&resource.body))
        + field(resource::NAME, resource.name.len())
}

/// A resource's bytes within a response.
fn in_list(mode: Mode, resource: &Resource) -> usize {
    delimited(
        RESOURCES,
        match mode {
            Mode::Delta => resource_length(resource),
            Mode::Whole => any_length(&resource.body),
        },
    )
}

/// The bytes before the resources.
fn begin_length(answer: &Answer) -> usize {
    field(VERSION, answer.version.len())
}

/// The bytes after the resources.
fn end_length(mode: Mode, answer: &Answer) -> usize {
    let removed = answer.removed.iter().filter(|_| mode == Mode::Delta).map(|name| delimited(REMOVED, name.len()));
    field(TYPE_URL, answer.type_url.len()) + field(NONCE, answer.nonce.len()) + removed.sum::<usize>()
}

fn write_resources(mode: Mode, answer: &Answer, which: Range<usize>, buffer: &mut impl BufMut) {
    for resource in &answer.resources[which] {
        match mode {
            Mode::Delta => {
                begin(RESOURCES, resource_length(resource), buffer);
                put(resource::VERSION, resource.version.as_bytes(), buffer);
                begin(resource::BODY, any_length(&resource.body), buffer);
                put_any(&resource.body, buffer);
                put(resource::NAME, resource.name.as_bytes(), buffer);
            }
            Mode::Whole => {
                begin(RESOURCES, any_length(&resource.body), buffer);
                put_any(&resource.body, buffer);
            }
        }
    }
}

fn write_end(mode: Mode, answer: &Answer, buffer: &mut impl BufMut) {
    put(TYPE_URL, answer.type_url.as_bytes(), buffer);
    put(NONCE, answer.nonce.as_bytes(), buffer);
    if mode == Mode::Delta {
        for name in &answer.removed {
            begin(REMOVED, name.len(), buffer);
            buffer.put_slice(name.as_bytes());
        }
    }
}

fn put_any(any: &Any, buffer: &mut impl BufMut) {
    put(any::TYPE_URL, any.type_url.as_bytes(), buffer);
    put(any::VALUE, &any.value, buffer);
}

fn put(tag: u32, bytes: &[u8], buffer: &mut impl BufMut) {
    if !bytes.is_empty() {
        begin(tag, bytes.len(), buffer);
        buffer.put_slice(bytes);
    }
}

fn begin(tag: u32, length: usize, buffer: &mut impl BufMut) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(length as u64, buffer);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost::Message;

    use super::super::{Delta, Protocol, Whole};
    use super::*;

    #[test]
    fn what_is_written_is_what_the_message_would_be() {
        let resource = |name: &str, value: &[u8]| {
            Arc::new(Resource::new(name, Any { type_url: "type.googleapis.com/x".into(), value: value.to_vec() }))
        };
        let large = vec![7; 70_000];
        let answers = [
            (vec![resource("a", b"one"), resource("b", &large)], vec!["gone"]),
            (["a", "b", "c", "d"].map(|name| resource(name, &large)).into(), Vec::new()),
            (vec![resource("", b"")], vec!["", "x"]),
            (Vec::new(), Vec::new()),
        ];
        for (resources, removed) in answers {
            let answer = || Answer {
                type_url: "type.googleapis.com/x".into(),
                version: "17".into(),
                nonce: "1-1".into(),
                resources: resources.clone(),
                removed: removed.iter().map(|name| Arc::from(*name)).collect(),
            };
            for mode in [Mode::Delta, Mode::Whole] {
                let (mut written, mut next) = (Vec::new(), Some(0));
                while let Some(from) = next {
                    let (bytes, to) = piece(mode, &answer(), from);
                    assert!(bytes.len() <= PIECE + large.len() + 200, "no larger than it has to be");
                    written.extend_from_slice(&bytes);
                    next = to;
                }
                let (prefix, written) = written.split_at(PREFIX);
                assert_eq!(prefix, [&[0], &(written.len() as u32).to_be_bytes()[..]].concat());
                match mode {
                    Mode::Delta => {
                        let read = <Delta as Protocol>::Message::decode(written).unwrap();
                        assert_eq!(read, Delta::response(answer()));
                    }
                    Mode::Whole => {
                        let read = <Whole as Protocol>::Message::decode(written).unwrap();
                        assert_eq!(read, Whole::response(answer()));
                    }
                }
            }
        }
    }
}

//! How responses are written: from the shared resources straight into the connection's buffer.
//!
//! A message of its own would be made for each proxy only to be written and thrown away, with a copy of every resource
//! in it; a thousand proxies that get the same would cost a thousand copies more.

use std::marker::PhantomData;

use prost::bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use prost_types::Any;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::{ProstCodec, ProstDecoder};

use super::Protocol;
use super::session::{Answer, Mode};
use crate::version::Resource;

/// Reads the requests of a variant of the protocol, and writes its answers.
pub(super) struct Wire<P>(PhantomData<P>);

impl<P> Default for Wire<P> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<P: Protocol> Codec for Wire<P> {
    type Encode = Answer;
    type Decode = P::Request;
    type Encoder = Writer;
    type Decoder = ProstDecoder<P::Request>;

    fn encoder(&mut self) -> Writer {
        Writer(P::MODE)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<(), P::Request>::raw_decoder(BufferSettings::default())
    }
}

/// Writes the answers of one variant.
pub(super) struct Writer(Mode);

impl Encoder for Writer {
    type Item = Answer;
    type Error = Status;

    fn encode(&mut self, answer: Answer, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(length(self.0, &answer));
        write(self.0, &answer, buffer);
        Ok(())
    }
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

fn length(mode: Mode, answer: &Answer) -> usize {
    let resources = answer.resources.iter().map(|resource| match mode {
        Mode::Delta => delimited(RESOURCES, resource_length(resource)),
        Mode::Whole => delimited(RESOURCES, any_length(&resource.body)),
    });
    let removed = answer.removed.iter().filter(|_| mode == Mode::Delta).map(|name| delimited(REMOVED, name.len()));
    field(VERSION, answer.version.len())
        + field(TYPE_URL, answer.type_url.len())
        + field(NONCE, answer.nonce.len())
        + resources.chain(removed).sum::<usize>()
}

fn write(mode: Mode, answer: &Answer, buffer: &mut impl BufMut) {
    put(VERSION, answer.version.as_bytes(), buffer);
    for resource in &answer.resources {
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

/// The method of one variant, as tonic calls it.
pub(super) struct Method<S, P>(pub(super) super::Server<S>, pub(super) PhantomData<P>);

impl<S: super::Source, P: Protocol> tonic::server::StreamingService<P::Request> for Method<S, P> {
    type Response = Answer;
    type ResponseStream = super::Responses;
    type Future = std::future::Ready<Result<tonic::Response<super::Responses>, Status>>;

    fn call(&mut self, request: tonic::Request<tonic::Streaming<P::Request>>) -> Self::Future {
        std::future::ready(Ok(self.0.serve::<P>(request)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost::Message;

    use super::super::{Delta, Whole};
    use super::*;

    #[test]
    fn what_is_written_is_what_the_message_would_be() {
        let resource = |name: &str, value: &[u8]| {
            Arc::new(Resource::new(name, Any { type_url: "type.googleapis.com/x".into(), value: value.to_vec() }))
        };
        let large = vec![7; 70_000];
        let answers = [
            (vec![resource("a", b"one"), resource("b", &large)], vec!["gone"]),
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
                let mut written = Vec::new();
                write(mode, &answer(), &mut written);
                assert_eq!(written.len(), length(mode, &answer()));
                match mode {
                    Mode::Delta => {
                        let read = <Delta as Protocol>::Message::decode(written.as_slice()).unwrap();
                        assert_eq!(read, Delta::response(answer()));
                    }
                    Mode::Whole => {
                        let read = <Whole as Protocol>::Message::decode(written.as_slice()).unwrap();
                        assert_eq!(read, Whole::response(answer()));
                    }
                }
            }
        }
    }
}

//! Frames, as bytes and as what they mean.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::SpdyError;
use super::header::{self, Headers};

const VERSION: u16 = 3;
/// The longest control frame. Data frames may be as long as SPDY lets them: they are passed on as they arrive.
const MAX_CONTROL: usize = 96 << 10;
/// The most data of one [`Frame::Data`]; longer frames come in pieces.
const MAX_PIECE: usize = 32 << 10;
/// The most settings of one frame.
const MAX_SETTINGS: usize = 64;
const FIN: u8 = 1;
const UNIDIRECTIONAL: u8 = 2;

/// A frame, or a piece of a data frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Opens a stream.
    SynStream {
        /// The new stream.
        stream: u32,
        /// The stream it belongs to, or 0.
        associated: u32,
        /// 0 is the highest.
        priority: u8,
        /// What the stream is for.
        headers: Headers,
        /// The sender will send nothing more.
        fin: bool,
        /// The receiver may send nothing.
        unidirectional: bool,
    },
    /// Accepts a stream.
    SynReply {
        /// The stream.
        stream: u32,
        /// More about it.
        headers: Headers,
        /// The sender will send nothing more.
        fin: bool,
    },
    /// Bytes of a stream.
    Data {
        /// The stream.
        stream: u32,
        /// The bytes.
        data: Bytes,
        /// The sender will send nothing more.
        fin: bool,
    },
    /// Ends a stream at once.
    Rst {
        /// The stream.
        stream: u32,
        /// Why; see [`reset`].
        status: u32,
    },
    /// What the sender wants.
    Settings(Vec<(u32, u32)>),
    /// Asks for the same frame back.
    Ping(u32),
    /// The sender takes no more streams.
    GoAway {
        /// The last stream it took.
        last: u32,
        /// 0 when all is well.
        status: u32,
    },
    /// More headers of a stream.
    Headers {
        /// The stream.
        stream: u32,
        /// The headers.
        headers: Headers,
        /// The sender will send nothing more.
        fin: bool,
    },
    /// Lets the receiver send more.
    WindowUpdate {
        /// The stream; 0 for all together (SPDY/3.1).
        stream: u32,
        /// So many bytes more.
        delta: u32,
    },
}

/// Reasons for [`Frame::Rst`].
pub(crate) mod reset {
    /// No such stream.
    pub(crate) const INVALID_STREAM: u32 = 2;
    /// The stream is not wanted, and nothing was done with it.
    pub(crate) const REFUSED_STREAM: u32 = 3;
    /// The stream is not wanted any more.
    pub(crate) const CANCEL: u32 = 5;
}

/// The setting that says how much may be sent on a new stream.
pub(crate) const INITIAL_WINDOW_SIZE: u32 = 7;

/// Bytes to frames.
#[derive(Default)]
pub(crate) struct Decoder {
    headers: header::Reader,
    /// The data frame of which not everything has come.
    pending: Option<Pending>,
}

#[derive(Clone, Copy)]
struct Pending {
    stream: u32,
    left: usize,
    fin: bool,
}

impl Decoder {
    /// The next frame of what has come, or `None` when more must come first.
    ///
    /// # Errors
    ///
    /// When it is no frame, or one beyond the limits. The connection is over then.
    pub(crate) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, SpdyError> {
        loop {
            if let Some(pending) = self.pending {
                return Ok(self.data(pending, buffer));
            }
            let Some((first, second)) = buffer.split_at_checked(8).map(|(head, _)| {
                let mut head = head;
                (head.get_u32(), head.get_u32())
            }) else {
                return Ok(None);
            };
            let flags = second.to_be_bytes()[0];
            let length = (second & 0x00ff_ffff) as usize;
            if first >> 31 == 0 {
                if first == 0 {
                    return Err(SpdyError::Protocol("data of no stream"));
                }
                buffer.advance(8);
                self.pending = Some(Pending { stream: first, left: length, fin: flags & FIN != 0 });
                continue;
            }
            if (first >> 16 & 0x7fff) != u32::from(VERSION) {
                return Err(SpdyError::Protocol("another version"));
            }
            if length > MAX_CONTROL {
                return Err(SpdyError::Protocol("too long a control frame"));
            }
            if buffer.len() < 8 + length {
                buffer.reserve(8 + length - buffer.len());
                return Ok(None);
            }
            buffer.advance(8);
            let payload = buffer.split_to(length).freeze();
            // What is not known is to be ignored (draft 3, section 2.2.1).
            if let Some(frame) = self.control(first & 0xffff, flags, payload)? {
                return Ok(Some(frame));
            }
        }
    }

    fn data(&mut self, pending: Pending, buffer: &mut BytesMut) -> Option<Frame> {
        let Pending { stream, left, fin } = pending;
        let count = left.min(buffer.len()).min(MAX_PIECE);
        if count == 0 && left > 0 {
            return None;
        }
        let data = buffer.split_to(count).freeze();
        let left = left - count;
        self.pending = (left > 0).then_some(Pending { stream, left, fin });
        Some(Frame::Data { stream, data, fin: fin && left == 0 })
    }

    fn control(&mut self, kind: u32, flags: u8, mut payload: Bytes) -> Result<Option<Frame>, SpdyError> {
        const SHORT: SpdyError = SpdyError::Protocol("a control frame of the wrong length");
        let least = match kind {
            1 => 10,
            2 | 4 | 6 | 8 => 4,
            3 | 7 | 9 => 8,
            _ => return Ok(None),
        };
        let exact = matches!(kind, 3 | 6 | 7 | 9);
        if payload.len() < least || exact && payload.len() != least {
            return Err(SHORT);
        }
        let fin = flags & FIN != 0;
        let word = payload.get_u32();
        let stream = word & 0x7fff_ffff;
        if stream == 0 && matches!(kind, 1 | 2 | 3 | 8) {
            return Err(SpdyError::Protocol("a frame of no stream"));
        }
        Ok(Some(match kind {
            1 => {
                let associated = payload.get_u32() & 0x7fff_ffff;
                let priority = payload.get_u8() >> 5;
                payload.advance(1);
                let headers = self.headers.read(&payload)?;
                Frame::SynStream {
                    stream,
                    associated,
                    priority,
                    headers,
                    fin,
                    unidirectional: flags & UNIDIRECTIONAL != 0,
                }
            }
            2 => Frame::SynReply { stream, headers: self.headers.read(&payload)?, fin },
            3 => Frame::Rst { stream, status: payload.get_u32() },
            4 => {
                if word as usize > MAX_SETTINGS || payload.len() != word as usize * 8 {
                    return Err(SHORT);
                }
                Frame::Settings((0..word).map(|_| (payload.get_u32() & 0x00ff_ffff, payload.get_u32())).collect())
            }
            6 => Frame::Ping(word),
            7 => Frame::GoAway { last: stream, status: payload.get_u32() },
            8 => Frame::Headers { stream, headers: self.headers.read(&payload)?, fin },
            _ => Frame::WindowUpdate { stream, delta: payload.get_u32() & 0x7fff_ffff },
        }))
    }
}

/// Frames to bytes.
#[derive(Default)]
pub(crate) struct Encoder(header::Writer);

impl Encoder {
    /// Appends a frame to `out`.
    pub(crate) fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        let ending = |fin: &bool| if *fin { FIN } else { 0 };
        match frame {
            Frame::Data { stream, data, fin } => {
                out.put_u32(*stream);
                put_length(out, ending(fin), data.len());
                out.put_slice(data);
            }
            Frame::SynStream { stream, associated, priority, headers, fin, unidirectional } => {
                let flags = ending(fin) | if *unidirectional { UNIDIRECTIONAL } else { 0 };
                self.block(out, 1, flags, headers, |out| {
                    out.put_u32(*stream);
                    out.put_u32(*associated);
                    out.put_u8(priority << 5);
                    out.put_u8(0);
                });
            }
            Frame::SynReply { stream, headers, fin } => {
                self.block(out, 2, ending(fin), headers, |out| out.put_u32(*stream));
            }
            Frame::Headers { stream, headers, fin } => {
                self.block(out, 8, ending(fin), headers, |out| out.put_u32(*stream));
            }
            Frame::Rst { stream, status } => words(out, 3, &[*stream, *status]),
            Frame::Ping(id) => words(out, 6, &[*id]),
            Frame::GoAway { last, status } => words(out, 7, &[*last, *status]),
            Frame::WindowUpdate { stream, delta } => words(out, 9, &[*stream, *delta]),
            Frame::Settings(settings) => {
                let count = u32::try_from(settings.len()).unwrap_or_default();
                let all: Vec<u32> =
                    std::iter::once(count).chain(settings.iter().flat_map(|(id, value)| [*id, *value])).collect();
                words(out, 4, &all);
            }
        }
    }

    fn block(
        &mut self,
        out: &mut BytesMut,
        kind: u16,
        flags: u8,
        headers: &Headers,
        before: impl FnOnce(&mut BytesMut),
    ) {
        put_kind(out, kind);
        let length_at = out.len();
        out.put_u32(0);
        let start = out.len();
        before(out);
        self.0.write(headers, out);
        let length = u32::try_from(out.len() - start).unwrap_or_default() & 0x00ff_ffff;
        let word = (u32::from(flags) << 24 | length).to_be_bytes();
        if let Some(place) = out.get_mut(length_at..length_at + 4) {
            place.copy_from_slice(&word);
        }
    }
}

fn put_kind(out: &mut BytesMut, kind: u16) {
    out.put_u16(VERSION | 0x8000);
    out.put_u16(kind);
}

fn put_length(out: &mut BytesMut, flags: u8, length: usize) {
    out.put_u32(u32::from(flags) << 24 | u32::try_from(length).unwrap_or_default() & 0x00ff_ffff);
}

fn words(out: &mut BytesMut, kind: u16, words: &[u32]) {
    put_kind(out, kind);
    put_length(out, 0, words.len() * 4);
    for word in words {
        out.put_u32(*word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Result<Option<Frame>, SpdyError> {
        Decoder::default().decode(&mut BytesMut::from(bytes))
    }

    #[test]
    fn what_is_no_frame_is_refused_and_what_is_unknown_ignored() {
        let table: &[(&[u8], &str)] = &[
            (&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1], "another version"),
            (&[0, 0, 0, 0, 0, 0, 0, 0], "data of no stream"),
            (&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff], "too long a control frame"),
            (&[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1], "a frame of no stream"),
            (&[0x80, 3, 0, 6, 0, 0, 0, 5, 0, 0, 0, 1, 0], "wrong length"),
            (&[0x80, 3, 0, 4, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff], "wrong length"),
            (&[0x80, 3, 0, 1, 0, 0, 0, 3, 0, 0, 1], "wrong length"),
        ];
        for (bytes, problem) in table {
            let error = decode(bytes).unwrap_err().to_string();
            assert!(error.contains(problem), "{bytes:?}: {error}");
        }
        // A CREDENTIAL frame, then a PING.
        let known = decode(&[0x80, 3, 0, 10, 0, 0, 0, 1, 9, 0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 7]).unwrap();
        assert_eq!(known, Some(Frame::Ping(7)));
    }

    #[test]
    fn data_is_passed_on_as_it_comes() {
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::from(&[0, 0, 0, 5, FIN, 0xff, 0xff, 0xff, b'a', b'b'][..]);
        let piece = |data: &'static [u8]| Frame::Data { stream: 5, data: Bytes::from_static(data), fin: false };
        assert_eq!(decoder.decode(&mut buffer).unwrap(), Some(piece(b"ab")));
        assert_eq!(decoder.decode(&mut buffer).unwrap(), None);
        let mut left = 0x00ff_ffff - 2;
        let mut last = None;
        while left > 0 {
            let count = left.min(1 << 20);
            buffer.extend_from_slice(&vec![0; count]);
            left -= count;
            while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
                last = Some(frame);
            }
        }
        assert!(matches!(last, Some(Frame::Data { fin: true, .. })), "only the last piece ends the stream");
    }

    fn frames() -> impl Strategy<Value = Frame> {
        let stream = 1..0x8000_0000_u32;
        let headers = proptest::collection::btree_map("[a-z-]{1,12}", "[ -~]{0,40}", 0..8)
            .prop_map(|map| map.into_iter().collect::<Headers>());
        let data = proptest::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
        prop_oneof![
            (stream.clone(), 0..0x8000_0000_u32, 0..8_u8, headers.clone(), any::<[bool; 2]>()).prop_map(
                |(stream, associated, priority, headers, [fin, unidirectional])| Frame::SynStream {
                    stream,
                    associated,
                    priority,
                    headers,
                    fin,
                    unidirectional,
                }
            ),
            (stream.clone(), headers.clone(), any::<bool>()).prop_map(|(stream, headers, fin)| Frame::SynReply {
                stream,
                headers,
                fin
            }),
            (stream.clone(), headers, any::<bool>()).prop_map(|(stream, headers, fin)| Frame::Headers {
                stream,
                headers,
                fin
            }),
            (stream.clone(), data, any::<bool>()).prop_map(|(stream, data, fin)| Frame::Data { stream, data, fin }),
            (stream, any::<u32>()).prop_map(|(stream, status)| Frame::Rst { stream, status }),
            any::<u32>().prop_map(Frame::Ping),
            (0..0x8000_0000_u32, any::<u32>()).prop_map(|(last, status)| Frame::GoAway { last, status }),
            (0..0x8000_0000_u32, 0..0x8000_0000_u32).prop_map(|(stream, delta)| Frame::WindowUpdate { stream, delta }),
            proptest::collection::vec((0..0x0100_0000_u32, any::<u32>()), 0..10).prop_map(Frame::Settings),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn what_is_written_is_read(frames in proptest::collection::vec(frames(), 0..12), cut in 1..400_usize) {
            let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
            let mut wire = BytesMut::new();
            for frame in &frames {
                encoder.encode(frame, &mut wire);
            }
            let (mut buffer, mut read) = (BytesMut::new(), Vec::<Frame>::new());
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
                    read.push(frame);
                }
            }
            prop_assert!(buffer.is_empty());
            // Data may come in pieces: put them together again.
            let mut whole: Vec<Frame> = Vec::new();
            let mut open = false;
            let mut left = frames.iter();
            for frame in read {
                match (frame, whole.last_mut()) {
                    (Frame::Data { data, fin, .. }, Some(Frame::Data { data: first, fin: ended, .. })) if open => {
                        *first = [&first[..], &data[..]].concat().into();
                        *ended = fin;
                    }
                    (frame, _) => {
                        whole.push(frame);
                        left.next();
                    }
                }
                open = match (whole.last(), frames.get(whole.len() - 1)) {
                    (Some(Frame::Data { data, .. }), Some(Frame::Data { data: all, .. })) => data.len() < all.len(),
                    _ => false,
                };
            }
            prop_assert_eq!(whole, frames);
        }

        #[test]
        fn whatever_comes_nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            super::super::fuzz(&bytes);
        }

        #[test]
        fn damaged_frames_do_not_panic(frame in frames(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
            let mut wire = BytesMut::new();
            Encoder::default().encode(&frame, &mut wire);
            let at = at.index(wire.len());
            wire[at] = with;
            super::super::fuzz(&[&[3], &wire[..]].concat());
        }
    }
}

//! SPDY/3.1, as far as Kubernetes speaks it.
//!
//! Kubernetes carries `exec`, `attach` and `port-forward` over a SPDY/3.1 connection that begins with an HTTP upgrade
//! (`Upgrade: SPDY/3.1`) or lies inside a WebSocket (KEP-4006). [`frame`] and [`header`] are pure: bytes to frames and
//! back, with limits. [`session`] keeps one connection going: streams, windows, back-pressure, idle time.
//!
//! Only clients open streams here, as in Kubernetes; header blocks are zlib with SPDY/3's dictionary.

pub(crate) mod frame;
pub(crate) mod header;
pub(crate) mod session;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpdyError {
    /// The other side broke the protocol, or went over a limit.
    #[error("cannot read a SPDY frame: {0}")]
    Protocol(&'static str),
    /// The connection broke.
    #[error("cannot go on with a SPDY connection: {0}")]
    Io(#[from] std::io::Error),
    /// Nothing was said for too long.
    #[error("cannot keep a SPDY connection on which nothing is said")]
    Idle,
}

/// Reads whatever `bytes` are as frames, whole and in pieces: nothing may panic, and what is read is written alike.
///
/// For fuzzing only.
pub(crate) fn fuzz(bytes: &[u8]) {
    let Some((&cut, bytes)) = bytes.split_first() else { return };
    let mut whole = frame::Decoder::default();
    let mut buffer = bytes::BytesMut::from(bytes);
    let mut frames = Vec::new();
    while let Ok(Some(frame)) = whole.decode(&mut buffer) {
        frames.push(frame);
    }
    // In pieces the same control frames come out; data may come in more pieces.
    let mut pieces = frame::Decoder::default();
    let mut buffer = bytes::BytesMut::new();
    let mut again = Vec::new();
    'all: for piece in bytes.chunks(usize::from(cut) + 1) {
        buffer.extend_from_slice(piece);
        loop {
            match pieces.decode(&mut buffer) {
                Ok(Some(frame)) => again.push(frame),
                Ok(None) => break,
                Err(_) => break 'all,
            }
        }
    }
    let control = |frames: &[frame::Frame]| {
        frames.iter().filter(|frame| !matches!(frame, frame::Frame::Data { .. })).cloned().collect::<Vec<_>>()
    };
    assert_eq!(control(&frames), control(&again), "how bytes arrive must not matter");
    let mut written = bytes::BytesMut::new();
    let mut encoder = frame::Encoder::default();
    for frame in &frames {
        encoder.encode(frame, &mut written);
    }
    let mut decoder = frame::Decoder::default();
    for frame in &frames {
        // What is read is within the limits, so it can be read again.
        match decoder.decode(&mut written) {
            Ok(Some(read)) => assert_eq!(&read, frame, "what is written must be read alike"),
            other => panic!("{frame:?} is written, but {other:?} is read"),
        }
    }
}

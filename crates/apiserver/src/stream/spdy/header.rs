//! Header blocks: names and values, compressed over the whole life of a connection.

use bytes::{Buf, BufMut, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::SpdyError;

/// Names and values. Several values of one name are separated by NUL, as on the wire.
pub(crate) type Headers = Vec<(String, String)>;

/// The most bytes of a block once it is decompressed: a short block may stand for a very long one.
const MAX_BLOCK: usize = 64 << 10;
/// The most headers of a block.
const MAX_HEADERS: usize = 64;

/// What SPDY/3 compressors know before the first header (draft 3, section 2.6.10.1).
const DICTIONARY: &[u8] = b"\
    \x00\x00\x00\x07options\x00\x00\x00\x04head\x00\x00\x00\x04post\x00\x00\x00\x03put\x00\x00\x00\x06delete\
    \x00\x00\x00\x05trace\x00\x00\x00\x06accept\x00\x00\x00\x0eaccept-charset\x00\x00\x00\x0faccept-encoding\
    \x00\x00\x00\x0faccept-language\x00\x00\x00\x0daccept-ranges\x00\x00\x00\x03age\x00\x00\x00\x05allow\x00\
    \x00\x00\x0dauthorization\x00\x00\x00\x0dcache-control\x00\x00\x00\x0aconnection\x00\x00\x00\x0ccontent-\
    base\x00\x00\x00\x10content-encoding\x00\x00\x00\x10content-language\x00\x00\x00\x0econtent-length\x00\
    \x00\x00\x10content-location\x00\x00\x00\x0bcontent-md5\x00\x00\x00\x0dcontent-range\x00\x00\x00\x0ccont\
    ent-type\x00\x00\x00\x04date\x00\x00\x00\x04etag\x00\x00\x00\x06expect\x00\x00\x00\x07expires\x00\x00\
    \x00\x04from\x00\x00\x00\x04host\x00\x00\x00\x08if-match\x00\x00\x00\x11if-modified-since\x00\x00\x00\
    \x0dif-none-match\x00\x00\x00\x08if-range\x00\x00\x00\x13if-unmodified-since\x00\x00\x00\x0dlast-modifie\
    d\x00\x00\x00\x08location\x00\x00\x00\x0cmax-forwards\x00\x00\x00\x06pragma\x00\x00\x00\x12proxy-authent\
    icate\x00\x00\x00\x13proxy-authorization\x00\x00\x00\x05range\x00\x00\x00\x07referer\x00\x00\x00\x0bretr\
    y-after\x00\x00\x00\x06server\x00\x00\x00\x02te\x00\x00\x00\x07trailer\x00\x00\x00\x11transfer-encoding\
    \x00\x00\x00\x07upgrade\x00\x00\x00\x0auser-agent\x00\x00\x00\x04vary\x00\x00\x00\x03via\x00\x00\x00\x07\
    warning\x00\x00\x00\x10www-authenticate\x00\x00\x00\x06method\x00\x00\x00\x03get\x00\x00\x00\x06status\
    \x00\x00\x00\x06200 OK\x00\x00\x00\x07version\x00\x00\x00\x08HTTP/1.1\x00\x00\x00\x03url\x00\x00\x00\x06\
    public\x00\x00\x00\x0aset-cookie\x00\x00\x00\x0akeep-alive\x00\x00\x00\x06origin100101201202205206300302\
    303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative Information204 N\
    o Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Serv\
    er Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00\
    :00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xm\
    l,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8ch\
    arset=iso-8859-1,utf-,*,enq=0.";

/// Reads blocks in the order in which they were written.
pub(crate) struct Reader(Decompress);

impl Default for Reader {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Reader {
    /// The headers of a block.
    ///
    /// # Errors
    ///
    /// When it is no block, or one beyond the limits.
    pub(crate) fn read(&mut self, block: &[u8]) -> Result<Headers, SpdyError> {
        let bytes = self.inflate(block)?;
        parse(&bytes)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, SpdyError> {
        const BROKEN: SpdyError = SpdyError::Protocol("a header block that is not zlib");
        let mut out: Vec<u8> = Vec::with_capacity(512);
        loop {
            if out.len() > MAX_BLOCK {
                return Err(SpdyError::Protocol("too long a header block"));
            }
            out.reserve(512);
            let (taken, made) = (self.0.total_in(), out.len());
            let status = self.0.decompress_vec(block, &mut out, FlushDecompress::Sync);
            let taken = usize::try_from(self.0.total_in() - taken).unwrap_or(usize::MAX);
            block = block.get(taken..).ok_or(BROKEN)?;
            match status {
                Err(error) if error.needs_dictionary().is_some() => {
                    // It knows by a checksum whether this is the dictionary that was meant.
                    self.0.set_dictionary(DICTIONARY).map_err(|_| BROKEN)?;
                }
                Err(_) => return Err(BROKEN),
                Ok(Status::StreamEnd) => return Err(SpdyError::Protocol("header compression that ends")),
                Ok(Status::Ok | Status::BufError) if block.is_empty() && out.len() < out.capacity() => {
                    return Ok(out);
                }
                Ok(_) if taken == 0 && out.len() == made && out.len() < out.capacity() => return Err(BROKEN),
                Ok(_) => {}
            }
        }
    }
}

fn parse(mut bytes: &[u8]) -> Result<Headers, SpdyError> {
    const SHORT: SpdyError = SpdyError::Protocol("a header block that is cut off");
    fn text(bytes: &mut &[u8]) -> Result<String, SpdyError> {
        let length = bytes.try_get_u32().map_err(|_| SHORT)? as usize;
        let (text, rest) = bytes.split_at_checked(length).ok_or(SHORT)?;
        *bytes = rest;
        String::from_utf8(text.to_vec()).map_err(|_| SpdyError::Protocol("a header that is not text"))
    }
    let count = bytes.try_get_u32().map_err(|_| SHORT)? as usize;
    if count > MAX_HEADERS {
        return Err(SpdyError::Protocol("too many headers"));
    }
    let mut headers = Headers::with_capacity(count);
    for _ in 0..count {
        let name = text(&mut bytes)?;
        let value = text(&mut bytes)?;
        if name.is_empty() || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(SpdyError::Protocol("a header name that is not in lower case"));
        }
        if headers.iter().any(|(known, _)| *known == name) {
            return Err(SpdyError::Protocol("a header that comes twice"));
        }
        headers.push((name, value));
    }
    if bytes.is_empty() { Ok(headers) } else { Err(SpdyError::Protocol("more than headers in a header block")) }
}

/// Writes blocks.
#[derive(Default)]
pub(crate) struct Writer(Option<Compress>);

impl Writer {
    /// Appends a block to `out`.
    pub(crate) fn write(&mut self, headers: &Headers, out: &mut BytesMut) {
        let mut block = BytesMut::new();
        block.put_u32(u32::try_from(headers.len()).unwrap_or_default());
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.put_u32(u32::try_from(text.len()).unwrap_or_default());
            block.put_slice(text.as_bytes());
        }
        let compress = self.0.get_or_insert_with(|| {
            // A small window is enough for small blocks, and there is one for each connection.
            let mut compress = Compress::new_with_window_bits(Compression::fast(), true, 11);
            let _ = compress.set_dictionary(DICTIONARY);
            compress
        });
        let mut written: Vec<u8> = Vec::with_capacity(block.len() + 64);
        let start = compress.total_in();
        loop {
            let done = usize::try_from(compress.total_in() - start).unwrap_or(block.len());
            let rest = block.get(done..).unwrap_or_default();
            let status = compress.compress_vec(rest, &mut written, FlushCompress::Sync);
            if status.is_err() || written.len() < written.capacity() {
                break;
            }
            written.reserve(256);
        }
        out.extend_from_slice(&written);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_dictionary_is_spdys() {
        assert_eq!(DICTIONARY.len(), 1423);
        let mut compress = Compress::new(Compression::fast(), true);
        // The checksum that every SPDY/3 implementation's blocks begin with.
        assert_eq!(compress.set_dictionary(DICTIONARY).unwrap(), 0xe3c6_a7c2);
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut bomb = BytesMut::new();
        Writer::default().write(&vec![("a".into(), "b".repeat(1 << 20))], &mut bomb);
        assert!(bomb.len() < 64 << 10, "small on the wire: {}", bomb.len());
        assert!(matches!(Reader::default().read(&bomb), Err(SpdyError::Protocol("too long a header block"))));
    }

    #[test]
    fn what_no_block_is_gets_refused() {
        let block = |build: &dyn Fn(&mut BytesMut)| {
            let mut raw = BytesMut::new();
            build(&mut raw);
            parse(&raw).unwrap_err().to_string()
        };
        let header = |raw: &mut BytesMut, name: &str| {
            raw.put_u32(u32::try_from(name.len()).unwrap());
            raw.put_slice(name.as_bytes());
            raw.put_u32(0);
        };
        assert!(block(&|raw| raw.put_u32(65)).contains("too many headers"));
        assert!(block(&|raw| raw.put_u32(1)).contains("cut off"));
        assert!(block(&|raw| raw.put_u64(u64::MAX >> 8)).contains("too many"));
        assert!(block(&|raw| raw.put_slice(&[0, 0, 0, 1, 255, 255, 255, 255])).contains("cut off"));
        assert!(
            block(&|raw| {
                raw.put_u32(1);
                header(raw, "Upper")
            })
            .contains("lower case")
        );
        assert!(
            block(&|raw| {
                raw.put_u32(2);
                header(raw, "a");
                header(raw, "a")
            })
            .contains("twice")
        );
        assert!(
            block(&|raw| {
                raw.put_u32(0);
                raw.put_u8(0)
            })
            .contains("more than headers")
        );
        assert!(Reader::default().read(b"no zlib at all").is_err());
        assert!(Reader::default().read(b"").is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            blocks in proptest::collection::vec(
                proptest::collection::btree_map("[a-z-]{1,20}", "[ -~]{0,200}", 0..20),
                1..5,
            ),
        ) {
            let (mut writer, mut reader) = (Writer::default(), Reader::default());
            for block in blocks {
                let headers: Headers = block.into_iter().collect();
                let mut wire = BytesMut::new();
                writer.write(&headers, &mut wire);
                prop_assert_eq!(reader.read(&wire).unwrap(), headers);
            }
        }
    }
}

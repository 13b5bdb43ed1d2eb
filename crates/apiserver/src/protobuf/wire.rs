//! The wire format: <https://protobuf.dev/programming-guides/encoding/>.

use super::Error;

/// A field's value as it stands on the wire.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    pub(super) fn bytes(self) -> Result<&'a [u8], Error> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(Error::Malformed("a number stands where text or a message should")),
        }
    }

    pub(super) fn varint(self) -> Result<u64, Error> {
        match self {
            Self::Varint(value) => Ok(value),
            _ => Err(Error::Malformed("something else stands where a number should")),
        }
    }

    pub(super) fn fixed64(self) -> Result<u64, Error> {
        match self {
            Self::Fixed64(value) => Ok(value),
            _ => Err(Error::Malformed("something else stands where a fraction should")),
        }
    }
}

/// Reads fields one after the other.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next field, or `None` at the end. Groups, which nobody writes any more, are skipped.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, Error> {
        let mut open = 0_usize;
        loop {
            if self.rest.is_empty() {
                return if open == 0 { Ok(None) } else { Err(Error::Malformed("a group does not end")) };
            }
            let key = self.varint()?;
            let number = u32::try_from(key >> 3).ok().filter(|number| *number > 0);
            let number = number.ok_or(Error::Malformed("a field has an impossible number"))?;
            let value = match key & 7 {
                0 => Wire::Varint(self.varint()?),
                1 => Wire::Fixed64(self.fixed64()?),
                2 => {
                    let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                    Wire::Bytes(self.take(length)?)
                }
                3 => {
                    open += 1;
                    continue;
                }
                4 => {
                    open = open.checked_sub(1).ok_or(Error::Malformed("a group ends that never began"))?;
                    continue;
                }
                5 => {
                    self.take(4)?;
                    Wire::Fixed32
                }
                _ => return Err(Error::Malformed("a field has an unknown wire type")),
            };
            if open == 0 {
                return Ok(Some((number, value)));
            }
        }
    }

    pub(super) fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0_u64;
        for (index, byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[index + 1..];
                return Ok(value);
            }
        }
        Err(Error::Malformed("a number does not end"))
    }

    pub(super) fn fixed64(&mut self) -> Result<u64, Error> {
        let bytes = self.take(8)?;
        Ok(u64::from_le_bytes(bytes.try_into().map_err(|_| Error::Malformed("it ends too early"))?))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Error::Malformed("it ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }
}

/// Text; what is not UTF-8 in it is replaced, as Go does in JSON.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap_or_default() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap_or_default());
}

pub(super) fn put_varint_field(out: &mut Vec<u8>, number: u32, value: u64) {
    put_varint(out, u64::from(number) << 3);
    put_varint(out, value);
}

pub(super) fn put_fixed64(out: &mut Vec<u8>, number: u32, value: u64) {
    put_varint(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

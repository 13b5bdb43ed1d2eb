//! How a request for the state of the world is read: without a text of its own for every name.
//!
//! Every acknowledgement of endpoints repeats the names of all clusters. Of a thousand services, to a thousand proxies,
//! at each change, that would be a million texts, made only to be found the same as before.

use std::hash::{BuildHasher, Hasher};

use prost::DecodeError;
use prost::bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType, message, skip_field, string};

use crate::envoy::config::core::v3::Node;
use crate::google::rpc::Status;

/// Names in the order in which they were asked for, in one text.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Names {
    text: String,
    /// Where in it each name ends.
    ends: Vec<usize>,
}

impl Names {
    fn push(&mut self, name: &str) {
        self.text.push_str(name);
        self.ends.push(self.text.len());
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        let mut from = 0;
        self.ends.iter().map(move |to| &self.text[std::mem::replace(&mut from, *to)..*to])
    }

    /// The number of names and a hash of them: what is asked for again and again need not be kept. Whoever finds two sets
    /// with the same one deceives nobody but himself.
    pub(super) fn fingerprint(&self) -> (usize, u64) {
        let mut hasher = foldhash::quality::FixedState::default().build_hasher();
        hasher.write(self.text.as_bytes());
        self.ends.iter().for_each(|end| hasher.write_usize(*end));
        (self.len(), hasher.finish())
    }
}

impl<S: AsRef<str>> FromIterator<S> for Names {
    fn from_iter<I: IntoIterator<Item = S>>(names: I) -> Self {
        let mut all = Self::default();
        names.into_iter().for_each(|name| all.push(name.as_ref()));
        all
    }
}

/// What the server reads of a `DiscoveryRequest`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Wanted {
    pub(super) node: Option<Node>,
    pub(super) names: Names,
    pub(super) type_url: String,
    pub(super) nonce: String,
    pub(super) refusal: Option<Status>,
    /// The name that is being read.
    name: String,
}

/// Fields of `DiscoveryRequest`.
mod field {
    pub(super) const NODE: u32 = 2;
    pub(super) const RESOURCE_NAMES: u32 = 3;
    pub(super) const TYPE_URL: u32 = 4;
    pub(super) const RESPONSE_NONCE: u32 = 5;
    pub(super) const ERROR_DETAIL: u32 = 6;
}

impl prost::Message for Wanted {
    fn merge_field(
        &mut self,
        tag: u32,
        wire: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            field::NODE => message::merge(wire, self.node.get_or_insert_default(), buffer, context),
            field::RESOURCE_NAMES => {
                string::merge(wire, &mut self.name, buffer, context)?;
                self.names.push(&self.name);
                Ok(())
            }
            field::TYPE_URL => string::merge(wire, &mut self.type_url, buffer, context),
            field::RESPONSE_NONCE => string::merge(wire, &mut self.nonce, buffer, context),
            field::ERROR_DETAIL => message::merge(wire, self.refusal.get_or_insert_default(), buffer, context),
            _ => skip_field(wire, tag, buffer, context),
        }
    }

    // A server reads requests; it writes none.
    fn encode_raw(&self, _: &mut impl BufMut) {}

    fn encoded_len(&self) -> usize {
        0
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::envoy::service::discovery::v3::DiscoveryRequest;

    proptest::proptest! {
        #[test]
        fn a_request_is_read_as_the_message_would_be(
            names: Vec<String>, id: String, type_url: String, nonce: String, error: Option<String>
        ) {
            let request = DiscoveryRequest {
                version_info: "7".into(),
                node: Some(Node { id, ..Node::default() }),
                resource_names: names.clone(),
                type_url,
                response_nonce: nonce,
                error_detail: error.map(|message| Status { message, ..Status::default() }),
                ..DiscoveryRequest::default()
            };
            let read = Wanted::decode(&*request.encode_to_vec()).unwrap();
            let expected = (&request.node, &request.type_url, &request.response_nonce, &request.error_detail);
            proptest::prop_assert_eq!((&read.node, &read.type_url, &read.nonce, &read.refusal), expected);
            proptest::prop_assert_eq!(read.names.iter().collect::<Vec<_>>(), names);
        }

        #[test]
        fn what_is_a_request_is_one(bytes: Vec<u8>) {
            if Wanted::decode(&*bytes).is_err() {
                proptest::prop_assert!(DiscoveryRequest::decode(&*bytes).is_err());
            }
        }
    }

    #[test]
    fn names_have_a_fingerprint_of_their_own() {
        let of = |names: &[&str]| names.iter().collect::<Names>().fingerprint();
        assert_eq!(of(&["a", "b"]), of(&["a", "b"]));
        for other in [&["b", "a"][..], &["ab"], &["a", "b", ""], &["", "ab"], &[]] {
            assert_ne!(of(&["a", "b"]), of(other), "{other:?}");
        }
    }
}

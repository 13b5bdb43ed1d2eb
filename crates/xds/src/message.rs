//! A message as a resource, and back.

use prost::Name;
use prost_types::value::Kind;
use prost_types::{Any, ListValue, Struct, Value};

use crate::envoy::config::{cluster, core, endpoint, listener, route};
use crate::envoy::extensions::transport_sockets::tls;
use crate::istio::networking::nds;

/// Clusters (CDS).
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// Endpoints of a cluster (EDS).
pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// Listeners (LDS).
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// Route configurations (RDS).
pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// Certificates, keys and trust bundles (SDS).
pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// Istio's table of names (NDS).
pub const NAME_TABLE: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";

/// The order in which types must be sent so that a proxy never refers to what it has not got.
pub const ORDER: [&str; 6] = [CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, NAME_TABLE];

/// A packed message that is not what was asked for.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Mismatch {
    /// Another type.
    #[error("expected a `{expected}`, found a `{found}`")]
    Type {
        /// What was asked for.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The type is right, the bytes are not.
    #[error("`{of}` cannot be decoded")]
    Bytes {
        /// The type.
        of: String,
        /// What is wrong with the bytes.
        source: prost::DecodeError,
    },
}

/// Packs a message under its own type URL. Equal messages give equal bytes.
pub fn pack<M: Name>(message: &M) -> Any {
    pack_as(&M::type_url(), message)
}

/// Packs a message under `type_url`.
pub fn pack_as<M: prost::Message>(type_url: &str, message: &M) -> Any {
    Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }
}

/// Unpacks a message of type `M`.
///
/// # Errors
///
/// [`Mismatch`], when it is another type or not decodable.
pub fn unpack<M: Name + Default>(any: &Any) -> Result<M, Mismatch> {
    let named = any.type_url.rsplit_once('/').map_or(any.type_url.as_str(), |(_, name)| name);
    if named != M::full_name() {
        return Err(Mismatch::Type { expected: M::full_name(), found: named.to_owned() });
    }
    M::decode(any.value.as_slice()).map_err(|source| Mismatch::Bytes { of: M::full_name(), source })
}

/// A message that is a resource of its own: it has a type URL and a name.
pub trait Named: Name + Default {
    /// What it is subscribed by.
    fn resource_name(&self) -> &str;
}

impl Named for cluster::v3::Cluster {
    fn resource_name(&self) -> &str {
        &self.name
    }
}

impl Named for endpoint::v3::ClusterLoadAssignment {
    fn resource_name(&self) -> &str {
        &self.cluster_name
    }
}

impl Named for listener::v3::Listener {
    fn resource_name(&self) -> &str {
        &self.name
    }
}

impl Named for route::v3::RouteConfiguration {
    fn resource_name(&self) -> &str {
        &self.name
    }
}

impl Named for tls::v3::Secret {
    fn resource_name(&self) -> &str {
        &self.name
    }
}

impl Named for nds::v1::NameTable {
    /// There is one table per proxy.
    fn resource_name(&self) -> &str {
        "name-table"
    }
}

/// The address and port of a socket address, when it is one with a port number.
#[must_use]
pub fn socket(address: &core::v3::Address) -> Option<(&str, u16)> {
    use core::v3::address::Address::SocketAddress;
    use core::v3::socket_address::PortSpecifier::PortValue;
    let Some(SocketAddress(socket)) = &address.address else { return None };
    let Some(PortValue(port)) = socket.port_specifier else { return None };
    Some((&socket.address, u16::try_from(port).ok()?))
}

/// A TCP socket address.
#[must_use]
pub fn address(host: impl Into<String>, port: u16) -> core::v3::Address {
    use core::v3::{Address, SocketAddress, address, socket_address};
    let port = socket_address::PortSpecifier::PortValue(port.into());
    let socket = SocketAddress { address: host.into(), port_specifier: Some(port), ..SocketAddress::default() };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}

/// A string value.
#[must_use]
pub fn string(text: impl Into<String>) -> Value {
    Value { kind: Some(Kind::StringValue(text.into())) }
}

/// A list value.
#[must_use]
pub fn list(values: impl IntoIterator<Item = Value>) -> Value {
    Value { kind: Some(Kind::ListValue(ListValue { values: values.into_iter().collect() })) }
}

/// An object value.
pub fn object<K: Into<String>>(fields: impl IntoIterator<Item = (K, Value)>) -> Value {
    Value { kind: Some(Kind::StructValue(structure(fields))) }
}

/// A structure, as node metadata is one.
pub fn structure<K: Into<String>>(fields: impl IntoIterator<Item = (K, Value)>) -> Struct {
    Struct { fields: fields.into_iter().map(|(key, value)| (key.into(), value)).collect() }
}

/// The value at a path of field names.
#[must_use]
pub fn at<'a>(structure: &'a Struct, path: &[&str]) -> Option<&'a Value> {
    let (last, parents) = path.split_last()?;
    let mut structure = structure;
    for parent in parents {
        match &structure.fields.get(*parent)?.kind {
            Some(Kind::StructValue(inner)) => structure = inner,
            _ => return None,
        }
    }
    structure.fields.get(*last)
}

/// The text at a path of field names.
#[must_use]
pub fn text_at<'a>(structure: &'a Struct, path: &[&str]) -> Option<&'a str> {
    match &at(structure, path)?.kind {
        Some(Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

/// The texts of the object at a path of field names, such as `LABELS`.
#[must_use]
pub fn texts_at(structure: &Struct, path: &[&str]) -> std::collections::BTreeMap<String, String> {
    let Some(Kind::StructValue(inner)) = at(structure, path).and_then(|value| value.kind.as_ref()) else {
        return Default::default();
    };
    let text = |(key, value): (&String, &Value)| match &value.kind {
        Some(Kind::StringValue(text)) => Some((key.clone(), text.clone())),
        _ => None,
    };
    inner.fields.iter().filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::config::cluster::v3::Cluster;
    use crate::envoy::config::listener::v3::Listener;

    #[test]
    fn type_urls_are_those_of_the_messages() {
        let of = [
            (CLUSTER, Cluster::type_url()),
            (ENDPOINT, endpoint::v3::ClusterLoadAssignment::type_url()),
            (LISTENER, Listener::type_url()),
            (ROUTE, route::v3::RouteConfiguration::type_url()),
            (SECRET, tls::v3::Secret::type_url()),
            (NAME_TABLE, nds::v1::NameTable::type_url()),
        ];
        for (constant, url) in of {
            assert_eq!(constant, url);
        }
    }

    #[test]
    fn what_is_packed_unpacks_as_itself_and_as_nothing_else() {
        let cluster = Cluster { name: "outbound|80||a".into(), ..Cluster::default() };
        let any = pack(&cluster);
        assert_eq!(unpack::<Cluster>(&any).unwrap(), cluster);
        let wrong = unpack::<Listener>(&any).unwrap_err().to_string();
        insta::assert_snapshot!(wrong, @"expected a `envoy.config.listener.v3.Listener`, found a `envoy.config.cluster.v3.Cluster`");
        let broken = Any { value: vec![0xff], ..any };
        assert!(matches!(unpack::<Cluster>(&broken), Err(Mismatch::Bytes { .. })));
    }

    #[test]
    fn structures_are_read_by_path() {
        let node = structure([
            ("CLUSTER_ID", string("east")),
            ("LABELS", object([("app", string("sleep")), ("n", list([]))])),
        ]);
        assert_eq!(text_at(&node, &["CLUSTER_ID"]), Some("east"));
        assert_eq!(text_at(&node, &["LABELS", "app"]), Some("sleep"));
        assert_eq!(text_at(&node, &["LABELS", "missing"]), None);
        assert_eq!(texts_at(&node, &["LABELS"]), [("app".to_owned(), "sleep".to_owned())].into());
    }
}

//! `gateway` of a cluster: where its east-west gateway is reached, and values of its own.

use std::net::IpAddr;

use serde::Serialize;

use crate::problem::{At, Notes, quoted};
use crate::yaml::{Fields, Node, Unknown};

/// What a mesh file says of one cluster's east-west gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterGateway {
    /// Where it is reached, by hand: IP addresses or host names. With any, nothing else counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// The port there.
    pub port: u16,
    /// Values of Istio's chart `gateway`, over those of `controlPlane.gateways.eastwest`.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub values: serde_json::Map<String, serde_json::Value>,
}

/// Where mutual TLS is passed through, unless somebody says otherwise.
pub const GATEWAY_PORT: u16 = 15443;

/// None where nothing is said, or nothing that could be understood.
pub(crate) fn read(notes: &mut Notes<'_>, node: &Node, path: &str) -> Option<ClusterGateway> {
    let fields = Fields::of(notes, node, path, &["addresses", "port", "values"], Unknown::Refused)?;
    let mut gateway = ClusterGateway { port: GATEWAY_PORT, ..ClusterGateway::default() };
    if let Some(node) = fields.node("addresses") {
        let written = crate::mesh_file::texts(notes, node, &fields.path_of("addresses"));
        gateway.addresses = written.into_iter().filter_map(|(text, at)| address(notes, text, at)).collect();
    }
    if let Some((text, at)) = fields.text(notes, "port") {
        match text.parse::<u16>() {
            Ok(port) if port > 0 => gateway.port = port,
            _ => {
                notes
                    .problem(at, format!("{} is not a port", quoted(text)))
                    .expected("a number from 1 to 65535, such as `15443`");
            }
        }
        if fields.node("addresses").is_none() {
            notes
                .problem(at, format!("`{path}.port` is the port of addresses, and there are none"))
                .hint("write `gateway: {addresses: [192.0.2.10], port: 15443}`");
        }
    }
    if let Some(node) = fields.node("values") {
        match node.json() {
            serde_json::Value::Object(values) => gateway.values = values,
            serde_json::Value::Null => {}
            _ => {
                notes
                    .problem(node.at, format!("`{}` is {}", fields.path_of("values"), node.description()))
                    .expected("a map of values of Istio's chart `gateway`, such as `{service: {type: NodePort}}`");
            }
        }
    }
    let says_something = !gateway.addresses.is_empty() || !gateway.values.is_empty();
    says_something.then_some(gateway)
}

/// An IP address or a host name that other clusters can dial.
fn address(notes: &mut Notes<'_>, text: &str, at: At) -> Option<String> {
    let label = |l: &str| {
        let inner = l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        !l.is_empty() && l.len() < 64 && inner && !l.starts_with('-') && !l.ends_with('-')
    };
    match text.parse::<IpAddr>() {
        Ok(ip) if !ip.is_unspecified() && !ip.is_multicast() => return Some(ip.to_string()),
        Ok(_) => {}
        Err(_) => {
            // Four numbers are an address that is wrong, not a name.
            let numbers = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
            let name = text.strip_suffix('.').unwrap_or(text);
            if !numbers && name.len() < 254 && name.split('.').all(label) {
                return Some(name.to_owned());
            }
        }
    }
    let apart = text.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok() && !text.contains("//"));
    let problem = notes.problem(at, format!("{} is not an address of a gateway", quoted(text)));
    problem.expected("an IP address or a host name in lower case, such as `192.0.2.10` or `gateway.example.com`");
    if let Some((host, port)) = apart {
        problem.hint(format!("write the port beside it: `{{addresses: [{host}], port: {port}}}`"));
    }
    None
}

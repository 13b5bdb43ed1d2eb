//! Where a hub on somebody else's API listens, and the Service that leads there.

use std::net::IpAddr;

use stolos_k8s::meta;
use stolos_serve::Listener;

/// Where a hub on somebody else's API listens, and what it is called there.
pub struct Address {
    /// The socket.
    pub listener: Listener,
    /// Names and addresses that it is reached by, for its certificate; the first is the one that is told.
    pub names: Vec<String>,
    /// The Service in the API server's own cluster that leads here, if one does.
    pub service: Option<Service>,
    /// Where other hubs reach this one, if that is not where it listens.
    pub peer: Option<IpAddr>,
    /// Who this one is among several.
    pub identity: String,
}

/// A Service, as `namespace/name[:port]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its port; 443 where none is named.
    pub port: u16,
}

impl std::str::FromStr for Service {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no Service; write NAMESPACE/NAME[:PORT]");
        let (place, port) = match text.rsplit_once(':') {
            Some((place, port)) => (place, port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?),
            None => (text, 443),
        };
        let (namespace, name) = place.split_once('/').ok_or_else(wrong)?;
        if !(meta::check_label(namespace).is_empty() && meta::check_label(name).is_empty()) {
            return Err(wrong());
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_named_as_people_write_it() {
        let service = |text: &str| text.parse::<Service>().map(|s| format!("{} {} {}", s.namespace, s.name, s.port));
        assert_eq!(service("stolos/hub").unwrap(), "stolos hub 443");
        assert_eq!(service("stolos/hub:8443").unwrap(), "stolos hub 8443");
        for text in ["hub", "stolos/hub:0", "stolos/hub:x", "/hub", "a/b/c"] {
            assert_eq!(service(text).unwrap_err(), format!("`{text}` is no Service; write NAMESPACE/NAME[:PORT]"));
        }
    }
}

//! From xDS messages to what the proxy does. Pure.
//!
//! Nothing is skipped silently: what cannot be obeyed is refused with a text that names it (the control plane sees it
//! as a NACK), and a chain that asks for a policy this proxy does not know passes nothing at all.
#![expect(deprecated, reason = "what Istio still writes is still read")]

mod clusters;
mod listeners;
mod rbac;
mod routes;
mod tls;

use std::time::Duration;

use stolos_xds::{Any, unpack};

pub(crate) use self::clusters::{check_endpoints, cluster, endpoints};
pub(crate) use self::listeners::listener;
pub(crate) use self::routes::routes;

/// Why a resource is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(String);

impl Refused {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    fn within(self, place: &str) -> Self {
        Self(format!("{place}: {}", self.0))
    }
}

type Result<T> = std::result::Result<T, Refused>;

fn refuse<T>(text: impl Into<String>) -> Result<T> {
    Err(Refused::new(text))
}

fn open<M: prost::Name + Default>(any: &Any) -> Result<M> {
    unpack(any).map_err(|error| Refused::new(error.to_string()))
}

fn duration(value: Option<&prost_types::Duration>) -> Result<Option<Duration>> {
    let convert = |value: &prost_types::Duration| Duration::try_from(*value);
    value.map(convert).transpose().map_err(|_| Refused::new("a duration is negative"))
}

fn type_of(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

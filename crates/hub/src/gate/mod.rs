//! The hub's door for agents: members that cannot be dialled come here, with a one-time token first and with their own
//! certificate ever after, and stay connected.
//!
//! One port, told apart by TLS' ALPN: [`stolos_tunnel::PROTOCOL`] is a tunnel, `http/1.1` asks for a certificate.
//!
//! | asked for | with | answer |
//! |---|---|---|
//! | `POST /ask` | a token ([`token`]) | whether it would let the member in |
//! | `POST /register` | a token and a request to certify a key | the member's certificate, for 30 days; the token is used up |
//! | `POST /renew` | the certificate | a new one, as long as the hub has the member |
//!
//! A certificate is good for one membership (`guest`): it ends with that, and when it is ended by hand ([`end`]).

pub mod agent;
pub mod pod;
pub mod token;

pub(crate) mod authority;
mod guest;
mod serve;
mod store;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use stolos_cluster::objects::{self, Resource};
use stolos_serve::Stop;
use stolos_tunnel::Relay;
use tokio_util::task::TaskTracker;

use crate::control::Door;
use crate::install::NAMESPACE;
use crate::member::{Credential, Joining};
use crate::{Error, MANAGER, label, told};

pub use guest::end;
pub(crate) use guest::{Known, epoch};
pub(crate) use store::kept;

/// The ConfigMap that says where the door is.
const NOTICE: &str = "stolos-agents";

/// The trust domain of members' identities.
const TRUST_DOMAIN: &str = "hub.stolos.dev";
/// How long an agent's certificate is good for: it is renewed daily, and ends at once when its membership does.
const CERTIFICATE: Duration = Duration::from_secs(30 * 86_400);
/// What an agent calls its cluster's API server.
pub(crate) const API: &str = "api";
/// The largest body of a request or an answer, in bytes.
const LARGEST: usize = 256 << 10;

/// What an agent that registers says.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Registration {
    /// The one-time token.
    token: String,
    /// The request to certify the agent's key (PKCS#10, PEM).
    request: String,
    /// What is said of the cluster.
    joining: Joining,
    /// How the hub gets in; nothing of a member that it knows, for which the token was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    credential: Option<Credential>,
}

/// What an agent asks before it makes anything in its cluster.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Question {
    token: String,
    /// The member's name.
    name: String,
    /// UID of the member's namespace `kube-system`.
    id: String,
}

/// What an agent that renews says.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Renewal {
    request: String,
}

/// What both get.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Certified {
    /// Certificates (PEM), leaf first.
    chain: String,
}

/// What the hub's API says of the door, for `hub token create`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// `host:port`, as agents dial it.
    pub address: String,
    /// `sha256:` and the fingerprint of the authority that the door must show.
    pub authority: String,
}

/// Opens the door to `relay`. What it begins ends with `stop`; `tasks` own it.
pub(crate) async fn open(
    client: &kube::Client,
    door: Door,
    relay: &Arc<Relay>,
    known: Known,
    tasks: &TaskTracker,
    stop: &Stop,
) -> Result<(), Error> {
    let authority = Arc::new(authority::of(client).await?);
    let port = door.listener.local_addr().map_err(|error| Error::Agents(error.to_string()))?.port();
    let name = door.names.first().map_or("localhost", String::as_str);
    let notice = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": NOTICE, "namespace": NAMESPACE, "labels": {label::SYSTEM: "true"}},
        "data": {"address": told::place(name, port), "authority": format!("sha256:{}", authority.certificate().fingerprint())}});
    objects::apply(client, &Resource::named("v1", "ConfigMap")?, &notice, MANAGER, true).await?;
    serve::begin(client.clone(), door, authority, (relay, known), tasks, stop)
}

/// Where the door of a hub is, if it has one.
///
/// # Errors
///
/// When the hub's API refuses or does not answer.
pub async fn notice(hub: &kube::Client) -> Result<Option<Notice>, Error> {
    Ok(told::read(hub, NOTICE).await?.map(|(address, authority)| Notice { address, authority }))
}

//! Places workloads on member clusters and keeps them there.
//!
//! It speaks Karmada's API (behaviour of v1.18.2 unless a comment names another version). [`kinds`] and [`name`] say what
//! objects are called, [`label`] what is put on them, [`model`] what they say. What decides is pure and knows neither
//! clusters nor sockets: [`choose`] finds the policy of a template, [`place`] the clusters of a binding by filters and
//! spread constraints, [`divide`] the replicas of each, [`estimate`] how many fit. [`mesh`] knows which members are one
//! mesh. [`interpret`] knows the native kinds, [`overrides`] changes a manifest for one cluster, and [`admit`] says what is
//! filled in and refused when a policy is written. [`evict`] knows what happens when a cluster is lost and what never
//! happens. [`why`](mod@why) tells what was decided and why, [`simulate`] what the loss of a cluster would do.
//!
//! [`start`] does: it keeps mirrors of what there is, in the hub and in every member, and one queue for each
//! question (which policy, which clusters, which Works, what in the member, what came of it). Every answer looks at
//! everything it needs anew, so that doing it twice is as good as once. It is given a client of an API server and does
//! not know which one: its own process's or any other, where [`elect()`] says which of several hubs acts and [`front`](mod@front)
//! is what it serves beside that API. [`proxy`] lets others through to members, [`everywhere`] asks many of them at once.

mod admission;
pub mod admit;
pub mod choose;
mod control;
pub mod divide;
mod elect;
pub mod estimate;
mod event;
pub mod everywhere;
pub mod evict;
pub mod front;
pub mod gate;
mod install;
pub mod interpret;
pub mod kinds;
pub mod label;
pub mod member;
pub mod mesh;
mod mirror;
pub mod model;
pub mod name;
pub mod overrides;
pub mod place;
mod placing;
pub mod proxy;
mod queue;
pub mod simulate;
mod told;
pub mod why;

use std::time::Duration;

pub use admission::Asked;
pub use control::{Door, Pages, Review, Running, Settings, start};
pub use elect::{Election, OpenDoor, Part, elect};
pub use front::Front;
pub use install::{definitions, install};
pub use placing::recorded;

/// Who the hub's writes are by.
pub const MANAGER: &str = "stolos-hub";

/// Why the hub could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An API server could not be asked, or said no.
    #[error(transparent)]
    Cluster(#[from] stolos_cluster::Error),
    /// A definition of the hub's own kinds cannot be read.
    #[error("could not read a definition of the hub's kinds: {0}")]
    Definition(String),
    /// The hub's kinds are not served.
    #[error("the hub's kinds are not served after {} s", .0.as_secs())]
    NotServed(Duration),
    /// A member's credential is not there or is not whole.
    #[error("could not use the credential of {cluster}: {why}")]
    Credential {
        /// The member.
        cluster: String,
        /// Why.
        why: String,
    },
    /// A member is to be reached in a way that the hub has not.
    #[error("could not take spec.proxyURL of {cluster}: {why}")]
    Proxied {
        /// The member.
        cluster: String,
        /// Why, and what instead.
        why: &'static str,
    },
    /// A name cannot be a member's.
    #[error("`{name}` cannot be the name of a cluster: {why}")]
    Name {
        /// The name.
        name: String,
        /// Why.
        why: String,
    },
    /// The hub has another cluster of that name, or that cluster under another name.
    #[error("{0}")]
    Joined(String),
    /// The hub has no such cluster.
    #[error("the hub has no cluster `{0}`")]
    NoCluster(String),
    /// What the hub serves on somebody else's API cannot be served.
    #[error("{0}")]
    Front(String),
    /// Something between the hub and an agent went wrong.
    #[error("{0}")]
    Agents(String),
    /// The hub takes an agent's certificate no more.
    #[error("the hub takes this agent in no more: {0}")]
    Ended(String),
    /// A token lets nobody in.
    #[error("{0}")]
    Token(String),
    /// A member leaves, and what is in it has nowhere else to go.
    #[error(
        "could not take `{cluster}` out of the hub: {}; delete it in the hub, or let its policy mean members that stay",
        workloads.join(", ")
    )]
    Kept {
        /// The member, which leaves as soon as it can.
        cluster: String,
        /// What keeps it, and why each can go nowhere.
        workloads: Vec<String>,
    },
    /// Something did not end in time.
    #[error("could not {what} within {} s: {left}", after.as_secs())]
    NotYet {
        /// What was wanted.
        what: String,
        /// How long we waited.
        after: Duration,
        /// What is still there.
        left: String,
    },
}

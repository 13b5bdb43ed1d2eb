//! An embeddable Kubernetes API server: verbs, watches, admission, permissions, crash-safe storage.
//!
//! It serves the built-in kinds and whatever CustomResourceDefinitions add, over HTTPS with an authority of its own,
//! and to the process it lives in without a socket. It runs no workloads: Deployments stay what they are until
//! somebody's controllers act on them, and `logs`, `exec` and `port-forward` go to a
//! [`PodRuntime`](runtime::PodRuntime) that the embedder gives. It knows nothing of meshes.
//!
//! ```
//! use k8s_openapi::api::core::v1::Namespace;
//! use kube::{Api, ResourceExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let server = stolos_apiserver::Builder::new().start().await?;
//! let namespaces: Api<Namespace> = Api::all(server.client());
//! let names: Vec<_> = namespaces.list(&Default::default()).await?.iter().map(|n| n.name_any()).collect();
//! assert_eq!(names, ["default", "kube-node-lease", "kube-public", "kube-system"]);
//! server.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! Start at [`Builder`]; a request's way is `route` → `verb` → `admit` → `state` → `store`, and back to readers
//! through `watch`.

mod admit;
mod api;
mod auth;
mod builder;
mod cel;
mod controllers;
mod convert;
mod defaults;
mod discovery;
pub mod extension;
mod failure;
#[doc(hidden)]
pub mod fuzz;
mod health;
mod keys;
mod list;
mod metrics;
mod naming;
pub mod near;
mod openapi;
pub mod protobuf;
mod quota;
mod registry;
mod route;
mod rules;
pub mod runtime;
mod state;
pub mod store;
mod stream;
mod table;
mod usage;
mod validate;
mod verb;
mod warning;
mod watch;

pub use auth::User;
pub use builder::{Builder, Server, StartError};
pub use keys::{Credentials, Error as KeysError};

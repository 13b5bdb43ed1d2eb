//! Says what a Kubernetes object is: kinds, names, labels, selectors, patches, schemas and who owns which field.
//!
//! Values are [`serde_json::Value`]s. Nothing here talks to a cluster, serves one, reads a file or looks at a clock:
//! where time or randomness matters it is an argument.
//!
//! Start at [`kind`] (which kinds there are), then read [`ssa`], where most of the others meet. What a mesh adds to Kubernetes, names, labels and Istio's own kinds, is
//! in [`istio`].

pub mod istio;
pub mod kind;
pub mod lists;
pub mod meta;
pub mod patch;
pub mod path;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod ssa;
pub mod status;

pub use kind::Kind;
pub use selector::{FieldSelector, LabelSelector};
pub use status::{FieldError, Resource, Status};

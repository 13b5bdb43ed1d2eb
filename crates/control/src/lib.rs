//! The small control plane: watches clusters, translates them for proxies, and signs workload identities.
//!
//! It reads Istio's API (the kinds listed at [`policy`]) and Kubernetes' own, in its cluster and in every cluster it
//! has a remote secret of; and it sends proxies what Istio's control plane would send.
//!
//! Look: [`model`] is what it knows. Decide: [`translate`], pure.

pub mod model;
pub mod policy;
pub mod translate;

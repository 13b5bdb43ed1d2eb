//! Istio's part of a cluster: the names it gives things, its own kinds, and the Secret by which clusters know each
//! other.
//!
//! Names and shapes are Istio's, byte for byte, because Istio's own commands and control plane read them.

mod names;

pub use names::*;

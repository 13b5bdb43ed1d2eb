//! One pure function per cause: what it looks at, what it finds, what it cannot tell.

pub(super) mod control;
pub(super) mod exposure;
pub(super) mod gateways;
pub(super) mod links;
pub(super) mod networks;
pub(super) mod policy;
pub(super) mod trust;
pub(super) mod workloads;

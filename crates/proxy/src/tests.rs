//! The proxy over real sockets, driven by hand-made resources.

mod gateway;
mod sidecar;
mod whole;
mod world;

//! The proxy over real sockets, driven by hand-made resources.

mod gateway;
mod http2;
mod sidecar;
mod smuggling;
mod whole;
mod world;

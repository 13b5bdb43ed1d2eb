//! From a [`World`](crate::model::World) and a proxy to what the proxy is sent. Pure: no I/O, no clock.
//!
//! Start at [`endpoints::select`], which decides who is reached directly and who through a gateway; its tests are the
//! worked examples of Istio's algorithm.

mod authorization;
pub mod clusters;
pub mod endpoints;
#[cfg(test)]
pub(crate) mod fixture;
pub mod gateway;
pub mod inbound;
pub mod ingress;
pub mod listeners;
mod locality;
pub mod names;
mod parts;
pub mod services;
mod tls;
pub mod tls_routes;

//! Places workloads on member clusters and keeps them there.
//!
//! It speaks Karmada's API (behaviour of v1.18.2 unless a comment names another version). `name` says what objects are
//! called, `label` what is put on them, [`model`] what they say; what decides is pure and knows neither clusters nor
//! sockets.

pub mod divide;
pub mod label;
pub mod model;
pub mod name;

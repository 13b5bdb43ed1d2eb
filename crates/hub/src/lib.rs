//! Places workloads on member clusters and keeps them there.
//!
//! It speaks Karmada's API (behaviour of v1.18.2 unless a comment names another version). `name` says what objects are
//! called, `label` what is put on them, [`model`] what they say. What decides is pure and knows neither clusters nor
//! sockets: [`choose`] finds the policy of a template, [`place`] the clusters of a binding by filters and spread
//! constraints, [`divide`] the replicas of each, [`estimate`] how many fit. [`interpret`] knows the native kinds,
//! [`overrides`] changes a manifest for one cluster, and [`admit`] says what is filled in and refused when a policy is
//! written. [`why`](mod@why) tells what was decided and why.

pub mod admit;
pub mod choose;
pub mod divide;
pub mod estimate;
pub mod interpret;
pub mod label;
pub mod model;
pub mod name;
pub mod overrides;
pub mod place;
pub mod why;

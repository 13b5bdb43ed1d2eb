//! (in preparation)

pub mod agent;

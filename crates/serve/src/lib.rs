//! What every long-running part of Stolos shares: sockets, listening, stopping, container output,
//! figures.
//!
//! A role (control plane, proxy, API server) never opens a socket of its own making. It is given a [`Net`] and
//! dials, binds and resolves through it: [`HostNet`] in a real container, the lab's pod network in the lab, where
//! networks are separate and links can be cut. It is stopped with a [`Stop`], and it writes its container's log
//! lines to an [`Output`].
//!
//! Start at [`net`], then [`listen::http`].

mod because;
mod container;
pub mod exposition;
pub mod handshake;
pub mod listen;
pub mod meter;
pub mod net;
mod output;
pub mod program;
mod stop;

pub use because::because;
pub use container::Container;
pub use net::{Admission, Door, Gate, HostNet, Link, Listener, Net, Stream, Weather};
pub use output::{Gathered, Output};
pub use program::{HostPrograms, Program, Programs};
pub use stop::Stop;

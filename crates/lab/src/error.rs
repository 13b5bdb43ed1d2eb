use std::io;
use std::path::PathBuf;

/// Why a lab could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An address block could not be claimed for a reason other than a holder.
    #[error("cannot claim the addresses 127.{block}.0.0/16")]
    Claim {
        /// The second octet.
        block: u8,
        /// What the system said.
        source: io::Error,
    },
    /// This lab's addresses are somebody else's now.
    #[error(
        "this lab's addresses 127.{block}.0.0/16 are held by {holder}; stop that one, or give this lab new addresses \
         with --renumber (existing kubeconfigs then need to be written again)"
    )]
    AddressesHeld {
        /// The second octet.
        block: u8,
        /// Who has them.
        holder: String,
    },
    /// Every block is taken.
    #[error("no free address block: this lab needs {needed} of the 254 in 127.0.0.0/8")]
    NoAddresses {
        /// How many blocks.
        needed: usize,
    },
    /// Another process runs this lab.
    #[error("the lab in {} is running already (process {pid})", state.display())]
    Running {
        /// Its state folder.
        state: PathBuf,
        /// Its process.
        pid: String,
    },
    /// Something in the state folder could not be read or written.
    #[error("cannot {attempt} {}", path.display())]
    State {
        /// What was tried.
        attempt: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The state folder holds something a lab did not write.
    #[error("{} is not what a lab writes: {problem}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The configuration cannot be built.
    #[error("{0}")]
    Config(String),
    /// A part of a cluster could not be started.
    #[error("cannot start {part} of cluster `{cluster}`: {reason}")]
    Cluster {
        /// Which cluster.
        cluster: String,
        /// Which part.
        part: &'static str,
        /// Why.
        reason: String,
    },
    /// A fault names something the lab does not have.
    #[error("there is no {what} `{name}` in this lab; there is {have}")]
    Unknown {
        /// What kind of thing.
        what: &'static str,
        /// The name asked for.
        name: String,
        /// What there is.
        have: String,
    },
    /// A running lab could not be reached.
    #[error("no lab answers in {}: {reason}", state.display())]
    NotRunning {
        /// Its state folder.
        state: PathBuf,
        /// What happened.
        reason: String,
    },
}

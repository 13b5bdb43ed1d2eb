//! A whole world in one process: Kubernetes clusters with pods that really answer, on networks of their own, with
//! faults on demand.
//!
//! A [`Lab`] is made from a [`LabConfig`]: every cluster has an API server, controllers, and a kubelet that runs pods
//! from a catalogue of built-in workloads. Pods have addresses of their own inside 127.0.0.0/8, so nothing here needs
//! rights; who may dial whom is decided by [`network::World`], and workloads get their sockets from
//! [`podnet::PodNet`].
//!
//! Start at [`Lab::start`]; then [`address`] (who has which address), [`network`], [`podnet`].

pub mod address;
mod cache;
pub mod catalogue;
mod cluster;
mod config;
mod console;
mod delay;
pub mod directory;
mod error;
mod events;
mod fault;
mod grpc_health;
mod kubeconfig;
mod kubelet;
mod lab;
mod loadbalancer;
pub mod network;
pub mod podnet;
mod record;
pub mod socket;
mod state;
pub mod userland;
mod workload;

pub use cluster::{BalancedPort, LoadBalancer};
pub use config::{EnvoyFor, LabCluster, LabConfig};
pub use error::Error;
pub use fault::Fault;
pub use lab::{ClusterStatus, Lab, LabStatus};
pub use record::Recorded;

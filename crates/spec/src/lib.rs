//! Says what a mesh is, and reads and writes it as files.
//!
//! A [`Mesh`] is the understood form: names are valid and unique, every remote has a primary, networks are known.
//! [`read`] makes one of a text, or says everything that is wrong with it. Nothing here does I/O beyond the text it is
//! given, or looks at a clock.
//!
//! Start at [`mesh`], then read `file`, which knows the kinds of files, and `mesh_file`, which is our own.

mod base;
mod draft;
mod eastwest;
mod edit;
mod file;
mod fleet;
mod gateway;
mod karmada;
pub mod mesh;
mod mesh_file;
mod name;
mod problem;
mod ristioctl;
mod shared;
mod topology;
mod write;
mod yaml;

pub use draft::{DEFAULT_NETWORK, DEFAULT_TRUST_DOMAIN};
pub use edit::{EditError, Edited, NewCluster, with_cluster, without_cluster};
pub use file::{Reading, Told, read, read_all, recognise};
pub use fleet::{FleetMember, from_fleet};
pub use gateway::{ClusterGateway, GATEWAY_PORT};
pub use mesh::{
    Api, Charts, Cluster, ControlPlane, Engine, Gateways, Hub, ISTIO_CHARTS, Installer, IntermediateTrust, Join, Mesh,
    Mtls, Origin, Role, Root, Sample, Trust,
};
pub use mesh_file::{API_VERSION, HUB};
pub use name::{ClusterName, MeshName, NameError, NetworkName};
pub use problem::{Place, Problem, Problems, SourceText, Warning};
pub use write::{base_yaml, from_contexts, mesh_yaml, suggest_name, topology_yaml};

//! Says what a mesh is, and reads and writes it as files.
//!
//! A [`Mesh`] is the understood form: names are valid and unique, every remote has a primary, networks are known.
//! It never does I/O beyond the text it is given, and never looks at a clock.
//!
//! Start at [`mesh`], then read `file`.

pub mod mesh;
mod name;

pub use mesh::{Api, Cluster, ControlPlane, Engine, IntermediateTrust, Mesh, Mtls, Origin, Role, Root, Sample, Trust};
pub use name::{ClusterName, MeshName, NameError, NetworkName};

//! What the project promises, walked through with the real binary: a lab in a process of its own beside commands in
//! processes of theirs, each journey with folders, addresses and a mesh of its own.
//!
//! `STOLOS_BIN` names another binary than the one that is built along, such as the release binary;
//! `STOLOS_SWEEP=all` lets the crash sweep die at every single point instead of a sample of them;
//! `STOLOS_CORPUS=all` lets the fault corpus seed every cause instead of a sample of them;
//! `STOLOS_ROTATION=all` replaces the root under 100,000 requests, killed and taken back everywhere;
//! `STOLOS_HUB_KILLS=200` kills a hub so often while it works, instead of a few times;
//! `STOLOS_CUTS=100` cuts a tunnel so often under load, instead of a few times;
//! `STOLOS_JOURNEYS_TRACE=1` with `--nocapture` shows every command with its end and its time.

mod addresses;
mod adoption;
mod asmcli;
mod authorization;
mod bundle;
mod certificates;
mod crash_sweep;
mod credentials;
mod docs;
mod drain;
mod endpoints;
mod envoy;
mod export;
mod fault_corpus;
mod faults;
mod golden;
mod helm;
mod hub;
mod hub_admission;
mod hub_deploy;
mod hub_elected;
mod hub_failover;
mod hub_interpret;
mod hub_loss;
mod hub_policies;
mod hub_proxy;
mod hub_scene;
mod ingress;
mod istio_remote;
mod join_and_leave;
mod karmada;
mod lists;
mod members;
mod operator;
mod primary_remote;
mod ristioctl;
mod rotation;
mod setup_mesh;
mod side_by_side;
mod tampering;
mod traffic;
mod via_tunnel;
mod world;

#[path = "../../../../tests/programs.rs"]
mod programs;

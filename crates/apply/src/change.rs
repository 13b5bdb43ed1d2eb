//! Makes one change. What is found by matching on the change; nothing is decided here.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::future::try_join_all;
use futures::stream::{BoxStream, SelectAll, StreamExt};
use http::Request;
use serde_json::{Value, json};
use stolos_cluster::objects::{self, Event};
use stolos_cluster::{Cluster, Error};
use stolos_hub::member::Joining;
use stolos_plan::{
    Account, Change, Condition, MANAGER, ObjectKey, Objects, Operator, READER_SERVICE_ACCOUNT, Release,
    SYSTEM_NAMESPACE, Step, external_address, is_pending, link_kubeconfig, peer_secret,
};
use stolos_spec::Mesh;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::observe::resource;
use crate::program::{Program, Programs};
use crate::trust::runs;
use crate::{Clusters, State, crash, credential, drain};
use stolos_k8s::meta;
use stolos_serve::because;

/// How often a request is sent again when the API server was busy or the connection broke.
const TRIES: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Between two looks at what is waited for where it cannot be watched.
const SHORTEST_LOOK: Duration = Duration::from_millis(20);
const LONGEST_LOOK: Duration = Duration::from_millis(500);
/// How long a Helm that somebody else runs may take to end before it counts as dead.
const STUCK: Duration = Duration::from_secs(20);
/// Between two looks at what is watched as well.
const SAFETY_LOOK: Duration = Duration::from_secs(2);
/// How long proxies are waited for that could lose a request if what they send to went now. One that never takes its
/// configuration must not keep a cluster in the mesh.
const COURTESY: Duration = Duration::from_secs(60);

/// Everything a step may touch.
pub(crate) struct Hands<'a> {
    pub(crate) mesh: &'a Mesh,
    pub(crate) clusters: &'a Clusters,
    pub(crate) state: &'a State,
    /// How long one wait may take.
    pub(crate) patience: Duration,
    /// How many writes were sent.
    pub(crate) writes: &'a AtomicU64,
    /// Bounds the requests in flight, by cluster.
    pub(crate) room: &'a (dyn Fn(&str) -> std::sync::Arc<Semaphore> + Sync),
    /// What of other people's programs the plan needs.
    pub(crate) programs: &'a Programs,
}

/// Who hears what a step has to tell while it goes on.
pub(crate) struct Ears<'a> {
    /// What it waits for, each time that changes.
    pub(crate) waiting: &'a (dyn Fn(&str) + Sync),
    /// What a program says, line by line.
    pub(crate) said: &'a (dyn Fn(&str) + Sync),
}

/// Why a step failed.
#[derive(Clone, Debug)]
pub(crate) enum Cause {
    /// Something said no.
    Error(String),
    /// What was waited for did not come.
    TimedOut(String),
}

impl From<Error> for Cause {
    fn from(error: Error) -> Self {
        Self::Error(because(&error))
    }
}

impl From<String> for Cause {
    fn from(error: String) -> Self {
        Self::Error(error)
    }
}

/// Makes the step's change.
pub(crate) async fn make(hands: &Hands<'_>, step: &Step, hear: &Ears<'_>) -> Result<(), Cause> {
    let Some(name) = &step.cluster else { return in_folder(hands, &step.change) };
    let cluster = hands.clusters.get(name)?;
    let filled;
    let change = match &step.change {
        Change::WithAddress { of, service, change } => {
            filled = change.with_address(&address(hands, of, service).await?);
            &filled
        }
        change => change,
    };
    match change {
        Change::MakeRoot { .. } => in_folder(hands, change),
        Change::WithAddress { .. } => Err(Cause::Error("an address within an address".to_owned())),
        Change::IssueIntermediate { secret, .. } => {
            let issued = hands.state.issue(hands.mesh, name, SystemTime::now()).await.map_err(|e| because(&e))?;
            let mut secret = secret.clone();
            secret["data"] = json!({
                "ca-cert.pem": BASE64_STANDARD.encode(&issued.ca_cert),
                "ca-key.pem": BASE64_STANDARD.encode(issued.ca_key.expose()),
                "cert-chain.pem": BASE64_STANDARD.encode(&issued.cert_chain),
                "root-cert.pem": BASE64_STANDARD.encode(&issued.root_cert),
            });
            apply(hands, &cluster, &secret).await
        }
        Change::Write { objects } => {
            let mut writes = Vec::new();
            for object in objects {
                writes.push(apply(hands, &cluster, object));
            }
            try_join_all(writes).await.map(drop)
        }
        Change::Link { read, server, authority, token_seconds, account, secret } => {
            let of_reader = || Account {
                place: read.clone(),
                namespace: SYSTEM_NAMESPACE.to_owned(),
                name: READER_SERVICE_ACCOUNT.to_owned(),
                secret: peer_secret(name),
            };
            let account = account.clone().unwrap_or_else(of_reader);
            let token = token(hands, &account, *token_seconds).await?;
            let mut secret = secret.clone();
            let text = link_kubeconfig(read, server, authority, &token);
            secret["data"] = json!({read: BASE64_STANDARD.encode(text)});
            apply(hands, &cluster, &secret).await
        }
        Change::Join { member, region, zone, labels, agent } => {
            let joining = Joining {
                name: member.clone(),
                provider: None,
                region: region.clone(),
                zones: zone.iter().cloned().collect(),
                labels: labels.clone(),
            };
            let joined = hands.clusters.get(member)?;
            let joining = async {
                match agent {
                    Some(image) => stolos_hub::member::install(&cluster.client, &joined, &joining, image).await,
                    None => stolos_hub::member::join(&cluster.client, &joined, &joining).await,
                }
            };
            once(hands, joining).await.map_err(|e| because(&e))?;
            if agent.is_some() {
                (hear.waiting)(&format!("the agent of {member} to be let in"));
                let registered = stolos_hub::member::registered(&cluster.client, &joined, member, hands.patience).await;
                registered.map_err(|error| Cause::TimedOut(because(&error)))?;
            }
            (hear.waiting)(&format!("the hub to reach {member}"));
            let ready = stolos_hub::member::ready(&cluster.client, member, hands.patience).await;
            ready.map_err(|error| Cause::TimedOut(because(&error)))?;
            if agent.is_none() {
                stolos_hub::member::uninstall(&joined).await.map_err(|e| because(&e))?;
            }
            Ok(())
        }
        Change::Unjoin { member } => {
            let net = std::sync::Arc::new(stolos_serve::HostNet::default());
            let leaving = stolos_hub::member::unjoin(&cluster.client, member, net, hands.patience);
            let left = match once(hands, leaving).await {
                Ok(left) => left,
                // One that is gone is as wanted.
                Err(stolos_hub::Error::NoCluster(_)) => return Ok(()),
                Err(error) => return Err(because(&error).into()),
            };
            for object in &left.objects {
                (hear.said)(&format!("left in {member}: {object}"));
            }
            if let Some(why) = &left.account {
                (hear.said)(&format!("the hub's account is still in {member}: {why}"));
            }
            Ok(())
        }
        Change::Remove { objects } => {
            let mut removals = Vec::new();
            for (key, uid) in objects {
                removals.push(remove(hands, &cluster, key, uid));
            }
            try_join_all(removals).await.map(drop)
        }
        Change::Release { object } => {
            let mut nothing = json!({"apiVersion": object.api_version, "kind": object.kind,
                "metadata": {"name": object.name}});
            if let Some(namespace) = &object.namespace {
                nothing["metadata"]["namespace"] = namespace.as_str().into();
            }
            apply(hands, &cluster, &nothing).await
        }
        Change::Install { release, .. } => install(hands, &cluster, release, hear).await,
        Change::Uninstall { releases, .. } => {
            for release in releases {
                let arguments = release.arguments(&cluster.context, hands.patience.as_secs());
                match call(hands, &hands.programs.helm, &cluster, arguments, hear).await {
                    // One that is gone is as wanted.
                    Err(Cause::Error(why)) if why.contains("release: not found") => {}
                    result => result?,
                }
            }
            Ok(())
        }
        Change::Rollback { release, .. } => {
            let arguments = release.arguments(&cluster.context, hands.patience.as_secs());
            call(hands, &hands.programs.helm, &cluster, arguments, hear).await
        }
        Change::Operate { operator, .. } => operate(hands, &cluster, operator, hear).await,
        Change::Withdraw { operators, .. } => {
            for operator in operators {
                withdraw(hands, &cluster, operator, hear).await?;
            }
            Ok(())
        }
        Change::Wait { conditions } => wait(hands, &cluster, conditions, hear.waiting).await,
    }
}

/// Several writes that are one to whoever counts them, and that are not sent again.
async fn once<T>(hands: &Hands<'_>, writes: impl Future<Output = T>) -> T {
    hands.writes.fetch_add(1, Ordering::Relaxed);
    crash::pass(crash::Point::WriteBefore);
    let done = writes.await;
    crash::pass(crash::Point::WriteAfter);
    done
}

/// The address of a Service of another cluster, which is there by now.
async fn address(hands: &Hands<'_>, of: &str, service: &str) -> Result<String, Cause> {
    let cluster = hands.clusters.get(of)?;
    let found = {
        let _room = enter(hands, of).await;
        objects::get(&cluster.client, &resource("v1", "Service"), Some(SYSTEM_NAMESPACE), service).await?
    };
    let found = found.as_ref().and_then(external_address).map(str::to_owned);
    let found = found.ok_or_else(|| format!("Service {SYSTEM_NAMESPACE}/{service} of {of} has no external address"))?;
    if found.parse::<std::net::IpAddr>().is_err() {
        let text = format!(
            "Service {SYSTEM_NAMESPACE}/{service} of {of} has no IP address but a name, {found}: an API server calls no \
             webhook through it; give its load balancer a fixed IP address"
        );
        return Err(text.into());
    }
    Ok(found)
}

/// Installs a release or upgrades it. The values go by a file that only its owner may read.
async fn install(hands: &Hands<'_>, cluster: &Cluster, release: &Release, hear: &Ears<'_>) -> Result<(), Cause> {
    if release.stuck {
        unstick(hands, cluster, release, hear.waiting).await?;
    }
    let (context, seconds) = (&cluster.context, hands.patience.as_secs());
    let arguments = |file: &str| release.arguments(context, file, seconds);
    call_with(hands, &hands.programs.helm, cluster, (&release.name, &release.values), arguments, hear).await
}

/// Installs what a document says, and writes down what that was: `istioctl` leaves no memory in the cluster.
async fn operate(hands: &Hands<'_>, cluster: &Cluster, operator: &Operator, hear: &Ears<'_>) -> Result<(), Cause> {
    let (context, seconds) = (&cluster.context, hands.patience.as_secs());
    let arguments = |file: &str| operator.install(context, file, seconds);
    call_with(hands, &hands.programs.istioctl, cluster, (&operator.name, &operator.document), arguments, hear).await?;
    apply(hands, cluster, &operator.record()).await
}

/// Takes away what a document said, and forgets it.
async fn withdraw(hands: &Hands<'_>, cluster: &Cluster, operator: &Operator, hear: &Ears<'_>) -> Result<(), Cause> {
    let arguments = |file: &str| operator.uninstall(&cluster.context, file);
    call_with(hands, &hands.programs.istioctl, cluster, (&operator.name, &operator.document), arguments, hear).await?;
    remove(hands, cluster, &ObjectKey::of(&operator.record()), "").await
}

/// Runs a program with a named document in a file that only its owner may read, and that is gone afterwards.
async fn call_with(
    hands: &Hands<'_>,
    program: &Option<Program>,
    cluster: &Cluster,
    (name, document): (&str, &Value),
    arguments: impl FnOnce(&str) -> Vec<String>,
    hear: &Ears<'_>,
) -> Result<(), Cause> {
    let file = hands.state.note(&format!("values-{}-{name}.yaml", cluster.name), &format!("{document:#}"));
    let file = file.map_err(|error| because(&error))?;
    let result = call(hands, program, cluster, arguments(&file.to_string_lossy()), hear).await;
    let _ = std::fs::remove_file(&file);
    result
}

/// One run of a program is a write like any other, but it is not sent again: the program does that by itself.
async fn call(
    hands: &Hands<'_>,
    program: &Option<Program>,
    cluster: &Cluster,
    arguments: Vec<String>,
    hear: &Ears<'_>,
) -> Result<(), Cause> {
    let program = program.as_ref().ok_or_else(|| "the program was not looked for".to_owned())?;
    hands.writes.fetch_add(1, Ordering::Relaxed);
    crash::pass(crash::Point::WriteBefore);
    let result = program.run(cluster, arguments, hands.patience, hear.said).await;
    crash::pass(crash::Point::WriteAfter);
    result
}

/// A Helm that was killed leaves a revision that is `pending` for ever, and no Helm touches the release any more. The
/// mesh is ours while we hold its lock; so when nobody ends that operation for a while, it is forgotten. What it made
/// bears the release's name, and the next run takes it up.
async fn unstick(
    hands: &Hands<'_>,
    cluster: &Cluster,
    release: &Release,
    waiting: &(dyn Fn(&str) + Sync),
) -> Result<(), Cause> {
    let secrets = resource("v1", "Secret");
    let labels = format!("owner=helm,name={}", release.name);
    let deadline = Instant::now() + STUCK;
    waiting(&format!("the last operation on release {} to end", release.name));
    loop {
        let found = objects::list(&cluster.client, &secrets, Some(&release.namespace), Some(&labels)).await?;
        fn status(secret: &Value) -> &str {
            secret["metadata"]["labels"]["status"].as_str().unwrap_or_default()
        }
        let pending: Vec<_> = found.iter().filter(|secret| is_pending(status(secret))).collect();
        if pending.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            for secret in pending {
                let uid = secret["metadata"]["uid"].as_str().unwrap_or_default();
                remove(hands, cluster, &ObjectKey::of(secret), uid).await?;
            }
            return Ok(());
        }
        tokio::time::sleep(LONGEST_LOOK).await;
    }
}

fn in_folder(hands: &Hands<'_>, change: &Change) -> Result<(), Cause> {
    match change {
        Change::MakeRoot { organization, validity_seconds } => {
            let validity = Duration::from_secs(*validity_seconds);
            let made = hands.state.make_root(organization, validity, SystemTime::now());
            made.map_err(|error| Cause::Error(because(&error)))
        }
        _ => Err(Cause::Error("a step without a cluster that is not the state folder's".to_owned())),
    }
}

async fn apply(hands: &Hands<'_>, cluster: &Cluster, object: &Value) -> Result<(), Cause> {
    let key = ObjectKey::of(object);
    let resource = resource(&key.api_version, &key.kind);
    let send = || objects::apply(&cluster.client, &resource, object, MANAGER, true);
    write(hands, cluster, send).await.map(drop).map_err(Cause::from)
}

/// Deletes the very object that the plan saw. One that is gone is as wanted; one that took its place is not ours to
/// judge here.
async fn remove(hands: &Hands<'_>, cluster: &Cluster, key: &ObjectKey, uid: &str) -> Result<(), Cause> {
    let resource = resource(&key.api_version, &key.kind);
    let uid = Some(uid).filter(|uid| !uid.is_empty());
    let send = || objects::delete(&cluster.client, &resource, key.namespace.as_deref(), &key.name, uid);
    match write(hands, cluster, send).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_conflict() => {
            Err(Cause::Error(format!("{key} is another one than when the plan was made; run again")))
        }
        Err(error) => Err(error.into()),
    }
}

/// A token of an account, bound to its Secret.
async fn token(hands: &Hands<'_>, account: &Account, seconds: u64) -> Result<String, Cause> {
    let Account { place, namespace, name, secret } = account;
    let cluster = hands.clusters.get(place)?;
    let found = {
        let _room = enter(hands, place).await;
        objects::get(&cluster.client, &resource("v1", "Secret"), Some(namespace), secret).await?
    };
    let found = found.ok_or_else(|| format!("Secret {namespace}/{secret} is not there in {place}"))?;
    let bound = json!({"apiVersion": "v1", "kind": "Secret", "name": secret, "uid": found["metadata"]["uid"]});
    let send = || credential::token(&cluster, (namespace, name), seconds, Some(&bound));
    let answer = write(hands, &cluster, send).await.map_err(|e| format!("{place}: {}", because(&e)))?;
    let token = answer["status"]["token"].as_str().map(str::to_owned);
    Ok(token.ok_or_else(|| format!("{place} answered a request for a token without one"))?)
}

/// Sends a write, again when the API server was busy or the connection broke: every write may be done twice.
async fn write<T, F: Future<Output = Result<T, Error>>>(
    hands: &Hands<'_>,
    cluster: &Cluster,
    send: impl Fn() -> F,
) -> Result<T, Error> {
    let mut pause = FIRST_PAUSE;
    for attempt in 1.. {
        let answer = {
            let _room = enter(hands, &cluster.name).await;
            hands.writes.fetch_add(1, Ordering::Relaxed);
            crash::pass(crash::Point::WriteBefore);
            let answer = send().await;
            crash::pass(crash::Point::WriteAfter);
            answer
        };
        match answer {
            Err(error) if attempt < TRIES && may_pass(&error) => {
                tracing::debug!(cluster = cluster.name, error = because(&error), "sending again");
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            answer => return answer,
        }
    }
    unreachable!("the last attempt returns")
}

/// Whether the same request may well succeed in a moment.
pub(crate) fn may_pass(error: &Error) -> bool {
    match error {
        Error::Request { .. } => error.status().is_none_or(|status| status.code == 429 || status.code >= 500),
        Error::NoAnswer { .. } => true,
        _ => false,
    }
}

async fn enter(hands: &Hands<'_>, cluster: &str) -> Option<tokio::sync::OwnedSemaphorePermit> {
    // Nobody closes it, so there is always a permit in the end.
    (hands.room)(cluster).acquire_owned().await.ok()
}

/// Follows what the conditions are about until all hold, or patience ends with the first that does not. A watch brings
/// the news; a look now and then makes up for one that is refused, ends or leaves something out.
async fn wait(
    hands: &Hands<'_>,
    cluster: &Cluster,
    conditions: &[Condition],
    waiting: &(dyn Fn(&str) + Sync),
) -> Result<(), Cause> {
    let began = Instant::now();
    let deadline = began + hands.patience;
    let mut pause = SHORTEST_LOOK;
    let mut said = String::new();
    let mut changes: Option<Changes> = None;
    let mut seen: Result<Objects, Error> = look(hands, cluster, conditions).await;
    loop {
        let given_up = began.elapsed() >= COURTESY;
        let decides = |condition: &&Condition| !(given_up && matches!(condition, Condition::Forgotten { .. }));
        let missing = match &seen {
            Ok(objects) => conditions.iter().filter(decides).find_map(|condition| condition.holds(objects).err()),
            Err(error) if may_pass(error) => Some(format!("an answer ({})", because(error))),
            Err(_) => return seen.map(drop).map_err(Cause::from),
        };
        let Some(missing) = missing else { return Ok(()) };
        if said != missing {
            waiting(&missing);
            said = missing;
        }
        let Some(changes) = &mut changes else {
            // What went away after the first look and before its watch was open, no watch tells of.
            changes = Some(follow(cluster, conditions).await);
            seen = look(hands, cluster, conditions).await;
            continue;
        };
        let rest = if changes.is_empty() { pause } else { SAFETY_LOOK };
        if Instant::now() >= deadline {
            let seconds = hands.patience.as_secs();
            let why = what_pods_say(cluster, conditions).await;
            return Err(Cause::TimedOut(format!("waited {seconds} s in vain for {said}{why}")));
        }
        let change = tokio::time::timeout_at(deadline.min(Instant::now() + rest), changes.next()).await;
        match (change, &mut seen) {
            (Ok(Some(Ok(Event::Is(object)))), Ok(objects)) => objects.put(object),
            (Ok(Some(Ok(Event::Gone(object)))), Ok(objects)) => drop(objects.remove(&ObjectKey::of(&object))),
            (change, seen) => {
                // A watch that has ended is not opened again: the looks are enough, and a refusal would come again.
                if let Ok(None) = change {
                    tokio::time::sleep_until(deadline.min(Instant::now() + rest)).await;
                }
                *seen = look(hands, cluster, conditions).await;
                pause = (pause * 3 / 2).min(LONGEST_LOOK);
            }
        }
    }
}

/// What is followed while something is waited for.
type Changes = SelectAll<BoxStream<'static, Result<Event, Error>>>;

/// Everything that decides the conditions, as far as it may be watched.
async fn follow(cluster: &Cluster, conditions: &[Condition]) -> Changes {
    let mut opening = Vec::new();
    for condition in conditions {
        for key in condition.reads() {
            opening.push((resource(&key.api_version, &key.kind), key.namespace, Some(key.name), None));
        }
        if let Condition::NoPods { namespace, labels } = condition {
            opening.push((resource("v1", "Pod"), Some(namespace.clone()), None, Some(selector(labels))));
        }
    }
    let opened = opening.into_iter().map(|(resource, namespace, name, labels)| async move {
        let (namespace, name, labels) = (namespace.as_deref(), name.as_deref(), labels.as_deref());
        objects::watch(&cluster.client, &resource, namespace, name, labels).await
    });
    let opened = futures::future::join_all(opened).await;
    opened.into_iter().filter_map(|watch| watch.ok().map(StreamExt::boxed)).collect()
}

fn selector(labels: &std::collections::BTreeMap<String, String>) -> String {
    labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
}

async fn look(hands: &Hands<'_>, cluster: &Cluster, conditions: &[Condition]) -> Result<Objects, Error> {
    let mut found = Objects::default();
    let _room = enter(hands, &cluster.name).await;
    let mut reads = Vec::new();
    for key in conditions.iter().flat_map(Condition::reads) {
        reads.push(async move {
            let resource = resource(&key.api_version, &key.kind);
            objects::get(&cluster.client, &resource, key.namespace.as_deref(), &key.name).await
        });
    }
    found.extend(try_join_all(reads).await?.into_iter().flatten());
    for pod in conditions.iter().filter_map(Condition::trial) {
        found.put(tried(cluster, pod).await?);
    }
    for condition in conditions {
        if let Condition::Forgotten { cluster: former, remotes } = condition {
            found.extend(condition.sight(remembers(hands, cluster, former, remotes).await));
        }
    }
    for condition in conditions {
        if let Condition::NoPods { namespace, labels } = condition {
            let pods = resource("v1", "Pod");
            found.extend(objects::list(&cluster.client, &pods, Some(namespace), Some(&selector(labels))).await?);
        }
    }
    Ok(found)
}

/// What is missing until no proxy that `cluster` leads sends to `former` any more.
async fn remembers(hands: &Hands<'_>, cluster: &Cluster, former: &str, remotes: &[String]) -> Option<String> {
    let mut awaited = Vec::new();
    for remote in remotes {
        // One that does not answer has proxies that nobody can ask about.
        let Ok(remote) = hands.clusters.get(remote) else { continue };
        let pods = objects::list(&remote.client, &resource("v1", "Pod"), None, None).await.unwrap_or_default();
        let proxies = pods.iter().filter(|pod| runs(pod, "istio-proxy") && meta::deletion_timestamp(pod).is_none());
        awaited.extend(proxies.map(|pod| format!("{}.{}", meta::name(pod), meta::namespace(pod))));
    }
    drain::forgotten(cluster, former, &awaited).await.err()
}

/// The pod as it would be made, or itself with the reason why it would not: a dry run, which writes nothing.
async fn tried(cluster: &Cluster, mut pod: Value) -> Result<Value, Error> {
    let failed = |source| Error::Request { what: "try a pod".to_owned(), source: Box::new(source) };
    let namespace = pod["metadata"]["namespace"].as_str();
    let path = stolos_k8s::kind::path("", "v1", "pods", namespace, None);
    let request = Request::post(format!("{path}?dryRun=All")).header("content-type", "application/json");
    let request = request.body(pod.to_string().into_bytes()).map_err(|e| failed(kube::Error::HttpError(e)))?;
    match tokio::time::timeout(objects::ANSWER, cluster.client.request::<Value>(request)).await {
        Ok(Ok(made)) => return Ok(made),
        // A refusal is an answer: the webhook's, or the API server's about it.
        Ok(Err(kube::Error::Api(status))) => pod["status"]["message"] = status.message.clone().into(),
        Ok(Err(error)) => return Err(failed(error)),
        Err(_) => pod["status"]["message"] = "no answer".into(),
    }
    Ok(pod)
}

/// Why pods that were waited for do not run, as far as they say so.
pub(crate) async fn what_pods_say(cluster: &Cluster, conditions: &[Condition]) -> String {
    let mut said = Vec::new();
    for condition in conditions {
        let Condition::Available { namespace, deployment } = condition else { continue };
        let found =
            objects::get(&cluster.client, &resource("apps/v1", "Deployment"), Some(namespace), deployment).await;
        let Ok(Some(found)) = found else { continue };
        let labels = found["spec"]["selector"]["matchLabels"].as_object();
        let labels = labels.into_iter().flatten().filter_map(|(k, v)| Some(format!("{k}={}", v.as_str()?)));
        let labels = labels.collect::<Vec<_>>().join(",");
        let pods = objects::list(&cluster.client, &resource("v1", "Pod"), Some(namespace), Some(&labels)).await;
        for pod in pods.unwrap_or_default() {
            let containers = ["initContainerStatuses", "containerStatuses"].map(|list| pod["status"][list].as_array());
            let waiting = containers.into_iter().flatten().flatten().map(|c| (&c["name"], &c["state"]["waiting"]));
            for (container, waiting) in waiting.filter(|(_, waiting)| waiting.is_object()) {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let name = text(&pod["metadata"]["name"]);
                let (reason, message) = (text(&waiting["reason"]), text(&waiting["message"]));
                said.push(format!("pod {name}, container {}: {reason} {message}", text(container)));
            }
        }
        // A Deployment whose pods are refused says so itself.
        let conditions = found["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let failing = conditions.iter().filter(|c| c["type"] == "ReplicaFailure" && c["status"] == "True");
        said.extend(failing.filter_map(|c| c["message"].as_str().map(str::to_owned)));
    }
    match said.is_empty() {
        true => String::new(),
        false => format!(" ({})", said.join("; ")),
    }
}

//! Being the one of several that acts: a Lease (`coordination.k8s.io/v1`), kept as client-go's leader election keeps it.
//!
//! Its holder renews it, and acts only while it could: [`Held::lost`] completes before anybody else may take it over,
//! as long as clocks run at the same speed. One that wants it at once asks with [`Lease::take`], which goes by the times
//! that are written in it; one that stands by asks again and again as a [`Candidate`], which goes by its own clock alone.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kube::api::{DeleteParams, Preconditions};
use serde_json::{Value, json};
use stolos_k8s::meta::resource_version;
use stolos_serve::{Stop, because};
use tokio::time::Instant;

use crate::Error;
use crate::objects::{self, Resource};

/// How often to try again when another one was faster.
const TRIES: usize = 5;
/// How long a renewal under way may take until the Lease is given back all the same.
const ENDING: Duration = Duration::from_secs(5);

/// The times of a Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// How long a holder counts as alive after its last sign of life.
    pub life: Duration,
    /// How long a holder acts after the last renewal that it knows to have worked; less than `life`.
    pub deadline: Duration,
    /// How often it renews.
    pub renewal: Duration,
}

/// What [`Lease::around`] is called at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Right before a write is sent.
    Before,
    /// Right after its answer, or when there is none.
    After,
}

/// Which Lease, and for whom.
#[derive(Clone)]
pub struct Lease {
    client: kube::Client,
    /// `Lease`, without its spec.
    object: Value,
    holder: String,
    times: Times,
    around: fn(Write),
}

/// What came of asking for a Lease.
pub enum Taken {
    /// It is ours.
    Held(Held),
    /// Somebody else has it.
    Theirs {
        /// Who.
        holder: String,
        /// Since when, as they wrote it.
        since: String,
    },
}

enum Claim {
    /// With its resource version, and when the write was begun: the others count from then at the earliest.
    Ours(String, Instant),
    Theirs {
        holder: String,
        since: String,
    },
    TooLate,
}

/// The name of one of several that stand in for each other: what it was given, or the host's, and a part of its own.
/// Two pods may well have one name, in two clusters or while one of them is on a host that is cut off; whoever finds
/// its own name in a Lease goes on as its holder.
#[must_use]
pub fn identity(name: Option<&str>) -> String {
    let host = || std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "stolos".to_owned());
    format!("{}-{:08x}", name.map_or_else(host, str::to_owned), rand::random::<u32>())
}

impl Lease {
    /// The Lease of `metadata` (with name and namespace), for `holder`.
    #[must_use]
    pub fn new(client: kube::Client, metadata: Value, holder: String, times: Times) -> Self {
        let object = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata});
        Self { client, object, holder, times, around: |_| {} }
    }

    /// Has `around` called before and after every write, where a test lets the process die.
    #[must_use]
    pub fn around(mut self, around: fn(Write)) -> Self {
        self.around = around;
        self
    }

    /// Takes the Lease if nobody else has it, or who has it was silent for longer than it may.
    ///
    /// # Errors
    ///
    /// When the API server refuses or does not answer.
    pub async fn take(self) -> Result<Taken, Error> {
        self.taken(&|found| {
            let spec = &found["spec"];
            let renewed = spec["renewTime"].as_str().and_then(|time| time.parse::<Timestamp>().ok());
            let life = Duration::from_secs(spec["leaseDurationSeconds"].as_u64().unwrap_or(0));
            let silent = renewed.map(|at| Timestamp::now().duration_since(at)).and_then(|d| Duration::try_from(d).ok());
            // A renewal in the future (their clock is ahead) counts as one just now.
            renewed.is_none() || silent.is_some_and(|silent| silent > life)
        })
        .await
    }

    async fn taken(&self, expired: &(dyn Fn(&Value) -> bool + Sync)) -> Result<Taken, Error> {
        for _ in 0..TRIES {
            match self.claim(expired).await? {
                Claim::Ours(version, since) => return Ok(Taken::Held(Held::begin(self.clone(), version, since))),
                Claim::Theirs { holder, since } => return Ok(Taken::Theirs { holder, since }),
                Claim::TooLate => {}
            }
        }
        Ok(Taken::Theirs { holder: "somebody".to_owned(), since: "just now".to_owned() })
    }

    async fn claim(&self, expired: &(dyn Fn(&Value) -> bool + Sync)) -> Result<Claim, Error> {
        // Nearly always there is no Lease, and then one request is enough.
        let began = Instant::now();
        if let Some(version) = self.put(None).await? {
            return Ok(Claim::Ours(version, began));
        }
        let Some(found) = self.find().await? else { return Ok(Claim::TooLate) };
        let holder = holder(&found);
        if holder == self.holder || holder.is_empty() || expired(&found) {
            let began = Instant::now();
            let written = self.put(Some(resource_version(&found))).await?;
            return Ok(written.map_or(Claim::TooLate, |version| Claim::Ours(version, began)));
        }
        let since = found["spec"]["acquireTime"].as_str().unwrap_or("an unknown time").to_owned();
        Ok(Claim::Theirs { holder: holder.to_owned(), since })
    }

    fn place(&self) -> (&str, &str) {
        let text = |field: &str| self.object["metadata"][field].as_str().unwrap_or_default();
        (text("namespace"), text("name"))
    }

    async fn find(&self) -> Result<Option<Value>, Error> {
        let (namespace, name) = self.place();
        objects::get(&self.client, &kind()?, Some(namespace), name).await
    }

    /// Writes us as the holder: over `version`, or as a new Lease. The new version, or `None` when somebody was faster.
    async fn put(&self, over: Option<&str>) -> Result<Option<String>, Error> {
        let now = format!("{:.6}", Timestamp::now());
        let mut object = self.object.clone();
        object["spec"] = json!({"holderIdentity": self.holder, "leaseDurationSeconds": self.times.life.as_secs(),
            "acquireTime": now, "renewTime": now});
        let kind = kind()?;
        (self.around)(Write::Before);
        let answer = match over {
            None => objects::create(&self.client, &kind, &object, MANAGER).await,
            Some(version) => {
                object["metadata"]["resourceVersion"] = version.into();
                objects::replace(&self.client, &kind, &object, MANAGER).await
            }
        };
        (self.around)(Write::After);
        match answer {
            Ok(written) => Ok(Some(resource_version(&written).to_owned())),
            Err(error) if error.is_conflict() || (over.is_some() && error.is_not_found()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives the Lease back, unless somebody else has taken it meanwhile.
    async fn delete(&self, version: String) -> Result<(), Error> {
        let (namespace, name) = self.place();
        let params = DeleteParams {
            preconditions: Some(Preconditions { resource_version: Some(version), uid: None }),
            ..DeleteParams::default()
        };
        let (kind, what) = (kind()?, || format!("give back Lease {namespace}/{name}"));
        (self.around)(Write::Before);
        let api = kind.api(&self.client, Some(namespace));
        let answer = objects::bounded(what, api.delete(name, &params)).await;
        (self.around)(Write::After);
        match answer {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }
}

/// Who the writes are by.
const MANAGER: &str = "stolos-lease";

fn kind() -> Result<Resource, Error> {
    Resource::named("coordination.k8s.io/v1", "Lease")
}

fn holder(lease: &Value) -> &str {
    lease["spec"]["holderIdentity"].as_str().unwrap_or_default()
}

/// One that stands by. It takes over when the Lease has not changed, as seen from here, for as long as it says.
pub struct Candidate {
    lease: Lease,
    /// The version that was seen last, and when it was new.
    seen: Mutex<Option<(String, Instant)>>,
}

impl Candidate {
    /// One that has not asked yet.
    #[must_use]
    pub fn new(lease: Lease) -> Self {
        Self { lease, seen: Mutex::default() }
    }

    /// Takes the Lease if it is to be had.
    ///
    /// # Errors
    ///
    /// When the API server refuses or does not answer.
    pub async fn take(&self) -> Result<Taken, Error> {
        self.lease.taken(&|found| self.silent(found, Instant::now())).await
    }

    /// Whether the holder has given no sign of life for as long as it may.
    fn silent(&self, found: &Value, now: Instant) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let life = Duration::from_secs(found["spec"]["leaseDurationSeconds"].as_u64().unwrap_or(0));
        match &*seen {
            Some((known, since)) if known == resource_version(found) => now.duration_since(*since) > life,
            _ => {
                *seen = Some((resource_version(found).to_owned(), now));
                false
            }
        }
    }
}

/// A Lease that is held, and renewed as long as this lives.
pub struct Held {
    lease: Lease,
    version: Arc<Mutex<String>>,
    lost: Stop,
    ending: Stop,
    renewing: tokio::task::JoinHandle<()>,
}

impl Held {
    fn begin(lease: Lease, version: String, since: Instant) -> Self {
        let (lost, ending, version) = (Stop::new(), Stop::new(), Arc::new(Mutex::new(version)));
        let renewing = renew(lease.clone(), Arc::clone(&version), since, lost.clone(), ending.clone());
        let renewing = tokio::spawn(renewing);
        Self { lease, version, lost, ending, renewing }
    }

    /// Completes when somebody else has it, or it could not be renewed for so long that they soon might. May be asked by
    /// several, and again.
    pub async fn lost(&self) {
        self.lost.asked().await;
    }

    /// Gives it back. A Lease that cannot be deleted expires by itself.
    pub async fn release(mut self) {
        self.ending.ask();
        let ended = tokio::time::timeout(ENDING, &mut self.renewing).await.is_ok();
        if self.lost.is_asked() || !ended {
            return;
        }
        let version = self.version.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Err(error) = self.lease.delete(version).await {
            tracing::warn!(error = because(&error), "the Lease stays until it expires");
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

/// Renews a Lease that was taken at `last`: when a renewal that worked was begun, as the others may count from then.
async fn renew(lease: Lease, held: Arc<Mutex<String>>, mut last: Instant, lost: Stop, ending: Stop) {
    let Times { deadline, renewal, .. } = lease.times;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until((Instant::now() + renewal).min(last + deadline)) => {}
            () = ending.asked() => return,
        }
        if last.elapsed() >= deadline {
            break;
        }
        let over = held.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let began = Instant::now();
        match tokio::time::timeout_at(last + deadline, again(&lease, &over)).await {
            Ok(Ok(Some(next))) => {
                *held.lock().unwrap_or_else(PoisonError::into_inner) = next;
                last = began;
            }
            Ok(Ok(None)) => break,
            Ok(Err(error)) => tracing::warn!(error = because(&error), "could not renew the Lease"),
            Err(_) => tracing::warn!("could not renew the Lease: no answer in time"),
        }
    }
    lost.ask();
}

/// Renews, also over what others have changed of a Lease that is still ours. `None` when it is not.
async fn again(lease: &Lease, over: &str) -> Result<Option<String>, Error> {
    let mut over = over.to_owned();
    for _ in 0..TRIES {
        if let Some(next) = lease.put(Some(&over)).await? {
            return Ok(Some(next));
        }
        match lease.find().await? {
            Some(found) if holder(&found) == lease.holder => resource_version(&found).clone_into(&mut over),
            _ => return Ok(None),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_stands_by_goes_by_its_own_clock() {
        let client = kube::Client::try_from(kube::Config::new("http://127.0.0.1:9".parse().unwrap())).unwrap();
        let seconds = Duration::from_secs;
        let times = Times { life: seconds(8), deadline: seconds(5), renewal: seconds(2) };
        let lease = Lease::new(client, json!({"name": "l", "namespace": "n"}), "b".to_owned(), times);
        let (candidate, began) = (Candidate::new(lease), Instant::now());
        // Written by a clock that is years behind, and by one that is years ahead: neither matters.
        let cases = [
            (0, "1", "2020-01-01T00:00:00Z", false),
            (7, "1", "2020-01-01T00:00:00Z", false),
            // A sign of life.
            (8, "2", "2090-01-01T00:00:00Z", false),
            (16, "2", "2090-01-01T00:00:00Z", false),
            (17, "2", "2090-01-01T00:00:00Z", true),
        ];
        for (after, version, at, silent) in cases {
            let found = json!({"metadata": {"resourceVersion": version},
                "spec": {"holderIdentity": "a", "leaseDurationSeconds": 8, "renewTime": at}});
            assert_eq!(candidate.silent(&found, began + seconds(after)), silent, "after {after} s");
        }
    }
}

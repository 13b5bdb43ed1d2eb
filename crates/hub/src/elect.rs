//! Several hubs on one API, of which one acts: the one that holds the Lease `karmada-system/stolos-hub`.
//!
//! What a hub knows is in the API and in the members, so that the next one goes on where the last one was. Agents of
//! members that dial out come to whoever leads; the others have no door for them.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use rand::RngExt as _;
use serde_json::json;
use stolos_cluster::lease::{Candidate, Held, Lease, Taken, Times};
use stolos_cluster::objects::{self, Resource};
use stolos_serve::{Net, Stop, because};

use crate::admission::Asked;
use crate::control::{Door, Pages, Settings, start};
use crate::evict::Settings as Patience;
use crate::front::Front;
use crate::install::NAMESPACE;
use crate::{Error, install, label, place};

const NAME: &str = "stolos-hub";
/// Less than Karmada's (15, 10 and 2 s), so that a leader that is killed is missed for seconds only.
const TIMES: Times =
    Times { life: Duration::from_secs(8), deadline: Duration::from_secs(5), renewal: Duration::from_secs(2) };
/// How often one that stands by asks.
const STAND_BY: Duration = Duration::from_secs(1);
/// The longest pause after trouble.
const SLOWEST: Duration = Duration::from_secs(30);

/// Opens the door for agents, anew each time a hub begins to lead.
pub type OpenDoor<'a> = dyn Fn() -> BoxFuture<'a, Result<Option<Door>, String>> + Send + Sync + 'a;

/// One of several hubs on an API.
pub struct Election<'a> {
    /// The API server that they work with.
    pub client: kube::Client,
    /// Where sockets to members come from.
    pub net: Arc<dyn Net>,
    /// Who this one is.
    pub identity: String,
    /// The door for agents.
    pub door: Box<OpenDoor<'a>>,
    /// What it serves itself, if it does.
    pub front: Option<Arc<Front>>,
    /// How patient it is with its members.
    pub patience: Patience,
    /// How it places.
    pub placing: place::Settings,
    /// What it says of itself.
    pub pages: Arc<Pages>,
    /// Told whenever this one's part changes.
    pub news: Box<dyn Fn(Part<'_>) + Send + Sync + 'a>,
}

/// What part one of several hubs has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// It acts.
    Leads,
    /// Another one acts.
    StandsBy {
        /// Who.
        leader: &'a str,
    },
    /// It cannot act, or not see who does, and tries again.
    Fails {
        /// Why.
        why: &'a str,
    },
}

/// Acts whenever no other hub does, until `stop`.
pub async fn elect(election: Election<'_>, stop: &Stop) {
    let metadata = json!({"name": NAME, "namespace": NAMESPACE, "labels": {label::SYSTEM: "true"}});
    let lease = Lease::new(election.client.clone(), metadata, election.identity.clone(), TIMES);
    let candidate = Candidate::new(lease);
    let mut leader: Option<String> = None;
    let mut failures = 0_u32;
    while !stop.is_asked() {
        let taken = tokio::select! {
            taken = take(&election.client, &candidate) => taken,
            () = stop.asked() => return,
        };
        let pause = match taken {
            Ok(Taken::Held(held)) => {
                leader = None;
                match election.lead(held, stop).await {
                    Ok(()) => {
                        failures = 0;
                        STAND_BY
                    }
                    Err(why) => {
                        failures += 1;
                        election.fails(&why, failures)
                    }
                }
            }
            Ok(Taken::Theirs { holder, .. }) => {
                election.pages.stands(true);
                if let Some(front) = &election.front {
                    front.stands_by(&holder);
                }
                if leader.as_ref() != Some(&holder) {
                    (election.news)(Part::StandsBy { leader: &holder });
                    leader = Some(holder);
                }
                failures = 0;
                STAND_BY
            }
            Err(error) => {
                failures += 1;
                leader = None;
                election.fails(&because(&error), failures)
            }
        };
        tokio::select! {
            // Not in step with the others.
            () = tokio::time::sleep(pause.mul_f64(rand::rng().random_range(0.8..1.2))) => {}
            () = stop.asked() => {}
        }
    }
}

/// Asks for the Lease, in a namespace that the first one makes.
async fn take(client: &kube::Client, candidate: &Candidate) -> Result<Taken, Error> {
    match candidate.take().await {
        Err(error) if error.is_not_found() => {
            let namespaces = Resource::named("v1", "Namespace")?;
            if objects::get(client, &namespaces, None, NAMESPACE).await?.is_none() {
                install::namespaces(client).await?;
            }
            Ok(candidate.take().await?)
        }
        taken => Ok(taken?),
    }
}

impl Election<'_> {
    fn fails(&self, why: &str, failures: u32) -> Duration {
        self.pages.stands(false);
        self.front.iter().for_each(|front| front.waits());
        (self.news)(Part::Fails { why });
        STAND_BY.saturating_mul(1 << (failures - 1).min(16)).min(SLOWEST)
    }

    /// Acts until the Lease is lost or `stop`, and has ended by then.
    async fn lead(&self, held: Held, stop: &Stop) -> Result<(), String> {
        let term = stop.child();
        let started = tokio::select! {
            started = self.begin(&term) => started,
            () = held.lost() => Err("another hub was faster".to_owned()),
            () = stop.asked() => Err("it was asked to end".to_owned()),
        };
        let led = match started {
            Ok(running) => {
                self.pages.acts(&running);
                if let Some(front) = &self.front {
                    front.leads(&running).await;
                }
                (self.news)(Part::Leads);
                tokio::select! {
                    () = held.lost() => {}
                    () = term.asked() => {}
                }
                term.ask();
                self.pages.stands(false);
                self.front.iter().for_each(|front| front.waits());
                running.ended().await;
                Ok(())
            }
            Err(why) => {
                term.ask();
                Err(why)
            }
        };
        held.release().await;
        led
    }

    async fn begin(&self, term: &Stop) -> Result<crate::Running, String> {
        let door = (self.door)().await?;
        let (keeper, net) = (self.client.clone().into(), Arc::clone(&self.net));
        // Somebody else's API server reaches this process only where it listens for it.
        let admission = self.front.as_ref().map(|front| Asked::There { client: front.hook() });
        let settings = Settings { keeper, net, door, admission, patience: self.patience, placing: self.placing };
        start(settings, term).await.map_err(|error| because(&error))
    }
}

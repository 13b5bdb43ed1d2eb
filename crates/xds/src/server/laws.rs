//! Whatever happens on the way, a proxy ends with what it should have: both sides' decisions, without sockets.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use proptest::prelude::*;
use prost::Message;
use prost_types::Any;

use super::session::{Answer, Mode, Session};
use super::{Delta, Protocol, Whole};
use crate::client::session::Session as Client;
use crate::envoy::config::core::v3::Node;
use crate::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use crate::message::{CLUSTER, ENDPOINT, LISTENER, ROUTE};
use crate::{Resource, Resources, Snapshot};

const TYPES: [&str; 4] = [CLUSTER, ENDPOINT, LISTENER, ROUTE];

type Contents = BTreeMap<(usize, u8), u8>;

#[derive(Clone, Debug)]
enum Step {
    /// The control plane computes another state: type and name to content.
    Compute(Contents),
    /// The server writes a response.
    Write,
    /// The proxy reads one.
    Read,
    /// The server reads a request.
    Hear,
    /// The connection breaks, and another is made.
    Break,
}

fn step() -> impl Strategy<Value = Step> {
    let contents = proptest::collection::btree_map((0..4_usize, 0..4_u8), 0..3_u8, 0..10);
    prop_oneof![
        3 => contents.prop_map(Step::Compute),
        6 => Just(Step::Write),
        6 => Just(Step::Read),
        6 => Just(Step::Hear),
        1 => Just(Step::Break),
    ]
}

fn snapshot(contents: &Contents, version: usize) -> Arc<Snapshot> {
    let mut snapshot = Snapshot::new(version.to_string());
    for (index, type_url) in TYPES.iter().enumerate() {
        let of_type = contents.iter().filter(|((of, _), _)| *of == index);
        let resource = |((_, name), content): (&(usize, u8), &u8)| {
            Resource::new(name.to_string(), Any { type_url: (*type_url).into(), value: vec![*content] })
        };
        snapshot.set(*type_url, of_type.map(resource).collect::<Resources>());
    }
    Arc::new(snapshot)
}

/// Clusters want endpoints of their name, listeners routes.
fn follow(snapshot: &Snapshot) -> BTreeMap<String, BTreeSet<String>> {
    let names =
        |of: &str| snapshot.get(of).into_iter().flat_map(|all| all.iter().map(|r| r.name.to_string())).collect();
    [(ENDPOINT.to_owned(), names(CLUSTER)), (ROUTE.to_owned(), names(LISTENER))].into()
}

/// What a proxy should end with, by type.
fn expected(snapshot: &Snapshot) -> Vec<BTreeMap<String, String>> {
    let wanted = follow(snapshot);
    let of = |type_url: &&str| {
        let all = snapshot.get(type_url).into_iter().flat_map(|all| all.iter());
        let all = all.filter(|r| wanted.get(*type_url).is_none_or(|names| names.contains(&*r.name)));
        all.map(|r| (r.name.to_string(), r.version.to_string())).collect()
    };
    TYPES.iter().map(of).collect()
}

struct World {
    server: Session,
    client: Client,
    now: Arc<Snapshot>,
    versions: usize,
    connections: u64,
    to_server: VecDeque<DeltaDiscoveryRequest>,
    to_client: VecDeque<Answer>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            server: Session::new(Mode::Delta, 0, Arc::default()),
            client: Client::new(vec![CLUSTER.into(), LISTENER.into()]),
            now: Arc::default(),
            versions: 0,
            connections: 0,
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
        };
        world.step(Step::Break);
        world
    }

    /// Whether anything happened.
    fn step(&mut self, step: Step) -> bool {
        match step {
            Step::Compute(contents) => {
                self.versions += 1;
                self.now = snapshot(&contents, self.versions);
                self.server.snapshot(Arc::clone(&self.now));
            }
            Step::Write => {
                let Some(answer) = self.server.answer() else { return false };
                self.to_client.push_back(answer);
            }
            Step::Read => {
                let Some(answer) = self.to_client.pop_front() else { return false };
                if self.client.response(Delta::response(answer), &|_, _| Ok(())) {
                    let follow = follow(self.client.snapshot());
                    self.client.want(&BTreeMap::new(), &follow);
                }
            }
            Step::Hear => {
                self.to_server.extend(std::iter::from_fn(|| self.client.request()));
                let Some(request) = self.to_server.pop_front() else { return false };
                self.server.request(Delta::ask(request));
            }
            Step::Break => {
                self.to_server.clear();
                self.to_client.clear();
                self.connections += 1;
                self.server = Session::new(Mode::Delta, self.connections, Arc::default());
                self.server.snapshot(Arc::clone(&self.now));
                self.client.open(Node::default());
            }
        }
        true
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            let happened = [Step::Write, Step::Read, Step::Hear].map(|step| self.step(step));
            if happened == [false; 3] {
                return;
            }
        }
        panic!("it never ends");
    }

    fn found(&self) -> Vec<BTreeMap<String, String>> {
        let of = |type_url: &&str| {
            let all = self.client.snapshot().get(type_url).into_iter().flat_map(|all| all.iter());
            all.map(|r| (r.name.to_string(), r.version.to_string())).collect()
        };
        TYPES.iter().map(of).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn a_proxy_ends_with_what_it_should_have(steps in proptest::collection::vec(step(), 0..60)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.settle();
        prop_assert_eq!(world.found(), expected(&world.now));
        prop_assert!(world.server.settled().is_some());
        let mut equal = (*world.now).clone();
        equal.version = "equal".into();
        world.now = Arc::new(equal);
        world.server.snapshot(Arc::clone(&world.now));
        prop_assert!(world.server.answer().is_none(), "an equal state sends nothing");
    }

    /// The state of the world, as a proxy of that variant reads it: clusters and listeners replace, others add.
    #[test]
    fn so_does_one_of_the_state_of_the_world(states in proptest::collection::vec(
        proptest::collection::btree_map((0..4_usize, 0..4_u8), 0..3_u8, 0..10), 1..8,
    )) {
        let mut server = Session::new(Mode::Whole, 1, Arc::default());
        let mut held: BTreeMap<String, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
        let mut asked: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut last = Arc::new(Snapshot::default());
        let ask = |type_url: &str, names: &[String], nonce: &str| {
            let request = DiscoveryRequest {
                type_url: type_url.into(),
                resource_names: names.to_vec(),
                response_nonce: nonce.into(),
                ..Default::default()
            };
            Whole::ask(Message::decode(&*request.encode_to_vec()).unwrap())
        };
        let mut nonces: BTreeMap<String, String> = BTreeMap::new();
        for (version, contents) in states.iter().enumerate() {
            last = snapshot(contents, version);
            server.snapshot(Arc::clone(&last));
            if version == 0 {
                for type_url in [CLUSTER, LISTENER] {
                    server.request(ask(type_url, &[], ""));
                }
            }
            while let Some(answer) = server.answer() {
                let type_url = answer.type_url.to_string();
                let names: Vec<String> = answer.resources.iter().map(|r| r.name.to_string()).collect();
                let response = Whole::response(answer);
                let of_type = held.entry(type_url.clone()).or_default();
                let replaces = type_url == CLUSTER || type_url == LISTENER;
                if replaces {
                    of_type.clear();
                }
                of_type.extend(names.iter().cloned().zip(response.resources.into_iter().map(|any| any.value)));
                nonces.insert(type_url.clone(), response.nonce.clone());
                server.request(ask(&type_url, asked.get(&type_url).map_or(&[], Vec::as_slice), &response.nonce));
                if replaces {
                    let follows = if type_url == CLUSTER { ENDPOINT } else { ROUTE };
                    let before = asked.get(follows);
                    if before.map_or(&[][..], Vec::as_slice) != names {
                        let nonce = nonces.get(follows).cloned().unwrap_or_default();
                        server.request(ask(follows, &names, &nonce));
                        let of_type = held.entry(follows.into()).or_default();
                        of_type.retain(|name, _| names.contains(name));
                        asked.insert(follows.into(), names);
                    }
                }
            }
        }
        for type_url in [CLUSTER, LISTENER] {
            let expected: BTreeMap<String, Vec<u8>> =
                last.get(type_url).unwrap().iter().map(|r| (r.name.to_string(), r.body.value.clone())).collect();
            prop_assert_eq!(held.get(type_url), Some(&expected));
        }
        // What is gone from the world cannot be told in this variant; what is there must be right.
        for (follows, of) in [(ENDPOINT, CLUSTER), (ROUTE, LISTENER)] {
            for resource in last.get(follows).unwrap().iter() {
                if last.resource(of, &resource.name).is_some() {
                    let found = held.get(follows).and_then(|all| all.get(&*resource.name));
                    prop_assert_eq!(found, Some(&resource.body.value), "{} {}", follows, resource.name);
                }
            }
        }
    }
}

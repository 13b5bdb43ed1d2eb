//! What a proxy has, what it wants, and what it answers. No I/O, no clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::envoy::config::core::v3::Node;
use crate::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::google::rpc;
use crate::version::{Resource, Resources, Snapshot};

type Request = DeltaDiscoveryRequest;
type Names = BTreeMap<String, BTreeSet<String>>;

/// Requests waiting above this number stop the reading of responses.
const CONGESTED: usize = 64;
/// gRPC's code for an argument that is wrong.
const INVALID_ARGUMENT: i32 = 3;

/// The lasting state of a client; streams come and go.
pub(crate) struct Session {
    wildcards: Vec<String>,
    wanted: Names,
    snapshot: Snapshot,
    changes: u64,
    /// Requests of the current stream, in order.
    requests: VecDeque<Request>,
    /// Types that this stream has asked for.
    asked: BTreeSet<String>,
}

impl Session {
    pub(crate) fn new(wildcards: Vec<String>) -> Self {
        Self {
            wildcards,
            wanted: Names::new(),
            snapshot: Snapshot::new("0"),
            changes: 0,
            requests: VecDeque::new(),
            asked: BTreeSet::new(),
        }
    }

    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    pub(crate) fn has_request(&self) -> bool {
        !self.requests.is_empty()
    }

    pub(crate) fn is_congested(&self) -> bool {
        self.requests.len() > CONGESTED
    }

    /// The next request to send.
    pub(crate) fn request(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    /// Starts over on a new stream: asks for everything that is wanted, and says what is there.
    pub(crate) fn open(&mut self, node: Node) {
        self.requests.clear();
        self.asked.clear();
        for type_url in self.wildcards.clone() {
            self.ask(&type_url, Vec::new(), Vec::new());
        }
        for (type_url, names) in self.wanted.clone() {
            if !names.is_empty() {
                self.ask(&type_url, names.into_iter().collect(), Vec::new());
            }
        }
        if let Some(first) = self.requests.front_mut() {
            first.node = Some(node);
        }
    }

    /// Wants these names, of all sources together; asks for what is new and forgets what is not wanted any more.
    /// Whether the snapshot has changed.
    pub(crate) fn want(&mut self, wishes: &Names, follow: &Names) -> bool {
        let mut now = wishes.clone();
        for (type_url, names) in follow {
            now.entry(type_url.clone()).or_default().extend(names.iter().cloned());
        }
        let types: BTreeSet<String> = now.keys().chain(self.wanted.keys()).cloned().collect();
        let mut changed = false;
        for type_url in types {
            if self.wildcards.contains(&type_url) {
                continue;
            }
            let before = self.wanted.remove(&type_url).unwrap_or_default();
            let after = now.remove(&type_url).unwrap_or_default();
            let gone: Vec<String> = before.difference(&after).cloned().collect();
            let new: Vec<String> = after.difference(&before).cloned().collect();
            self.wanted.insert(type_url.clone(), after);
            if gone.is_empty() && new.is_empty() {
                continue;
            }
            changed |= self.update(&type_url, Vec::new(), &gone);
            // Before the stream is open, `open` asks for everything at once.
            if !self.asked.is_empty() {
                self.ask(&type_url, new, gone);
            }
        }
        changed
    }

    /// Takes a response, and answers it. Whether the snapshot has changed.
    pub(crate) fn response(
        &mut self,
        response: DeltaDiscoveryResponse,
        check: &dyn Fn(&str, &Resource) -> Result<(), String>,
    ) -> bool {
        let type_url = response.type_url;
        let (mut taken, mut refused) = (Vec::new(), Vec::new());
        for resource in response.resources {
            let Some(body) = resource.resource else {
                // A resource without content only keeps alive what is there.
                continue;
            };
            let resource = Resource { name: resource.name.into(), version: resource.version.into(), body };
            if !self.is_wanted(&type_url, &resource.name) {
                continue;
            }
            match check(&type_url, &resource) {
                Ok(()) => taken.push(Arc::new(resource)),
                Err(why) => refused.push(format!("{}: {why}", resource.name)),
            }
        }
        let mut changed = self.update(&type_url, taken, &response.removed_resources);
        if self.snapshot.get(&type_url).is_none() {
            self.set(&type_url, Resources::default());
            changed = true;
        }
        let error_detail = (!refused.is_empty()).then(|| rpc::Status {
            code: INVALID_ARGUMENT,
            message: refused.join("; "),
            details: Vec::new(),
        });
        self.requests.push_back(Request {
            type_url,
            response_nonce: response.nonce,
            error_detail,
            ..Request::default()
        });
        changed
    }

    fn is_wanted(&self, type_url: &str, name: &str) -> bool {
        self.wildcards.iter().any(|of| of == type_url)
            || self.wanted.get(type_url).is_some_and(|names| names.contains(name))
    }

    fn ask(&mut self, type_url: &str, subscribe: Vec<String>, unsubscribe: Vec<String>) {
        let first = self.asked.insert(type_url.to_owned());
        let there = self.snapshot.get(type_url).filter(|_| first);
        let there = there.into_iter().flat_map(|resources| resources.iter());
        let initial = there.map(|resource| (resource.name.to_string(), resource.version.to_string())).collect();
        self.requests.push_back(Request {
            type_url: type_url.to_owned(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: if first { Vec::new() } else { unsubscribe },
            initial_resource_versions: initial,
            ..Request::default()
        });
    }

    /// Whether anything has changed.
    fn update(&mut self, type_url: &str, taken: Vec<Arc<Resource>>, removed: &[String]) -> bool {
        let there = self.snapshot.get(type_url);
        let is_there = |name: &String| there.is_some_and(|resources| resources.get(name).is_some());
        if taken.is_empty() && !removed.iter().any(is_there) {
            return false;
        }
        let mut resources = there.map(|resources| (**resources).clone()).unwrap_or_default();
        for resource in taken {
            resources.insert(resource);
        }
        for name in removed {
            resources.remove(name);
        }
        self.set(type_url, resources);
        true
    }

    fn set(&mut self, type_url: &str, resources: Resources) {
        self.changes += 1;
        self.snapshot.version = self.changes.to_string().into();
        self.snapshot.set(type_url, resources);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::service::discovery::v3 as discovery;
    use crate::message::{CLUSTER, ENDPOINT};
    use prost_types::Any;

    fn response(type_url: &str, nonce: &str, resources: &[(&str, &str)], removed: &[&str]) -> DeltaDiscoveryResponse {
        let resource = |(name, version): &(&str, &str)| discovery::Resource {
            name: (*name).into(),
            version: (*version).into(),
            resource: Some(Any::default()),
            ..Default::default()
        };
        DeltaDiscoveryResponse {
            type_url: type_url.into(),
            nonce: nonce.into(),
            resources: resources.iter().map(resource).collect(),
            removed_resources: removed.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }
    }

    fn names(of: &[&str]) -> Names {
        [(ENDPOINT.to_owned(), of.iter().map(ToString::to_string).collect())].into()
    }

    fn show(session: &mut Session) -> Vec<String> {
        let mut shown = Vec::new();
        while let Some(request) = session.request() {
            let kind = if request.type_url == CLUSTER { "CDS" } else { "EDS" };
            let mut words = vec![kind.to_owned()];
            words.extend(request.resource_names_subscribe.iter().map(|name| format!("+{name}")));
            words.extend(request.resource_names_unsubscribe.iter().map(|name| format!("-{name}")));
            words.extend(request.initial_resource_versions.iter().map(|(name, version)| format!("{name}@{version}")));
            words.extend((!request.response_nonce.is_empty()).then(|| format!("nonce {}", request.response_nonce)));
            words.extend(request.error_detail.map(|detail| format!("error {}", detail.message)));
            words.extend(request.node.map(|node| format!("from {}", node.id)));
            shown.push(words.join(" "));
        }
        shown
    }

    #[test]
    fn a_stream_is_opened_followed_and_resumed() {
        let mut session = Session::new(vec![CLUSTER.into()]);
        let node = Node { id: "me".into(), ..Node::default() };
        session.open(node.clone());
        assert_eq!(show(&mut session), ["CDS from me"]);
        assert!(session.response(response(CLUSTER, "1", &[("a", "v1"), ("b", "v1")], &[]), &|_, _| Ok(())));
        session.want(&Names::new(), &names(&["a", "b"]));
        assert_eq!(show(&mut session), ["CDS nonce 1", "EDS +a +b"]);
        assert!(session.response(response(ENDPOINT, "2", &[("a", "v1"), ("b", "v1")], &[]), &|_, _| Ok(())));
        session.want(&Names::new(), &names(&["a"]));
        assert_eq!(show(&mut session), ["EDS nonce 2", "EDS -b"]);
        assert!(session.snapshot().resource(ENDPOINT, "b").is_none());
        session.open(node);
        assert_eq!(show(&mut session), ["CDS a@v1 b@v1 from me", "EDS +a a@v1"]);
    }

    #[test]
    fn the_bad_one_is_refused_and_the_good_ones_are_taken() {
        let mut session = Session::new(vec![CLUSTER.into()]);
        session.open(Node::default());
        show(&mut session);
        let check = |_: &str, resource: &Resource| match &*resource.name {
            "bad" => Err("no such thing".to_owned()),
            _ => Ok(()),
        };
        session.response(response(CLUSTER, "1", &[("bad", "v1"), ("good", "v1")], &[]), &check);
        assert_eq!(show(&mut session), ["CDS nonce 1 error bad: no such thing"]);
        assert!(session.snapshot().resource(CLUSTER, "good").is_some());
        assert!(session.snapshot().resource(CLUSTER, "bad").is_none());
    }

    #[test]
    fn an_empty_answer_is_an_answer() {
        let mut session = Session::new(vec![CLUSTER.into()]);
        session.open(Node::default());
        assert!(session.snapshot().get(CLUSTER).is_none());
        assert!(session.response(response(CLUSTER, "1", &[], &[]), &|_, _| Ok(())));
        assert!(session.snapshot().get(CLUSTER).is_some());
        assert!(!session.response(response(CLUSTER, "2", &[], &["gone"]), &|_, _| Ok(())));
    }
}

//! The hub's API server and the hub's way to members, put together.

use std::path::Path;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use stolos_apiserver::Server;
use stolos_apiserver::extension::{Answer, Asked, Extension, Place};
use stolos_hub::Running;
use stolos_hub::proxy::{Audit, Call, Caller, Limits, Log, Proxy};

use crate::failure::Failure;

/// Where the audit log is when nobody says so.
const AUDIT: &str = "audit.jsonl";

/// Opens the audit log.
pub(super) fn log(audit: Option<&Path>, folder: &Path) -> Result<(Log, Audit), Failure> {
    let path = audit.map_or_else(|| folder.join(AUDIT), Path::to_owned);
    Log::open(&path).map_err(|error| {
        Failure::caused(&error)
            .while_doing(format!("could not write the audit log {}", path.display()))
            .hint("name another file with `--audit-log FILE`")
    })
}

/// Has `server` let others through to the members of `hub`; the log is to be closed when both have ended.
pub(super) fn serve(server: &Server, hub: &Running, audit: Option<&Path>, folder: &Path) -> Result<Log, Failure> {
    let (log, audit) = log(audit, folder)?;
    let place = Place {
        group: "cluster.karmada.io".to_owned(),
        version: "v1alpha1".to_owned(),
        plural: "clusters".to_owned(),
        sub: "proxy".to_owned(),
        kind: "ClusterProxyOptions".to_owned(),
    };
    server.extend(place, Arc::new(Members(hub.proxy(Limits::default(), audit))));
    Ok(log)
}

/// `clusters/proxy`, as a part of the API server.
struct Members(Proxy);

impl Extension for Members {
    fn answer(&self, asked: Asked) -> BoxFuture<'_, Answer> {
        let Asked { user, by, name: member, base, rest, request, rights } = asked;
        let caller = Caller { name: user.name, groups: user.groups };
        let call = Call { caller, by: by.map(|user| user.name), member, base, rest, request };
        async move { self.0.answer(call, |verb| std::future::ready(rights.allow(verb))).await }.boxed()
    }
}

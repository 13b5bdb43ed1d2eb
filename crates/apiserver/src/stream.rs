//! Logs, exec, attach and port-forward: requests that become streams.

use std::sync::Arc;

use http::Response;
use hyper::upgrade::OnUpgrade;

use crate::api::Api;
use crate::failure::{Failure, Result};
use crate::route::{Ask, Body};

/// Whether a request is one of these.
#[must_use]
pub(crate) fn is_stream(ask: &Ask) -> bool {
    &*ask.resource.storage == "pods" && matches!(ask.target.sub.as_str(), "log" | "exec" | "attach" | "portforward")
}

/// Answers it.
///
/// # Errors
///
/// When the pod, the container or the runtime is not there.
pub(crate) async fn answer(api: &Arc<Api>, ask: Ask, upgrade: Option<OnUpgrade>) -> Result<Response<Body>> {
    let _ = (api, ask, upgrade);
    Err(Failure::not_implemented("not yet"))
}

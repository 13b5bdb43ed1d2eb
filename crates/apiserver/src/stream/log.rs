//! What containers wrote.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Response, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};

use crate::api::Api;
use crate::failure::{Failure, Result};
use crate::route::{Ask, Body, BoxError};
use crate::runtime::{ContainerRef, LogOptions, PodRuntime};

/// Answers with the lines of a container, those to come as well if that is asked for.
///
/// # Errors
///
/// When the query makes no sense, or there is no such log.
pub(crate) async fn answer(
    api: &Arc<Api>,
    ask: &Ask,
    runtime: Arc<dyn PodRuntime>,
    container: ContainerRef,
) -> Result<Response<Body>> {
    let since = match (ask.query.number::<u64>("sinceSeconds")?, ask.query.get("sinceTime")) {
        (Some(seconds), _) => Some(Duration::from_secs(seconds)),
        (None, Some(time)) => {
            let time: jiff::Timestamp = time.parse().map_err(|_| Failure::bad_request("invalid sinceTime"))?;
            Some(Duration::try_from(jiff::Timestamp::now().duration_since(time)).unwrap_or_default())
        }
        (None, None) => None,
    };
    let options = LogOptions {
        follow: ask.query.is("follow"),
        previous: ask.query.is("previous"),
        timestamps: ask.query.is("timestamps"),
        tail_lines: ask.query.number("tailLines")?,
        since,
        limit_bytes: ask.query.number("limitBytes")?,
    };
    let stop = api.stop.clone();
    let lines = runtime.logs(container, options).await?;
    let lines = lines.take_until(async move { stop.asked().await });
    let frames = lines.map(|bytes: Bytes| Ok::<_, BoxError>(Frame::data(bytes)));
    let mut response = Response::new(StreamBody::new(frames.boxed()).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    Ok(response)
}

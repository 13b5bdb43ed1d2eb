//! Answers in protobuf, for clients that accept nothing else.

use bytes::{Buf as _, Bytes, BytesMut};
use futures::StreamExt as _;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use serde_json::Value;

use super::MEDIA;
use crate::failure::Failure;
use crate::route::{self, Body, BoxError, Events};

/// Whether an answer must be in protobuf; if so the header asks for JSON from here on.
///
/// JSON is what is spoken here, so it is preferred wherever it is accepted at all: as Kubernetes' own clients do, who
/// offer protobuf with JSON as second choice, everybody reads what the answer says it is.
pub(crate) fn instead_of_json(headers: &mut HeaderMap) -> bool {
    let Some(accept) = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()) else { return false };
    let offers = || accept.split(',').map(|offer| offer.split(';').next().unwrap_or_default().trim());
    if !offers().any(|media| media == MEDIA)
        || offers().any(|media| matches!(media, "application/json" | "application/*" | "*/*"))
    {
        return false;
    }
    let Ok(json) = HeaderValue::try_from(accept.replace(MEDIA, "application/json")) else { return false };
    headers.insert(header::ACCEPT, json);
    true
}

/// The same answer in protobuf; what has no protobuf form becomes 406.
pub(crate) async fn translate(response: Response<Body>) -> Response<Body> {
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|media| media == "application/json");
    if !is_json {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let media = |media: &'static str| HeaderValue::from_static(media);
    if parts.extensions.remove::<Events>().is_some() {
        parts.headers.insert(header::CONTENT_TYPE, media("application/vnd.kubernetes.protobuf;stream=watch"));
        return Response::from_parts(parts, frames(body));
    }
    let Ok(body) = body.collect().await else { return route::failed(&Failure::internal("an answer broke off")) };
    let written = serde_json::from_slice::<Value>(&body.to_bytes()).ok().and_then(|value| super::encode(&value).ok());
    let Some(written) = written else { return route::failed(&Failure::not_acceptable()) };
    parts.headers.insert(header::CONTENT_TYPE, media(MEDIA));
    Response::from_parts(parts, route::full(written))
}

/// Lines of JSON as frames of protobuf. An event that cannot be written ends the stream: the client asks again.
fn frames(body: Body) -> Body {
    let lines = BodyStream::new(body);
    let state = (lines, BytesMut::new());
    let frames = futures::stream::unfold(state, |(mut lines, mut rest)| async move {
        loop {
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = rest.split_to(end);
                rest.advance(1);
                let event: Value = serde_json::from_slice(&line).ok()?;
                let frame = super::frame(&event).ok()?;
                return Some((Ok::<_, BoxError>(Frame::<Bytes>::data(frame)), (lines, rest)));
            }
            match lines.next().await? {
                Ok(frame) => rest.extend_from_slice(&frame.into_data().ok()?),
                Err(error) => return Some((Err(error), (lines, BytesMut::new()))),
            }
        }
    });
    StreamBody::new(frames.boxed()).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_spoken_where_it_is_accepted() {
        let cases = [
            ("application/vnd.kubernetes.protobuf", true),
            ("application/vnd.kubernetes.protobuf,application/json", false),
            ("application/vnd.kubernetes.protobuf, */*", false),
            ("application/json", false),
            ("application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", true),
            ("text/plain", false),
        ];
        for (accept, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(instead_of_json(&mut headers), expected, "{accept}");
            assert_eq!(headers[header::ACCEPT].to_str().unwrap().contains("json"), accept.contains("json") || expected);
        }
    }
}

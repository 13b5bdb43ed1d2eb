//! Connections that have left HTTP (101): bytes both ways, until either end or silence ends them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use super::body::ResponseBody;
use super::exchange::Exchange;
use super::headers;
use super::reply::here;
use crate::copy::{self, Traffic};

/// How long nothing may move where nothing is said of it: as for connections that are bytes from the start.
const IDLE: Duration = Duration::from_secs(3600);

/// Both ends have left HTTP: bytes from here on. `extended` is how the client came: by a CONNECT of HTTP/2.
pub(super) fn switched(
    exchange: Box<Exchange>,
    mut response: Response<Incoming>,
    client: Option<hyper::upgrade::OnUpgrade>,
    extended: bool,
) -> Response<ResponseBody> {
    let Some(client) = client else {
        return here(exchange, headers::RESET);
    };
    let host = hyper::upgrade::on(&mut response);
    let shared = Arc::clone(&exchange.connection.shared);
    let tasks = shared.tasks.clone();
    let idle = match exchange.connection.http.idle {
        idle if idle.is_zero() => IDLE,
        idle => idle,
    };
    tasks.spawn(async move {
        let traffic = Traffic::default();
        let carrying = async {
            let both = tokio::time::timeout(Duration::from_secs(10), async { tokio::try_join!(client, host) });
            if let Ok(Ok((client, host))) = both.await {
                let _ = copy::any(TokioIo::new(client), TokioIo::new(host), &traffic, idle).await;
            }
        };
        tokio::select! {
            () = carrying => {}
            () = shared.cut.asked() => {}
        }
        let mut exchange = exchange;
        // The connection has been given to the two ends.
        exchange.leased = None;
        exchange.finish(traffic.down.load(Ordering::Relaxed), true);
    });
    let (mut parts, _) = response.into_parts();
    parts.extensions = http::Extensions::new();
    if extended {
        // RFC 8441, section 5: a tunnel is opened by 200, and the handshake's headers have no place in HTTP/2.
        parts.status = StatusCode::OK;
        for name in [header::CONNECTION, header::UPGRADE, header::SEC_WEBSOCKET_ACCEPT] {
            parts.headers.remove(name);
        }
    }
    Response::from_parts(parts, ResponseBody::upgraded())
}

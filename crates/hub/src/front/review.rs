//! What the API server asks before it writes Karmada's kinds.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::Status;
use stolos_serve::because;

use super::{Front, Part, Service, plain, said};
use crate::admit::Others;
use crate::proxy::Body;
use crate::{Error, kinds, model};

/// How many questions are answered at once, and how long one may take to arrive: nobody is asked who they are.
pub(super) const REVIEWS: usize = 64;
const ARRIVED: Duration = Duration::from_secs(10);
/// The largest question: an object as it was and as it is to be, each of at most 3 MiB.
const LARGEST: usize = 8 << 20;

impl Front {
    /// How the API server is told to ask here before it writes.
    pub(crate) fn hook(&self) -> Value {
        let bundle = BASE64_STANDARD.encode(self.authority.roots_pem());
        match &self.service {
            Some(Service { namespace, name, port }) => json!({"caBundle": bundle,
                "service": {"namespace": namespace, "name": name, "port": port, "path": "/review"}}),
            None => json!({"caBundle": bundle, "url": format!("https://{}/review", self.address)}),
        }
    }

    /// Answers the API server that asks whether something may be written.
    pub(super) async fn review(&self, request: Request<Incoming>) -> Response<Body> {
        let Ok(_turn) = self.reviews.try_acquire() else {
            return said(&Status::too_many_requests("too much is asked at once", 1));
        };
        let arriving = Limited::new(request.into_body(), LARGEST).collect();
        let body = match tokio::time::timeout(ARRIVED, arriving).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => return said(&Status::bad_request(error.to_string())),
            Err(_) => return said(&Status::timeout("the question has not arrived in time", 1)),
        };
        let asked: Value = match serde_json::from_slice(&body) {
            Ok(asked) => asked,
            Err(error) => return said(&Status::bad_request(format!("this is no AdmissionReview: {error}"))),
        };
        let leading = match &*self.part.borrow() {
            Part::Leads(leading) => Some(Arc::clone(leading)),
            _ => None,
        };
        let answer = match leading {
            Some(leading) => (leading.review)(&asked),
            None => match self.others(&asked).await {
                Ok(known) => crate::admit::review(&asked, &known),
                Err(error) => return said(&Status::unavailable(because(&error))),
            },
        };
        plain(StatusCode::OK, "application/json", answer.to_string())
    }

    /// What there is that one that is asked about may contradict: a hub that stands by keeps nothing in mind.
    async fn others(&self, asked: &Value) -> Result<Others, Error> {
        let mut others = Others::default();
        match asked["request"]["kind"]["kind"].as_str().unwrap_or_default() {
            "ResourceInterpreterCustomization" => {
                others.customizations = self.all(&kinds::customizations()).await?;
            }
            "ClusterTaintPolicy" => others.taint_policies = self.all(&kinds::taint_policies()).await?,
            _ => {}
        }
        Ok(others)
    }

    /// All objects of a kind of the hub's that can be read.
    async fn all<T: serde::de::DeserializeOwned>(&self, kind: &Resource) -> Result<Vec<T>, Error> {
        Ok(model::read_all(&objects::list(&self.client, kind, None, None).await?))
    }
}

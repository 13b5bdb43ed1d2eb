//! The book shop of Istio's documentation: a page made of details, reviews and ratings.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use stolos_serve::Net;

use super::{Launch, web};

/// Which part of the shop an image is.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Page,
    Details,
    Ratings,
    /// With stars in this colour, if any.
    Reviews(Option<&'static str>),
}

pub(super) const IMAGES: [(&str, Kind); 6] = [
    ("istio/examples-bookinfo-productpage-v1", Kind::Page),
    ("istio/examples-bookinfo-details-v1", Kind::Details),
    ("istio/examples-bookinfo-ratings-v1", Kind::Ratings),
    ("istio/examples-bookinfo-reviews-v1", Kind::Reviews(None)),
    ("istio/examples-bookinfo-reviews-v2", Kind::Reviews(Some("black"))),
    ("istio/examples-bookinfo-reviews-v3", Kind::Reviews(Some("red"))),
];

pub(super) async fn run(launch: Launch, kind: Kind) -> i32 {
    launch.container.output.line("built-in stand-in for istio/examples-bookinfo, listening on port 9080");
    let shop = Arc::new(Shop {
        net: Arc::clone(&launch.container.net),
        details: launch.container.var("DETAILS_HOSTNAME").unwrap_or("details").to_owned(),
        reviews: launch.container.var("REVIEWS_HOSTNAME").unwrap_or("reviews").to_owned(),
        ratings: launch.container.var("RATINGS_HOSTNAME").unwrap_or("ratings").to_owned(),
        pod: launch.hostname.clone(),
        cluster: launch.container.var("CLUSTER_NAME").map(str::to_owned),
        kind,
    });
    web::serve(&launch, 9080, move |request| {
        let shop = Arc::clone(&shop);
        async move { shop.answer(request).await }
    })
    .await
}

struct Shop {
    net: Arc<dyn Net>,
    details: String,
    reviews: String,
    ratings: String,
    pod: String,
    cluster: Option<String>,
    kind: Kind,
}

impl Shop {
    async fn answer<B>(&self, request: Request<B>) -> web::Reply {
        let path = request.uri().path().to_owned();
        let headers = request.headers();
        if path == "/health" {
            return web::json(&json!({"status": "healthy"}));
        }
        match self.kind {
            Kind::Details if path.starts_with("/details") => web::json(&json!({
                "id": 0, "author": "William Shakespeare", "year": 1595, "type": "paperback", "pages": 200,
                "publisher": "PublisherA", "language": "English", "ISBN-10": "1234567890", "ISBN-13": "123-1234567890",
            })),
            Kind::Ratings if path.starts_with("/ratings") => {
                web::json(&json!({"id": 0, "ratings": {"Reviewer1": 5, "Reviewer2": 4}}))
            }
            Kind::Reviews(stars) if path.starts_with("/reviews") => self.reviews(stars, headers).await,
            Kind::Page if path == "/productpage" || path == "/" => self.page(headers).await,
            Kind::Page if path.starts_with("/api/v1/products") => {
                let (host, rest) = match path.rsplit('/').next() {
                    Some("reviews") => (&self.reviews, "/reviews/0"),
                    Some("ratings") => (&self.ratings, "/ratings/0"),
                    _ => (&self.details, "/details/0"),
                };
                match self.fetch(host, rest, headers).await {
                    Ok(value) => web::json(&value),
                    Err(problem) => web::reply(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "application/json",
                        json!({"error": problem}).to_string(),
                    ),
                }
            }
            _ => web::missing(),
        }
    }

    async fn reviews(&self, stars: Option<&str>, headers: &HeaderMap) -> web::Reply {
        let texts = [
            "An extremely entertaining play by Shakespeare. The slapstick humour is refreshing!",
            "Absolutely fun and entertaining. The play lacks thematic depth when compared to other plays by Shakespeare.",
        ];
        let ratings = match stars {
            Some(_) => Some(self.fetch(&self.ratings, "/ratings/0", headers).await),
            None => None,
        };
        let reviews = ["Reviewer1", "Reviewer2"].into_iter().zip(texts).map(|(reviewer, text)| {
            let mut review = json!({"reviewer": reviewer, "text": text});
            match &ratings {
                Some(Ok(found)) => {
                    review["rating"] = json!({"stars": found["ratings"][reviewer], "color": stars});
                }
                Some(Err(_)) => review["rating"] = json!({"error": "Ratings service is currently unavailable"}),
                None => {}
            }
            review
        });
        let cluster = self.cluster.as_deref().unwrap_or("null");
        web::json(
            &json!({"id": "0", "podname": self.pod, "clustername": cluster, "reviews": reviews.collect::<Vec<_>>()}),
        )
    }

    async fn page(&self, headers: &HeaderMap) -> web::Reply {
        let (details, reviews) = futures::join!(
            self.fetch(&self.details, "/details/0", headers),
            self.fetch(&self.reviews, "/reviews/0", headers)
        );
        let mut page = "<!DOCTYPE html>\n<html><head><title>Simple Bookstore App</title></head><body>\n\
            <h1>The Comedy of Errors</h1>\n<h2>Book Details</h2>\n"
            .to_owned();
        match details {
            Ok(details) => {
                for (name, value) in details.as_object().into_iter().flatten() {
                    page += &format!("<p>{name}: {value}</p>\n");
                }
            }
            Err(_) => page += "<p>Error fetching product details!</p>\n",
        }
        page += "<h2>Book Reviews</h2>\n";
        match reviews {
            Ok(found) => {
                for review in found["reviews"].as_array().into_iter().flatten() {
                    let text = |field: &str| review[field].as_str().unwrap_or("").to_owned();
                    page += &format!("<blockquote>{} - {}", text("text"), text("reviewer"));
                    if let Some(stars) = review["rating"]["stars"].as_u64() {
                        page += &format!(" {}", "&#9733;".repeat(stars.min(5) as usize));
                    }
                    page += "</blockquote>\n";
                }
                page += &format!("<p>Reviews served by: {}</p>\n", found["podname"].as_str().unwrap_or("?"));
            }
            Err(_) => page += "<p>Error fetching product reviews!</p>\n",
        }
        web::text(page + "</body></html>\n")
    }

    /// Asks another part of the shop, passing on the headers that carry a trace.
    async fn fetch(&self, host: &str, path: &str, headers: &HeaderMap) -> Result<Value, String> {
        let asking = async {
            let addresses = self.net.resolve(host).await.map_err(|e| e.to_string())?;
            let address = addresses.first().ok_or("no address")?;
            let stream = self.net.dial((*address, 9080).into()).await.map_err(|e| e.to_string())?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
            let answering = async {
                let mut request = Request::get(path).header("host", format!("{host}:9080"));
                for name in ["x-request-id", "traceparent", "end-user", "user-agent"] {
                    if let Some(value) = headers.get(name) {
                        request = request.header(name, value);
                    }
                }
                let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
                let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
                if response.status() != StatusCode::OK {
                    return Err(format!("{host} answered {}", response.status()));
                }
                let body = Limited::new(response.into_body(), 1 << 20).collect().await.map_err(|e| e.to_string())?;
                serde_json::from_slice(&body.to_bytes()).map_err(|e| e.to_string())
            };
            let mut answering = std::pin::pin!(answering);
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                answer = &mut answering => answer,
                _ = &mut connection => answering.await,
            }
        };
        tokio::time::timeout(Duration::from_secs(3), asking).await.unwrap_or_else(|_| Err("timed out".to_owned()))
    }
}

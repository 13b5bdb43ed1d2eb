//! `moul/grpcbin`: gRPC in its four shapes, without TLS on port 9000 (the other, 9001, has none here).
//!
//! Services are `hello.HelloService`, parts of `grpcbin.GRPCBin`, and `grpc.health.v1.Health`. Anything else is
//! UNIMPLEMENTED, as gRPC wants it.

use futures::stream::{BoxStream, StreamExt};
use http::{Request, Response};
use hyper::body::Incoming;
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::{Launch, web};
use crate::grpc_health::{HealthCheckRequest, HealthCheckResponse, SERVING};

const PORT: u16 = 9000;

#[derive(Clone, PartialEq, prost::Message)]
struct HelloRequest {
    #[prost(string, optional, tag = "1")]
    greeting: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HelloResponse {
    #[prost(string, tag = "1")]
    reply: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EmptyMessage {}

#[derive(Clone, PartialEq, prost::Message)]
struct SpecificErrorRequest {
    #[prost(uint32, tag = "1")]
    code: u32,
    #[prost(string, tag = "2")]
    reason: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HeadersMessage {
    #[prost(btree_map = "string, message", tag = "1")]
    metadata: std::collections::BTreeMap<String, Values>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Values {
    #[prost(string, repeated, tag = "1")]
    values: Vec<String>,
}

type Many = BoxStream<'static, Result<HelloResponse, Status>>;

pub(super) async fn run(launch: Launch) -> i32 {
    launch.container.output.line(format!("built-in stand-in for moul/grpcbin, listening on port {PORT} without TLS"));
    let hostname = launch.hostname.clone();
    web::serve(&launch, PORT, move |request| answer(request, hostname.clone())).await
}

fn hello(request: HelloRequest) -> HelloResponse {
    HelloResponse { reply: format!("hello {}", request.greeting.as_deref().unwrap_or("noname")) }
}

async fn answer(request: Request<Incoming>, hostname: String) -> Response<tonic::body::Body> {
    let path = request.uri().path().to_owned();
    let served = served(&path, request).await;
    // Who it was; grpcbin does not say so, but whoever tries out load balancing wants to know.
    served.map_or_else(
        || Status::unimplemented(format!("unknown method {path}")).into_http(),
        |mut response| {
            if let Ok(hostname) = hostname.parse() {
                response.headers_mut().insert("x-served-by", hostname);
            }
            response
        },
    )
}

async fn served(path: &str, request: Request<Incoming>) -> Option<Response<tonic::body::Body>> {
    fn grpc<A: prost::Message + Default + 'static, Q: prost::Message + Default + 'static>()
    -> tonic::server::Grpc<ProstCodec<A, Q>> {
        tonic::server::Grpc::new(ProstCodec::default())
    }
    Some(match path {
        "/hello.HelloService/SayHello" => {
            let say =
                |request: tonic::Request<HelloRequest>| async { Ok(tonic::Response::new(hello(request.into_inner()))) };
            grpc().unary(service_fn(say), request).await
        }
        "/hello.HelloService/LotsOfReplies" => {
            let say = |request: tonic::Request<HelloRequest>| async {
                let reply = hello(request.into_inner());
                let replies: Many = futures::stream::iter((0..10).map(move |_| Ok(reply.clone()))).boxed();
                Ok(tonic::Response::new(replies))
            };
            grpc().server_streaming(service_fn(say), request).await
        }
        "/hello.HelloService/LotsOfGreetings" => {
            let say = |request: tonic::Request<Streaming<HelloRequest>>| async {
                const MOST: usize = 10_000;
                let (mut all, mut requests) = (Vec::new(), request.into_inner());
                while let Some(request) = requests.message().await? {
                    if all.len() >= MOST {
                        return Err(Status::resource_exhausted("too many greetings"));
                    }
                    all.push(request.greeting.unwrap_or_default());
                }
                Ok(tonic::Response::new(HelloResponse { reply: format!("hello {}", all.join(", ")) }))
            };
            grpc().client_streaming(service_fn(say), request).await
        }
        "/hello.HelloService/BidiHello" => {
            let say = |request: tonic::Request<Streaming<HelloRequest>>| async {
                let replies: Many = request.into_inner().map(|request| request.map(hello)).boxed();
                Ok(tonic::Response::new(replies))
            };
            grpc().streaming(service_fn(say), request).await
        }
        "/grpcbin.GRPCBin/Empty" => {
            let say = |_: tonic::Request<EmptyMessage>| async { Ok(tonic::Response::new(EmptyMessage {})) };
            grpc().unary(service_fn(say), request).await
        }
        "/grpcbin.GRPCBin/SpecificError" => {
            let say = |request: tonic::Request<SpecificErrorRequest>| async {
                let SpecificErrorRequest { code, reason } = request.into_inner();
                let code = i32::try_from(code).map_or(Code::Unknown, Code::from);
                let mut status = Status::new(code, reason);
                status.metadata_mut().insert("x-grpcbin", tonic::metadata::MetadataValue::from_static("trailer"));
                Err::<tonic::Response<EmptyMessage>, _>(status)
            };
            grpc().unary(service_fn(say), request).await
        }
        "/grpcbin.GRPCBin/HeadersUnary" => {
            let say = |request: tonic::Request<EmptyMessage>| async move {
                let mut metadata = std::collections::BTreeMap::<String, Values>::new();
                for pair in request.metadata().iter() {
                    if let tonic::metadata::KeyAndValueRef::Ascii(name, value) = pair {
                        let value = String::from_utf8_lossy(value.as_encoded_bytes()).into_owned();
                        metadata.entry(name.to_string()).or_default().values.push(value);
                    }
                }
                Ok(tonic::Response::new(HeadersMessage { metadata }))
            };
            grpc().unary(service_fn(say), request).await
        }
        "/grpc.health.v1.Health/Check" => {
            let say = |request: tonic::Request<HealthCheckRequest>| async {
                match request.into_inner().service.as_str() {
                    "" | "hello.HelloService" | "grpcbin.GRPCBin" => {
                        Ok(tonic::Response::new(HealthCheckResponse { status: SERVING }))
                    }
                    other => Err(Status::not_found(format!("unknown service {other}"))),
                }
            };
            grpc().unary(service_fn(say), request).await
        }
        _ => return None,
    })
}

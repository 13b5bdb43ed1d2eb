//! Every parser of others' bytes, behind one plain function each: [`TARGETS`].
//!
//! They are called by `fuzz/` (cargo-fuzz, with a compiler that instruments) and by this crate's own test, which runs
//! the corpora of `fuzz/corpus` and mutations of them with the stable compiler. A target may refuse its bytes in any way
//! but one: it does not panic, overflow its stack, hang or grow without bound.

mod pure;
mod server;

/// One parser.
#[derive(Clone, Copy)]
pub struct Target {
    /// The name of its corpus and of its cargo-fuzz target.
    pub name: &'static str,
    /// Reads the bytes.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "selector", run: pure::selector },
    Target { name: "patch", run: pure::patch },
    Target { name: "field_set", run: pure::field_set },
    Target { name: "mesh_file", run: pure::mesh_file },
    Target { name: "kubeconfig", run: pure::kubeconfig },
    Target { name: "certificate", run: pure::certificate },
    Target { name: "beginning", run: pure::beginning },
    Target { name: "http", run: pure::http },
    Target { name: "dns", run: pure::dns },
    Target { name: "xds", run: pure::xds },
    Target { name: "api_request", run: server::request },
    Target { name: "api_protobuf", run: server::protobuf },
    Target { name: "api_http", run: server::http },
    Target { name: "token", run: server::token },
    Target { name: "jwt", run: server::jwt },
    Target { name: "websocket", run: server::websocket },
    Target { name: "websocket_frames", run: stolos_apiserver::fuzz::websocket },
    Target { name: "spdy", run: server::spdy },
    Target { name: "spdy_frames", run: stolos_apiserver::fuzz::spdy },
];

/// The target called `name`; what a cargo-fuzz target calls.
///
/// # Panics
///
/// When there is none.
#[allow(clippy::expect_used, reason = "the name is written in the target's source")]
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of that name");
    (target.run)(bytes);
}

/// Whether `header` and `claims` (as the corpus of `jwt` writes them), signed by the server, are believed.
#[must_use]
pub fn is_believed(token: &[u8]) -> bool {
    server::is_believed(token)
}

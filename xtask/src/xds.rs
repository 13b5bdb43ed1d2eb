//! Generates the protocol types of crate `xds` from `crates/xds/proto`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// What is generated: these files and what they import.
const FILES: &[&str] = &[
    "envoy/config/accesslog/v3/accesslog.proto",
    "envoy/config/cluster/v3/cluster.proto",
    "envoy/config/core/v3/address.proto",
    "envoy/config/core/v3/base.proto",
    "envoy/config/core/v3/config_source.proto",
    "envoy/config/core/v3/extension.proto",
    "envoy/config/core/v3/health_check.proto",
    "envoy/config/core/v3/protocol.proto",
    "envoy/config/core/v3/proxy_protocol.proto",
    "envoy/config/endpoint/v3/endpoint.proto",
    "envoy/config/listener/v3/listener.proto",
    "envoy/config/rbac/v3/rbac.proto",
    "envoy/config/route/v3/route.proto",
    "envoy/config/route/v3/scoped_route.proto",
    "envoy/extensions/access_loggers/file/v3/file.proto",
    "envoy/extensions/filters/http/rbac/v3/rbac.proto",
    "envoy/extensions/filters/http/router/v3/router.proto",
    "envoy/extensions/filters/listener/http_inspector/v3/http_inspector.proto",
    "envoy/extensions/filters/listener/original_dst/v3/original_dst.proto",
    "envoy/extensions/filters/listener/proxy_protocol/v3/proxy_protocol.proto",
    "envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.proto",
    "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto",
    "envoy/extensions/filters/network/rbac/v3/rbac.proto",
    "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto",
    "envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls_spiffe_validator_config.proto",
    "envoy/extensions/upstreams/http/v3/http_protocol_options.proto",
    "envoy/service/discovery/v3/ads.proto",
    "envoy/service/secret/v3/sds.proto",
    "envoy/type/matcher/v3/filter_state.proto",
    "envoy/type/matcher/v3/metadata.proto",
    "envoy/type/matcher/v3/path.proto",
    "google/rpc/status.proto",
    "istio/networking/nds/v1/nds.proto",
    "istio/v1/auth/ca.proto",
];

/// Packages that only annotate other files.
const ANNOTATIONS: &[&str] = &["validate", "udpa.annotations", "xds.annotations.v3", "envoy.annotations", "google.api"];

/// Generates into the crate's sources.
pub(crate) fn write() -> Result<()> {
    let (into, fresh) = (generated(), tempfile::tempdir()?);
    generate(fresh.path())?;
    fs::create_dir_all(&into)?;
    for name in read(&into)?.keys() {
        fs::remove_file(into.join(name))?;
    }
    for (name, text) in read(fresh.path())? {
        fs::write(into.join(name), text)?;
    }
    Ok(())
}

/// Fails when generating would change the crate's sources.
pub(crate) fn check() -> Result<()> {
    let fresh = tempfile::tempdir()?;
    generate(fresh.path())?;
    let (committed, fresh) = (read(&generated())?, read(fresh.path())?);
    let names: Vec<_> = committed.keys().chain(fresh.keys()).collect();
    let stale: Vec<_> = names.into_iter().filter(|name| committed.get(*name) != fresh.get(*name)).collect();
    ensure!(stale.is_empty(), "generated protocol types are stale, run `cargo xtask xds`: {stale:?}");
    Ok(())
}

fn generate(into: &Path) -> Result<()> {
    let proto = crate_folder().join("proto");
    let mut files = protox::compile(FILES, [&proto]).context("cannot compile the protocol definitions")?;
    files.file.retain(|file| !ANNOTATIONS.contains(&file.package()));
    let mut config = prost_build::Config::new();
    config.enable_type_names();
    config.type_name_domain(["."], "type.googleapis.com");
    // One message has one encoding: versions are hashes of the encoded form.
    config.btree_map(["."]);
    config.disable_comments(["."]);
    tonic_prost_build::configure()
        .compile_well_known_types(false)
        .disable_comments(["."])
        .build_transport(false)
        .out_dir(into)
        .include_file("mod.rs")
        .emit_rerun_if_changed(false)
        .compile_fds_with_config(files, config)
        .context("cannot write the generated types")
}

fn crate_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/xds")
}

fn generated() -> PathBuf {
    crate_folder().join("src/generated")
}

fn read(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), fs::read_to_string(entry.path())?);
    }
    Ok(files)
}

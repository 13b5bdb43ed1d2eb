//! Writes the description of the built-in kinds that crate `k8s` carries, from the one that Kubernetes publishes.
//!
//! Source: `api/openapi-spec/v3` of the Go module `k8s.io/kubernetes` (Apache License 2.0), fetched through the Go
//! module proxy and checked by Go against its checksum database. Nothing of it is fetched at build time.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use serde_json::{Value, json};

/// The release whose kinds are described.
const MODULE: &str = "k8s.io/kubernetes@v1.34.1";

/// Generates into the crate's sources.
pub(crate) fn write() -> Result<()> {
    for (file, text) in generate()? {
        let mut packed = ZlibEncoder::new(Vec::new(), Compression::best());
        packed.write_all(text.as_bytes())?;
        let path = folder().join(file);
        std::fs::create_dir_all(folder())?;
        std::fs::write(&path, packed.finish()?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Fails when what is there is not what would be generated.
pub(crate) fn check() -> Result<()> {
    for (file, text) in generate()? {
        // How it is packed is the packer's business.
        let mut there = String::new();
        let packed = std::fs::read(folder().join(file)).with_context(|| format!("cannot read {file}"))?;
        ZlibDecoder::new(packed.as_slice()).read_to_string(&mut there).with_context(|| format!("{file} is broken"))?;
        ensure!(there == text, "{file} is not what {MODULE} says: run `cargo xtask openapi`");
    }
    Ok(())
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/k8s/src/schema/builtin")
}

/// The files and what is in them.
fn generate() -> Result<[(&'static str, String); 2]> {
    let mut definitions = read(&fetch()?)?;
    definitions.retain(|name, _| is_stable(name));
    let missing: Vec<_> =
        definitions.values().flat_map(references).filter(|name| !definitions.contains_key(name)).collect();
    ensure!(missing.is_empty(), "definitions are named that are not there: {missing:?}");
    let whole = lines(&definitions);
    definitions.values_mut().for_each(strip);
    Ok([("definitions.z", whole), ("types.z", lines(&definitions))])
}

fn fetch() -> Result<PathBuf> {
    let out = Command::new("go").args(["mod", "download", "-json", MODULE]).output().context("cannot run go")?;
    ensure!(out.status.success(), "go mod download: {}", String::from_utf8_lossy(&out.stderr));
    let said: Value = serde_json::from_slice(&out.stdout)?;
    Ok(Path::new(said["Dir"].as_str().context("go says no folder")?).join("api/openapi-spec/v3"))
}

fn read(folder: &Path) -> Result<BTreeMap<String, Value>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let document: Value = serde_json::from_str(&std::fs::read_to_string(entry?.path())?)?;
        for (name, schema) in document["components"]["schemas"].as_object().into_iter().flatten() {
            let mut schema = schema.clone();
            // Options are one type in every group; which groups there are is for the server to say.
            if let Some(kinds) = schema.get_mut("x-kubernetes-group-version-kind").and_then(Value::as_array_mut)
                && kinds.len() > 1
            {
                kinds.retain(|kind| kind["group"] == "" && kind["version"] == "v1");
            }
            found.insert(name.clone(), schema);
        }
    }
    ensure!(found.len() > 500, "only {} definitions in {}", found.len(), folder.display());
    Ok(found)
}

/// Versions that come and go are not served.
fn is_stable(name: &str) -> bool {
    !name.split('.').any(|part| part.starts_with('v') && (part.contains("alpha") || part.contains("beta")))
        && !["io.k8s.api.resource.", "io.k8s.api.flowcontrol."].iter().any(|group| name.starts_with(group))
}

fn references(value: &Value) -> Vec<String> {
    match value {
        Value::Object(map) => {
            let own = map.get("$ref").and_then(Value::as_str).and_then(|text| text.rsplit('/').next());
            own.map(str::to_owned).into_iter().chain(map.values().flat_map(references)).collect()
        }
        Value::Array(list) => list.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

/// Takes the words away and leaves the types.
fn strip(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    map.remove("description");
    map.remove("x-kubernetes-unions");
    for (key, value) in map {
        match key.as_str() {
            "properties" => value.as_object_mut().into_iter().flatten().for_each(|(_, below)| strip(below)),
            "items" | "additionalProperties" => strip(value),
            "allOf" | "oneOf" => value.as_array_mut().into_iter().flatten().for_each(strip),
            _ => {}
        }
    }
}

/// One definition a line: its name, a tab, its schema.
fn lines(definitions: &BTreeMap<String, Value>) -> String {
    definitions.iter().map(|(name, schema)| format!("{name}\t{}\n", json!(schema))).collect()
}

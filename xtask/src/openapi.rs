//! Writes the description of the built-in kinds that crate `k8s` carries, from the one that Kubernetes publishes.
//!
//! Source: `api/openapi-spec/v3` of the Go module `k8s.io/kubernetes` (Apache License 2.0), fetched through the Go
//! module proxy and checked by Go against its checksum database. Nothing of it is fetched at build time.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use flate2::{Compression, write::ZlibEncoder};
use serde_json::{Value, json};

/// The release whose kinds are described.
const MODULE: &str = "k8s.io/kubernetes@v1.34.1";

/// Generates into the crate's sources.
pub(crate) fn write() -> Result<()> {
    let mut definitions = read(&fetch()?)?;
    definitions.retain(|name, _| is_stable(name));
    let missing: Vec<_> =
        definitions.values().flat_map(references).filter(|name| !definitions.contains_key(name)).collect();
    ensure!(missing.is_empty(), "definitions are named that are not there: {missing:?}");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/k8s/src/schema/builtin");
    std::fs::create_dir_all(&folder)?;
    pack(&folder.join("definitions.z"), &definitions)?;
    definitions.values_mut().for_each(strip);
    pack(&folder.join("types.z"), &definitions)
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
fn pack(path: &Path, definitions: &BTreeMap<String, Value>) -> Result<()> {
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::best());
    for (name, schema) in definitions {
        writeln!(packed, "{name}\t{}", json!(schema))?;
    }
    let packed = packed.finish()?;
    std::fs::write(path, packed).with_context(|| format!("cannot write {}", path.display()))
}

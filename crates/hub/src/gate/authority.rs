//! Who signs agents' certificates, and those of the hub's own doors: kept in the hub's API, so that every replica of a hub
//! has the same.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use stolos_cluster::objects::{self, Resource};
use stolos_pki::Authority;

use crate::install::NAMESPACE;
use crate::{Error, MANAGER, label};

const SECRET: &str = "stolos-agents-ca";
/// Ten years: agents are told its fingerprint, so it is not replaced under way.
const VALIDITY: Duration = Duration::from_secs(3650 * 86_400);

/// The hub's authority, made if there is none.
pub(crate) async fn of(client: &kube::Client) -> Result<Authority, Error> {
    let secrets = Resource::named("v1", "Secret")?;
    if let Some(secret) = objects::get(client, &secrets, Some(NAMESPACE), SECRET).await? {
        return load(&secret);
    }
    let made = Authority::new_root("stolos hub", VALIDITY, SystemTime::now()).map_err(unusable)?;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": SECRET, "namespace": NAMESPACE, "labels": {label::SYSTEM: "true"}},
        "data": {"tls.crt": BASE64_STANDARD.encode(made.roots_pem()), "tls.key": BASE64_STANDARD.encode(made.key_pem().expose())}});
    match objects::create(client, &secrets, &secret, MANAGER).await {
        Ok(_) => Ok(made),
        // Another replica was first: its is the hub's.
        Err(error) if error.is_conflict() => {
            let secret = objects::get(client, &secrets, Some(NAMESPACE), SECRET).await?;
            load(&secret.ok_or_else(|| unusable("it is gone again"))?)
        }
        Err(error) => Err(error.into()),
    }
}

fn load(secret: &Value) -> Result<Authority, Error> {
    let text = |key: &str| {
        let bytes = BASE64_STANDARD.decode(secret["data"][key].as_str().unwrap_or_default()).ok()?;
        String::from_utf8(bytes).ok().map(stolos_pki::Secret::new)
    };
    let (Some(certificate), Some(key)) = (text("tls.crt"), text("tls.key")) else {
        return Err(unusable("it has no `tls.crt` and `tls.key`"));
    };
    Authority::load(certificate.expose(), key.expose(), SystemTime::now()).map_err(unusable)
}

fn unusable(why: impl ToString) -> Error {
    Error::Agents(format!("could not use Secret {NAMESPACE}/{SECRET}: {}", why.to_string()))
}

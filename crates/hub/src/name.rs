//! What the hub's objects are called.

/// The namespace of the hub that holds the [`Work`](https://karmada.io/docs/core-concepts/concepts) of a member cluster.
#[must_use]
pub fn execution_namespace(cluster: &str) -> String {
    format!("karmada-es-{cluster}")
}

/// The name of the binding of a template: `<name>-<kind>` in lower case, `:` (as in names of roles) as `.`
/// (Karmada v1.18.2, `names.GenerateBindingName`).
#[must_use]
pub fn binding(kind: &str, name: &str) -> String {
    format!("{name}-{kind}").to_lowercase().replace(':', ".")
}

/// The name of the Work of a template: its own name and a hash of what it is (Karmada v1.18.2, `names.GenerateWorkName`).
#[must_use]
pub fn work(kind: &str, name: &str, namespace: &str) -> String {
    let name = name.replace(':', ".");
    let whole = if namespace.is_empty() { format!("{name}-{kind}") } else { format!("{namespace}-{name}-{kind}") };
    format!("{}-{}", name.to_lowercase(), hash(&whole.to_lowercase()))
}

/// The name of the Secret with the token by which others' requests are passed on (Karmada v1.18.2,
/// `names.GenerateImpersonationSecretName`).
#[must_use]
pub fn impersonator(cluster: &str) -> String {
    format!("{cluster}-impersonator")
}

/// What tells one manifest from another.
#[must_use]
pub(crate) fn fingerprint(manifest: &serde_json::Value) -> String {
    hash(&manifest.to_string())
}

/// FNV-1a of 32 bits in decimal, each character as one of Kubernetes' safe letters (`rand.SafeEncodeString`).
fn hash(text: &str) -> String {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash.to_string().bytes().map(|digit| char::from(LETTERS[usize::from(digit) % LETTERS.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_karmadas() {
        assert_eq!(hash("ns-foorand"), "b4978784");
        for (kind, name, namespace, expected) in [
            ("Deployment", "web", "shop", "web-56d6c779bb"),
            ("ConfigMap", "web-cfg", "shop", "web-cfg-64d47c5848"),
            ("Namespace", "shop", "", "shop-55c4c4674c"),
            ("ClusterRole", "system:reader", "", "system.reader-95c867f78"),
        ] {
            assert_eq!(work(kind, name, namespace), expected, "{kind} {name}");
        }
        assert_eq!(binding("Deployment", "web"), "web-deployment");
        assert_eq!(binding("ClusterRole", "system:reader"), "system.reader-clusterrole");
        assert_eq!(execution_namespace("eu"), "karmada-es-eu");
    }
}

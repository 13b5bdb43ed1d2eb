//! A remote secret's kubeconfig, as far as causes ask about it.

use serde_json::Value;

/// What a kubeconfig says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kubeconfig {
    /// The server of the current context.
    pub(crate) server: String,
    /// How it authenticates in a way that a control plane refuses: `exec`, `tokenFile`, …
    pub(crate) refused: Vec<&'static str>,
    /// The bearer token.
    pub(crate) token: Option<String>,
}

/// Reads a kubeconfig.
///
/// # Errors
///
/// Why it is none.
pub(crate) fn read(text: &str) -> Result<Kubeconfig, String> {
    let file: Value = serde_saphyr::from_str(text).map_err(|e| first_line(&e.to_string()))?;
    let entry = |list: &str, name: Option<&str>, field: &str| -> Option<Value> {
        let all = file.get(list)?.as_array()?;
        let found = all.iter().find(|e| name.is_some_and(|n| e["name"] == n));
        found.or(all.first().filter(|_| name.is_none())).map(|e| e[field].clone())
    };
    let current = file["current-context"].as_str().filter(|c| !c.is_empty());
    let context = entry("contexts", current, "context").ok_or("it has no current context")?;
    let cluster = entry("clusters", context["cluster"].as_str(), "cluster").ok_or("its context names no cluster")?;
    let server = cluster["server"].as_str().filter(|s| !s.is_empty()).ok_or("its cluster has no server")?.to_owned();
    let user = entry("users", context["user"].as_str(), "user").unwrap_or_default();
    let mut refused = Vec::new();
    for (field, name) in [
        ("exec", "exec"),
        ("tokenFile", "tokenFile"),
        ("client-certificate", "clientCertificate"),
        ("client-key", "clientKey"),
    ] {
        if !user[field].is_null() {
            refused.push(name);
        }
    }
    // Contract B.5: of the plugins, only `oidc` passes.
    if user["auth-provider"]["name"].as_str().is_some_and(|name| name != "oidc") {
        refused.push("authProvider");
    }
    let token = user["token"].as_str().map(str::to_owned);
    Ok(Kubeconfig { server, refused, token })
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// Host and port of a URL.
pub(crate) fn host(server: &str) -> &str {
    let rest = server.split_once("://").map_or(server, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_control_plane_refuses_is_named() {
        let of = |user: &str| {
            read(&format!(
                "clusters: [{{name: c, cluster: {{server: 'https://10.0.0.1:6443'}}}}]\n\
                 contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\ncurrent-context: c\n\
                 users: [{{name: u, user: {user}}}]\n"
            ))
            .unwrap()
        };
        assert_eq!(of("{token: abc}").token.as_deref(), Some("abc"));
        assert!(of("{token: abc}").refused.is_empty());
        assert_eq!(of("{exec: {command: aws}}").refused, ["exec"]);
        assert_eq!(of("{tokenFile: /t, client-key: /k}").refused, ["tokenFile", "clientKey"]);
        assert_eq!(of("{auth-provider: {name: gcp}}").refused, ["authProvider"]);
        assert!(of("{auth-provider: {name: oidc}}").refused.is_empty());
        assert!(read("{}").is_err() && read("[").is_err());
        for (server, expected) in
            [("https://a.example:6443/x", "a.example"), ("https://[::1]:6443", "::1"), ("10.0.0.1", "10.0.0.1")]
        {
            assert_eq!(host(server), expected);
        }
    }
}

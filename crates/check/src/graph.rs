//! Draws a mesh: networks as boxes, clusters in them, gateways between them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::{ClusterStatus, StatusReport};

/// How to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For a terminal.
    Text,
    /// Graphviz.
    Dot,
    /// A picture.
    Svg,
}

/// Draws what `status` says.
#[must_use]
pub fn graph(status: &StatusReport, format: Format) -> String {
    match format {
        Format::Text => text(status),
        Format::Dot => dot(status),
        Format::Svg => svg(status),
    }
}

fn networks(status: &StatusReport) -> BTreeMap<&str, Vec<&ClusterStatus>> {
    status.clusters.iter().fold(BTreeMap::new(), |mut networks, cluster| {
        networks.entry(cluster.network.as_str()).or_default().push(cluster);
        networks
    })
}

/// `ready/asked` of the control plane, or why nothing is known.
fn control(cluster: &ClusterStatus) -> String {
    match (&cluster.unreachable, &cluster.control_plane, &cluster.primary) {
        (Some(_), ..) => "unreachable".to_owned(),
        (None, Some(istiod), _) => format!("istiod {}/{}", istiod.ready, istiod.replicas),
        (None, None, Some(primary)) => format!("remote of {primary}"),
        (None, None, None) => "no control plane".to_owned(),
    }
}

fn addresses(cluster: &ClusterStatus) -> String {
    cluster.gateways.iter().flat_map(|g| g.addresses.iter().cloned()).collect::<Vec<_>>().join(", ")
}

fn workloads(status: &StatusReport, cluster: &str) -> String {
    let here =
        |s: &crate::ServiceStatus| s.endpoints.get(cluster).filter(|n| **n > 0).map(|n| format!("{} ×{n}", s.name));
    status.services.iter().filter_map(here).collect::<Vec<_>>().join(", ")
}

fn text(status: &StatusReport) -> String {
    let mut out = format!("mesh {}\n", status.mesh);
    let networks = networks(status);
    let last = networks.len();
    for (n, (network, clusters)) in networks.iter().enumerate() {
        let (branch, bar) = if n + 1 == last { ("└─", "  ") } else { ("├─", "│ ") };
        let _ = writeln!(out, "{branch} network {network}");
        for (c, cluster) in clusters.iter().enumerate() {
            let (twig, stem) = if c + 1 == clusters.len() { ("└─", "  ") } else { ("├─", "│ ") };
            let region = cluster.region.as_ref().map_or(String::new(), |r| format!("  {r}"));
            let _ = writeln!(out, "{bar} {twig} {}{region}  {}", cluster.name, control(cluster));
            let gateway = addresses(cluster);
            if !gateway.is_empty() {
                let _ = writeln!(out, "{bar} {stem}    gateway {gateway}");
            }
            let services = workloads(status, &cluster.name);
            if !services.is_empty() {
                let _ = writeln!(out, "{bar} {stem}    {services}");
            }
        }
    }
    out
}

fn dot(status: &StatusReport) -> String {
    let mut out = format!("graph {} {{\n  compound=true; node [shape=box, style=rounded];\n", quoted(&status.mesh));
    let networks = networks(status);
    for (network, clusters) in &networks {
        let _ =
            writeln!(out, "  subgraph {} {{\n    label={};", quoted(&format!("cluster_{network}")), quoted(network));
        for cluster in clusters {
            let label = [cluster.name.clone(), control(cluster), addresses(cluster)].join("\n");
            let _ = writeln!(out, "    {} [label={}];", quoted(&cluster.name), quoted(label.trim_end()));
        }
        out.push_str("  }\n");
    }
    for (a, from) in status.clusters.iter().enumerate() {
        for to in &status.clusters[a + 1..] {
            let how = if from.network == to.network { "direct" } else { "gateway" };
            let style = if how == "direct" { "solid" } else { "dashed" };
            let _ = writeln!(out, "  {} -- {} [label={how}, style={style}];", quoted(&from.name), quoted(&to.name));
        }
    }
    out.push_str("}\n");
    out
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

fn svg(status: &StatusReport) -> String {
    const WIDTH: usize = 300;
    const ROW: usize = 78;
    const TOP: usize = 48;
    let networks = networks(status);
    let tallest = networks.values().map(Vec::len).max().unwrap_or(0);
    let (width, height) = (networks.len().max(1) * (WIDTH + 40) + 20, TOP + tallest * ROW + 40);
    let mut boxes = String::new();
    let mut centres: BTreeMap<&str, (usize, usize, &str)> = BTreeMap::new();
    for (n, (network, clusters)) in networks.iter().enumerate() {
        let left = 20 + n * (WIDTH + 40);
        let _ = writeln!(
            boxes,
            r##"<rect x="{left}" y="12" width="{WIDTH}" height="{}" rx="10" fill="#eef3f8" stroke="#9fb3c8"/><text x="{}" y="34" font-weight="bold">{}</text>"##,
            clusters.len() * ROW + TOP,
            left + 12,
            escaped(network),
        );
        for (c, cluster) in clusters.iter().enumerate() {
            let (x, y) = (left + 16, TOP + c * ROW);
            // A remote is as well as its primary.
            let serving = match &cluster.primary {
                Some(primary) => status.clusters.iter().find(|c| c.name == *primary),
                None => Some(*cluster),
            };
            let well = serving.and_then(|c| c.control_plane.as_ref());
            let well = well.is_some_and(|p| p.ready > 0 && p.ready == p.replicas);
            let stroke = if well { "#2f855a" } else { "#c53030" };
            let _ = writeln!(
                boxes,
                r##"<rect x="{x}" y="{y}" width="{}" height="64" rx="6" fill="#ffffff" stroke="{stroke}" stroke-width="2"/><text x="{}" y="{}" font-weight="bold">{}</text><text x="{}" y="{}">{}</text><text x="{}" y="{}">{}</text>"##,
                WIDTH - 32,
                x + 10,
                y + 20,
                escaped(&cluster.name),
                x + 10,
                y + 38,
                escaped(&control(cluster)),
                x + 10,
                y + 56,
                escaped(&addresses(cluster)),
            );
            centres.insert(&cluster.name, (x + (WIDTH - 32) / 2, y + 32, network));
        }
    }
    let mut lines = String::new();
    let names: Vec<_> = centres.values().collect();
    for (a, (x1, y1, from)) in names.iter().enumerate() {
        for (x2, y2, to) in &names[a + 1..] {
            let dash = if from == to { "" } else { r#" stroke-dasharray="6 4""# };
            let _ = writeln!(lines, r##"<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#627d98"{dash}/>"##);
        }
    }
    // Lines run to the middle of a cluster, so the networks' ground goes first and the lines over it.
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<title>mesh {}</title>\n{boxes}<g opacity=\"0.5\">\n{lines}</g>\n</svg>\n",
        escaped(&status.mesh),
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ControlPlaneStatus, GatewayStatus, ServiceStatus};

    fn cluster(name: &str, network: &str) -> ClusterStatus {
        ClusterStatus {
            name: name.into(),
            network: network.into(),
            primary: None,
            labelled_network: None,
            drained: None,
            region: Some(network.replace("network", "us")),
            server: "https://127.16.0.1:6443".into(),
            version: Some("v1.34.0".into()),
            unreachable: None,
            tunnel: None,
            control_plane: Some(ControlPlaneStatus {
                image: "stolos/control:0.1.0".into(),
                revision: "default".into(),
                ready: 1,
                replicas: 1,
            }),
            gateways: vec![GatewayStatus {
                service: "istio-system/istio-eastwestgateway".into(),
                network: network.into(),
                addresses: vec![format!("{name}:15443")],
                ready: 1,
            }],
            certificates: vec![],
            peers: vec![],
            not_supported: None,
            measured_at: String::new(),
            age_ms: 0,
        }
    }

    fn mesh() -> StatusReport {
        StatusReport {
            api_version: "stolos.dev/v1alpha1",
            kind: "StatusReport",
            mesh: "mymesh".into(),
            clusters: vec![
                cluster("east-1", "network-east"),
                cluster("east-2", "network-east"),
                cluster("west-1", "network-west"),
            ],
            services: vec![ServiceStatus {
                namespace: "sample".into(),
                name: "helloworld".into(),
                endpoints: BTreeMap::from([("east-1".to_owned(), 1), ("east-2".to_owned(), 0)]),
            }],
        }
    }

    #[test]
    fn a_mesh_as_text() {
        insta::assert_snapshot!(graph(&mesh(), Format::Text), @r"
        mesh mymesh
        ├─ network network-east
        │  ├─ east-1  us-east  istiod 1/1
        │  │     gateway east-1:15443
        │  │     helloworld ×1
        │  └─ east-2  us-east  istiod 1/1
        │        gateway east-2:15443
        └─ network network-west
           └─ west-1  us-west  istiod 1/1
                 gateway west-1:15443
        ");
    }

    #[test]
    fn a_mesh_for_graphviz() {
        let drawn = graph(&mesh(), Format::Dot);
        assert!(drawn.contains(r#""east-1" -- "east-2" [label=direct, style=solid];"#), "{drawn}");
        assert!(drawn.contains(r#""east-1" -- "west-1" [label=gateway, style=dashed];"#), "{drawn}");
        assert!(drawn.contains(r#"subgraph "cluster_network-east""#), "{drawn}");
    }

    #[test]
    fn names_cannot_break_a_picture() {
        let mut odd = mesh();
        odd.clusters[0].name = "<a&\"b\">".into();
        assert!(graph(&odd, Format::Svg).contains("&lt;a&amp;&quot;b&quot;&gt;"));
        assert!(graph(&odd, Format::Dot).contains(r#""<a&\"b\">""#));
    }
}

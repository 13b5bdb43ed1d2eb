//! Every label, annotation, name and port that the mesh and Istio's tools agree on.

/// The system (root) namespace.
pub const SYSTEM_NAMESPACE: &str = "istio-system";
/// The default cluster domain and trust domain.
pub const DEFAULT_DOMAIN: &str = "cluster.local";
/// The default revision.
pub const DEFAULT_REVISION: &str = "default";
/// The cluster ID of an istiod that was not told one.
pub const DEFAULT_CLUSTER_ID: &str = "Kubernetes";

// Topology.

/// Label on namespaces, Services, pods and WorkloadEntries: the network.
pub const NETWORK_LABEL: &str = "topology.istio.io/network";
/// Virtual label: the cluster of an endpoint.
pub const CLUSTER_LABEL: &str = "topology.istio.io/cluster";
/// Label: the subzone of a node.
pub const SUBZONE_LABEL: &str = "topology.istio.io/subzone";
/// Label: the region of a node.
pub const REGION_LABEL: &str = "topology.kubernetes.io/region";
/// Label: the zone of a node.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Annotation on a remote cluster's system namespace: its primaries.
pub const CONTROL_PLANE_CLUSTERS_ANNOTATION: &str = "topology.istio.io/controlPlaneClusters";
/// Label on a gateway Service: its cross-network port, when not [`CROSS_NETWORK_PORT`].
pub const GATEWAY_PORT_LABEL: &str = "networking.istio.io/gatewayPort";
/// Annotation on a NodePort gateway Service: which nodes' addresses count.
pub const NODE_SELECTOR_ANNOTATION: &str = "traffic.istio.io/nodeSelector";
/// Label on a Service, value [`TRUE`]: global in ambient mode.
pub const GLOBAL_LABEL: &str = "istio.io/global";

// Remote secrets.

/// Annotation of the system namespace, Stolos' own: since when its cluster is drained, so that no other reads it.
pub const DRAINED_ANNOTATION: &str = "stolos.dev/drained";
/// Annotation of the system namespace: the revision that an upgrade under way leads to.
pub const UPGRADING_ANNOTATION: &str = "stolos.dev/upgrading";
/// Label on a remote secret, value [`TRUE`]: the only selector istiod uses.
pub const MULTI_CLUSTER_LABEL: &str = "istio/multiCluster";
/// Annotation on a remote secret: the cluster, for people; istiod does not read it.
pub const CLUSTER_ANNOTATION: &str = "networking.istio.io/cluster";
/// Annotation on a remote secret of Istio 1.4 to 1.6.
pub const CLUSTER_CONTEXT_ANNOTATION: &str = "istio.io/clusterContext";
/// What remote secrets' names begin with, by convention.
pub const REMOTE_SECRET_PREFIX: &str = "istio-remote-secret-";
/// The Secret with the kubeconfig of an external control plane's config cluster.
pub const KUBECONFIG_SECRET: &str = "istio-kubeconfig";
/// The service account whose token other clusters' control planes use.
pub const READER_SERVICE_ACCOUNT: &str = "istio-reader-service-account";
/// The ClusterRole of the reader, before `-<namespace>`.
pub const READER_CLUSTER_ROLE: &str = "istio-reader-clusterrole";
/// The Secret with the reader's token.
pub const READER_TOKEN_SECRET: &str = "istio-reader-service-account-istio-remote-secret-token";
/// The label's value `"true"`, a string.
pub const TRUE: &str = "true";

// Trust.

/// The Secret with the cluster's signing certificate.
pub const CACERTS_SECRET: &str = "cacerts";
/// Key of [`CACERTS_SECRET`]: the signing certificate.
pub const CA_CERT_KEY: &str = "ca-cert.pem";
/// Key of [`CACERTS_SECRET`]: the signing key.
pub const CA_KEY_KEY: &str = "ca-key.pem";
/// Key of [`CACERTS_SECRET`]: from the signing certificate upward.
pub const CERT_CHAIN_KEY: &str = "cert-chain.pem";
/// Key of [`CACERTS_SECRET`] and of [`ROOT_CONFIG_MAP`]: the roots.
pub const ROOT_CERT_KEY: &str = "root-cert.pem";
/// Key of [`CACERTS_SECRET`]: revocation lists.
pub const CA_CRL_KEY: &str = "ca-crl.pem";
/// The Secret of an istiod that signed its own root.
pub const SELF_SIGNED_SECRET: &str = "istio-ca-secret";
/// Type of [`SELF_SIGNED_SECRET`].
pub const SELF_SIGNED_SECRET_TYPE: &str = "istio.io/ca-root";
/// The ConfigMap in every namespace with the roots in effect.
pub const ROOT_CONFIG_MAP: &str = "istio-ca-root-cert";
/// Label on [`ROOT_CONFIG_MAP`], value [`TRUE`].
pub const CONFIG_LABEL: &str = "istio.io/config";
/// Namespaces that get no [`ROOT_CONFIG_MAP`].
pub const NAMESPACES_WITHOUT_ROOT: &[&str] = &["kube-public", "kube-node-lease", "local-path-storage"];
/// Audience of the tokens workloads show to the control plane.
pub const TOKEN_AUDIENCE: &str = "istio-ca";
/// Seconds such a token lives.
pub const TOKEN_EXPIRATION_SECONDS: i64 = 43_200;
/// gRPC metadata key of CSRs and xDS: the caller's cluster.
pub const CLUSTER_ID_METADATA: &str = "clusterid";

// The control plane.

/// Deployment, Service, service account and `app` label of the control plane.
pub const ISTIOD: &str = "istiod";
/// The control plane's service account.
pub const ISTIOD_SERVICE_ACCOUNT: &str = "istiod";
/// The ConfigMap with the mesh configuration.
pub const MESH_CONFIG_MAP: &str = "istio";
/// Key of [`MESH_CONFIG_MAP`]: the mesh configuration.
pub const MESH_KEY: &str = "mesh";
/// Key of [`MESH_CONFIG_MAP`]: the static networks.
pub const MESH_NETWORKS_KEY: &str = "meshNetworks";
/// The ConfigMap with the injection template and values.
pub const INJECTOR_CONFIG_MAP: &str = "istio-sidecar-injector";
/// Key of [`INJECTOR_CONFIG_MAP`]: the values.
pub const VALUES_KEY: &str = "values";
/// Key of [`INJECTOR_CONFIG_MAP`]: the template.
pub const CONFIG_KEY: &str = "config";
/// The MutatingWebhookConfiguration.
pub const INJECTOR_WEBHOOK: &str = "istio-sidecar-injector";
/// What the four webhooks' names end with.
pub const INJECTOR_WEBHOOK_SUFFIX: &str = "sidecar-injector.istio.io";
/// Path of the webhook.
pub const INJECT_PATH: &str = "/inject";
/// The default validating webhook.
pub const DEFAULT_VALIDATOR: &str = "istiod-default-validator";
/// What a revision tag's webhook is named before the tag.
pub const REVISION_TAG_PREFIX: &str = "istio-revision-tag-";
/// ConfigMap lock of the root ConfigMap writer.
pub const NAMESPACE_CONTROLLER_ELECTION: &str = "istio-namespace-controller-election";
/// ConfigMap lock of the config status writer.
pub const LEADER_ELECTION: &str = "istio-leader";
/// Plaintext xDS.
pub const XDS_PLAINTEXT_PORT: u16 = 15010;
/// TLS: xDS and the certificate service.
pub const XDS_PORT: u16 = 15012;
/// The webhook's target port.
pub const WEBHOOK_PORT: u16 = 15017;
/// The webhook's Service port.
pub const WEBHOOK_SERVICE_PORT: u16 = 443;
/// Metrics and `/ready`.
pub const MONITORING_PORT: u16 = 15014;
/// Debug endpoints and `/ready`.
pub const DEBUG_PORT: u16 = 8080;

// Injection and revisions.

/// Label on a namespace: [`INJECTION_ENABLED`] or [`INJECTION_DISABLED`].
pub const INJECTION_LABEL: &str = "istio-injection";
/// Value of [`INJECTION_LABEL`].
pub const INJECTION_ENABLED: &str = "enabled";
/// Value of [`INJECTION_LABEL`].
pub const INJECTION_DISABLED: &str = "disabled";
/// Label on namespaces and pods (annotation on injected pods): the revision.
pub const REVISION_LABEL: &str = "istio.io/rev";
/// Annotation on injected pods: the revision that injected.
pub const REVISION_ANNOTATION: &str = "istio.io/rev";
/// Label on a revision tag's webhook.
pub const TAG_LABEL: &str = "istio.io/tag";
/// Label (or, weaker, annotation) on a pod: `true` or `false`.
pub const INJECT_LABEL: &str = "sidecar.istio.io/inject";
/// Annotation on injected pods: what was added.
pub const STATUS_ANNOTATION: &str = "sidecar.istio.io/status";
/// Annotation on pods: which templates, e.g. [`GATEWAY_TEMPLATE`].
pub const TEMPLATES_ANNOTATION: &str = "inject.istio.io/templates";
/// The template of gateways.
pub const GATEWAY_TEMPLATE: &str = "gateway";
/// The template of sidecars.
pub const SIDECAR_TEMPLATE: &str = "sidecar";
/// The image of a container that injection is to fill in.
pub const AUTO_IMAGE: &str = "auto";
/// Label on a workload, value [`TLS_MODE_ISTIO`]: it accepts mTLS.
pub const TLS_MODE_LABEL: &str = "security.istio.io/tlsMode";
/// Value of [`TLS_MODE_LABEL`], and of `tlsMode` in transport socket matches.
pub const TLS_MODE_ISTIO: &str = "istio";
/// What an endpoint without mTLS is marked as.
pub const TLS_MODE_DISABLED: &str = "disabled";
/// Label: canonical name of the workload's service.
pub const CANONICAL_NAME_LABEL: &str = "service.istio.io/canonical-name";
/// Label: canonical revision of the workload's service.
pub const CANONICAL_REVISION_LABEL: &str = "service.istio.io/canonical-revision";
/// Label: data plane mode of ambient.
pub const DATAPLANE_MODE_LABEL: &str = "istio.io/dataplane-mode";
/// Namespaces that are never injected.
pub const NEVER_INJECTED_NAMESPACES: &[&str] = &["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];
/// The proxy's container.
pub const PROXY_CONTAINER: &str = "istio-proxy";
/// The redirecting init container.
pub const INIT_CONTAINER: &str = "istio-init";
/// The proxy's user and group.
pub const PROXY_UID: i64 = 1337;
/// What environment variables that become node metadata begin with.
pub const META_ENV_PREFIX: &str = "ISTIO_META_";
/// Environment of a proxy: its cluster.
pub const CLUSTER_ID_ENV: &str = "ISTIO_META_CLUSTER_ID";
/// Environment of a proxy: its network.
pub const NETWORK_ENV: &str = "ISTIO_META_NETWORK";
/// Environment of a proxy: the mesh.
pub const MESH_ID_ENV: &str = "ISTIO_META_MESH_ID";
/// Environment of a gateway: only endpoints of these networks.
pub const REQUESTED_NETWORK_VIEW_ENV: &str = "ISTIO_META_REQUESTED_NETWORK_VIEW";
/// Environment of a proxy whose redirection speaks PROXY protocol.
pub const REDIRECT_ENV: &str = "ISTIO_META_STOLOS_REDIRECT";
/// Value of [`REDIRECT_ENV`].
pub const REDIRECT_PROXY_PROTOCOL: &str = "proxy-protocol";
/// [`PROXY_ANNOTATION`] as the proxy's container is told.
pub const PROXY_ENV: &str = "STOLOS_PROXY";
/// Istio's annotation with the proxy's configuration, over the mesh's.
pub const PROXY_CONFIG_ANNOTATION: &str = "proxy.istio.io/config";
/// Volume with the token for the control plane.
pub const TOKEN_VOLUME: &str = "istio-token";
/// Volume with the root bundle.
pub const ROOT_VOLUME: &str = "istiod-ca-cert";
/// Volume with the pod's labels and annotations.
pub const POD_INFO_VOLUME: &str = "istio-podinfo";
/// Where [`TOKEN_VOLUME`] is mounted.
pub const TOKEN_MOUNT: &str = "/var/run/secrets/tokens";
/// Where [`ROOT_VOLUME`] is mounted.
pub const ROOT_MOUNT: &str = "/var/run/secrets/istio";
/// Where [`POD_INFO_VOLUME`] is mounted.
pub const POD_INFO_MOUNT: &str = "/etc/istio/pod";
/// Where [`CACERTS_SECRET`] is mounted in the control plane.
pub const CACERTS_MOUNT: &str = "/etc/cacerts";

// The proxy.

/// Redirected outbound connections.
pub const OUTBOUND_PORT: u16 = 15001;
/// Redirected inbound connections.
pub const INBOUND_PORT: u16 = 15006;
/// Readiness.
pub const HEALTH_PORT: u16 = 15021;
/// Path of readiness at [`HEALTH_PORT`].
pub const HEALTH_PATH: &str = "/healthz/ready";
/// The proxy's metrics.
pub const PROXY_METRICS_PORT: u16 = 15090;
/// The agent's metrics.
pub const TELEMETRY_PORT: u16 = 15020;
/// The proxy's administration.
pub const ADMIN_PORT: u16 = 15000;
/// Cross-network traffic at a gateway.
pub const CROSS_NETWORK_PORT: u16 = 15443;
/// Ambient's tunnel.
pub const HBONE_PORT: u16 = 15008;
/// Application protocols of traffic between sidecars; a gateway's chains match exactly these.
pub const ALPN: &[&str] = &["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];

// The east-west gateway.

/// Deployment, Service and `app` label of the east-west gateway.
pub const EAST_WEST_GATEWAY: &str = "istio-eastwestgateway";
/// Its service account.
pub const EAST_WEST_GATEWAY_SERVICE_ACCOUNT: &str = "istio-eastwestgateway-service-account";
/// The label by which Gateways select gateway pods.
pub const GATEWAY_LABEL: &str = "istio";
/// Value of [`GATEWAY_LABEL`] of the east-west gateway's pods.
pub const EAST_WEST_GATEWAY_SELECTOR: &str = "eastwestgateway";
/// The label with the application's name.
pub const APP_LABEL: &str = "app";
/// The label with the application's version.
pub const VERSION_LABEL: &str = "version";
/// The Gateway that exposes services to other networks.
pub const CROSS_NETWORK_GATEWAY: &str = "cross-network-gateway";
/// The Gateway that exposes the control plane to remote clusters.
pub const ISTIOD_GATEWAY: &str = "istiod-gateway";
/// The VirtualService that goes with [`ISTIOD_GATEWAY`].
pub const ISTIOD_VIRTUAL_SERVICE: &str = "istiod-vs";
/// The gateway name of a VirtualService that means all sidecars.
pub const MESH_GATEWAY: &str = "mesh";

// Services.

/// Annotation on a Service: to which namespaces it is visible.
pub const EXPORT_TO_ANNOTATION: &str = "networking.istio.io/exportTo";
/// Annotation on a Service: further service accounts behind it.
pub const SERVICE_ACCOUNTS_ANNOTATION: &str = "alpha.istio.io/kubernetes-serviceaccounts";
/// Annotation on a Service: further identities behind it.
pub const CANONICAL_SERVICE_ACCOUNTS_ANNOTATION: &str = "alpha.istio.io/canonical-serviceaccounts";
/// Annotation on a Service or namespace: which endpoints are preferred.
pub const TRAFFIC_DISTRIBUTION_ANNOTATION: &str = "networking.istio.io/traffic-distribution";
/// Label of an EndpointSlice: its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Label of an EndpointSlice: who manages it.
pub const ENDPOINT_SLICE_MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";

// Ours.

/// Label on every object Stolos writes.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY_LABEL`], and our field manager.
pub const STOLOS: &str = "stolos";
/// Label on every object Stolos writes: the mesh.
pub const MESH_LABEL: &str = "stolos.dev/mesh";
/// Annotation: the kubeconfig context a cluster's name was made from.
pub const CONTEXT_ANNOTATION: &str = "stolos.dev/context";
/// Annotation on a pod, value `envoy`: inject Envoy instead of our proxy.
pub const PROXY_ANNOTATION: &str = "stolos.dev/proxy";
/// Image of the small control plane, without tag.
pub const CONTROL_IMAGE: &str = "stolos/control";
/// Image of the small proxy, without tag.
pub const PROXY_IMAGE: &str = "stolos/proxy";

/// Which way traffic of a cluster goes, from the proxy's application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the application beside the proxy.
    Inbound,
    /// To others.
    Outbound,
}

impl Direction {
    /// As in cluster names.
    pub fn as_str(self) -> &'static str {
        match self {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        }
    }
}

/// What a cluster's name or an SNI says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName {
    /// Which way.
    pub direction: Direction,
    /// The service's port (inbound: the workload's).
    pub port: u16,
    /// The DestinationRule's subset, or empty.
    pub subset: String,
    /// The service's full host name; empty for inbound.
    pub host: String,
}

/// The server name of a connection to a service behind a gateway: `outbound_.5000_._.helloworld.sample.svc.cluster.local`.
pub fn sni(port: u16, subset: &str, host: &str) -> String {
    format!("outbound_.{port}_.{subset}_.{host}")
}

/// Reads what [`sni()`] writes.
pub fn parse_sni(sni: &str) -> Option<ClusterName> {
    parse_name(sni, "_.")
}

/// The name of a cluster in xDS: `outbound|5000||helloworld.sample.svc.cluster.local`.
pub fn cluster_name(direction: Direction, port: u16, subset: &str, host: &str) -> String {
    format!("{}|{port}|{subset}|{host}", direction.as_str())
}

/// Reads what [`cluster_name()`] writes.
pub fn parse_cluster_name(name: &str) -> Option<ClusterName> {
    parse_name(name, "|")
}

/// The host name of a Service: `helloworld.sample.svc.cluster.local`.
pub fn host(service: &str, namespace: &str, domain: &str) -> String {
    format!("{service}.{namespace}.svc.{domain}")
}

/// Service and namespace of a host name that [`host()`] made for `domain`.
pub fn parse_host<'a>(host: &'a str, domain: &str) -> Option<(&'a str, &'a str)> {
    let (service, namespace) = host.strip_suffix(domain)?.strip_suffix(".svc.")?.split_once('.')?;
    (!service.is_empty() && !namespace.is_empty() && !namespace.contains('.')).then_some((service, namespace))
}

/// The remote secret's name for a cluster.
pub fn remote_secret_name(cluster: &str) -> String {
    format!("{REMOTE_SECRET_PREFIX}{cluster}")
}

/// A name of the control plane with its revision, `istiod` or `istiod-canary`.
pub fn with_revision(name: &str, revision: &str) -> String {
    if revision.is_empty() || revision == DEFAULT_REVISION { name.to_owned() } else { format!("{name}-{revision}") }
}

fn parse_name(name: &str, separator: &str) -> Option<ClusterName> {
    let mut parts = name.splitn(4, separator);
    let direction = match parts.next()? {
        "inbound" => Direction::Inbound,
        "outbound" => Direction::Outbound,
        _ => return None,
    };
    let port = parts.next()?.parse().ok()?;
    let subset = parts.next()?.to_owned();
    let host = parts.next()?.to_owned();
    Some(ClusterName { direction, port, subset, host })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_istios() {
        let host = host("helloworld", "sample", DEFAULT_DOMAIN);
        assert_eq!(sni(5000, "", &host), "outbound_.5000_._.helloworld.sample.svc.cluster.local");
        assert_eq!(sni(5000, "v1", &host), "outbound_.5000_.v1_.helloworld.sample.svc.cluster.local");
        assert_eq!(
            cluster_name(Direction::Outbound, 5000, "", &host),
            "outbound|5000||helloworld.sample.svc.cluster.local"
        );
        assert_eq!(cluster_name(Direction::Inbound, 5000, "", ""), "inbound|5000||");
        assert_eq!(parse_host(&host, DEFAULT_DOMAIN), Some(("helloworld", "sample")));
        for bad in ["a.b.c.svc.cluster.local", ".b.svc.cluster.local", "b.svc.cluster.local", "example.com", ""] {
            assert_eq!(parse_host(bad, DEFAULT_DOMAIN), None, "{bad}");
        }
        for bad in ["", "outbound", "outbound|x||h", "sideways|1||h", "outbound|70000||h", "outbound|1|h"] {
            assert_eq!(parse_cluster_name(bad), None, "{bad}");
        }
        assert_eq!(with_revision(ISTIOD, "default"), "istiod");
        assert_eq!(with_revision(ISTIOD, "canary"), "istiod-canary");
    }

    proptest! {
        #[test]
        fn names_are_read_as_written(port: u16, subset in "[a-z0-9-]{0,8}", host in "[a-z0-9.-]{0,20}") {
            let name = ClusterName { direction: Direction::Outbound, port, subset, host };
            prop_assert_eq!(parse_sni(&sni(port, &name.subset, &name.host)), Some(name.clone()));
            let written = cluster_name(Direction::Outbound, port, &name.subset, &name.host);
            prop_assert_eq!(parse_cluster_name(&written), Some(name));
        }

        #[test]
        fn any_name_is_read_or_refused(text in ".*") {
            parse_sni(&text);
            parse_cluster_name(&text);
            parse_host(&text, DEFAULT_DOMAIN);
        }
    }
}

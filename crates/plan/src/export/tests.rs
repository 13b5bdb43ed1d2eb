use std::time::{Duration, UNIX_EPOCH};

use serde_json::json;
use stolos_spec::{SourceText, read};

use super::*;

fn mesh(engine: &str, remote: bool) -> Mesh {
    let mut clusters = vec![
        json!({"name": "east", "context": "arn:aws:eks/east", "network": "east"}),
        json!({"name": "west", "context": "west", "network": "west"}),
    ];
    if remote {
        clusters[1]["controlPlane"] = json!({"primary": "east"});
    }
    let document = json!({"apiVersion": "stolos.dev/v1alpha1", "kind": "Mesh", "metadata": {"name": "mymesh"},
        "spec": {"controlPlane": {"engine": engine, "version": "1.28.0"}, "clusters": clusters}});
    let mut document = document;
    if engine == "stolos" {
        document["spec"]["controlPlane"] = json!({"engine": engine});
    }
    read(&SourceText { path: "mesh.yaml".into(), text: document.to_string() }, None).unwrap().mesh
}

fn options(format: Format) -> ExportOptions {
    ExportOptions {
        format,
        secrets: Secrets::External { store: "vault".into() },
        kubernetes: "v1.34.0".into(),
        charts: vec![],
        repository: "https://git.example.com/platform".into(),
        revision: "main".into(),
        path: "meshes/mymesh".into(),
    }
}

fn exported(engine: &str, options: &ExportOptions) -> Export {
    export(&mesh(engine, false), options, UNIX_EPOCH + Duration::from_secs(1_700_000_000)).unwrap()
}

fn paths(export: &Export, below: &str) -> String {
    export.files.keys().filter(|path| path.starts_with(below)).map(|path| path.clone() + "\n").collect()
}

const FORMATS: [Format; 4] = [Format::Plain, Format::Kustomize, Format::ArgoCd, Format::Flux];

#[test]
fn every_file_can_be_read_and_none_has_a_secret() {
    for format in FORMATS {
        for engine in ["istio", "stolos"] {
            for secrets in [Secrets::External { store: "vault".into() }, Secrets::Sops] {
                let export = exported(engine, &ExportOptions { secrets, ..options(format) });
                for (path, text) in &export.files {
                    assert!(!text.contains("PRIVATE KEY") && !text.contains("token:"), "{path}");
                    if path.ends_with(".yaml") {
                        for document in text.split("---\n") {
                            let value: Value =
                                serde_saphyr::from_str(document).unwrap_or_else(|e| panic!("{path}: {e}"));
                            assert!(value.is_object(), "{path}: {document}");
                        }
                    }
                }
                for secret in ["cacerts", "istio-remote-secret-west"] {
                    let named = export.files.keys().filter(|p| p.starts_with("clusters/east/") && p.contains(secret));
                    assert_eq!(named.count(), 1, "{format:?} {secret}: {}", paths(&export, ""));
                }
            }
        }
    }
}

#[test]
fn the_same_mesh_is_the_same_files() {
    for format in FORMATS {
        assert_eq!(exported("istio", &options(format)), exported("istio", &options(format)));
    }
}

#[test]
fn what_one_wave_needs_is_in_the_waves_before() {
    let mesh = mesh("istio", false);
    let plan = plan(&mesh, &untouched(&mesh, "v1.34.0", vec![], UNIX_EPOCH)).unwrap();
    let waves = waves(&plan);
    let of: BTreeMap<_, _> = plan.steps.iter().zip(&waves).map(|(step, wave)| (&step.id, (wave, step))).collect();
    for (wave, step) in of.values() {
        for before in &step.after {
            let (earlier, needed) = of[before];
            let writes = !matches!(needed.change, Change::Wait { .. } | Change::MakeRoot { .. });
            assert!(earlier + usize::from(writes) <= **wave, "{} is not after {before}", step.id);
        }
    }
}

#[test]
fn a_cluster_without_a_control_plane_says_what_is_still_to_be_written() {
    let export = export(&mesh("istio", true), &options(Format::Plain), UNIX_EPOCH).unwrap();
    let filled: Vec<_> =
        export.files.iter().filter(|(_, text)| text.contains(MISSING_ADDRESS)).map(|(p, _)| p).collect();
    assert!(!filled.is_empty(), "{}", paths(&export, ""));
    assert!(export.notes.iter().any(|note| note.contains(MISSING_ADDRESS)), "{:?}", export.notes);
}

#[test]
fn files_of_each_format() {
    insta::assert_snapshot!(paths(&exported("istio", &options(Format::Plain)), ""), @r#"
    README.md
    clusters/east/00/namespace-istio-system.yaml
    clusters/east/01/externalsecret-cacerts.yaml
    clusters/east/01/istio-base.values.yaml
    clusters/east/01/secret-stolos-peer-west.yaml
    clusters/east/02/istiod.values.yaml
    clusters/east/03/externalsecret-istio-remote-secret-west.yaml
    clusters/east/03/gateway-cross-network-gateway.yaml
    clusters/east/03/istio-eastwestgateway.values.yaml
    clusters/east/03/peerauthentication-default.yaml
    clusters/west/00/namespace-istio-system.yaml
    clusters/west/01/externalsecret-cacerts.yaml
    clusters/west/01/istio-base.values.yaml
    clusters/west/01/secret-stolos-peer-east.yaml
    clusters/west/02/istiod.values.yaml
    clusters/west/03/externalsecret-istio-remote-secret-east.yaml
    clusters/west/03/gateway-cross-network-gateway.yaml
    clusters/west/03/istio-eastwestgateway.values.yaml
    clusters/west/03/peerauthentication-default.yaml
    "#);
    insta::assert_snapshot!(paths(&exported("istio", &options(Format::Flux)), ""), @r#"
    README.md
    clusters/east/00/kustomization.yaml
    clusters/east/00/namespace-istio-system.yaml
    clusters/east/01/externalsecret-cacerts.yaml
    clusters/east/01/istio-base.helmrelease.yaml
    clusters/east/01/kustomization.yaml
    clusters/east/01/secret-stolos-peer-west.yaml
    clusters/east/02/istiod.helmrelease.yaml
    clusters/east/02/kustomization.yaml
    clusters/east/03/externalsecret-istio-remote-secret-west.yaml
    clusters/east/03/gateway-cross-network-gateway.yaml
    clusters/east/03/istio-eastwestgateway.helmrelease.yaml
    clusters/east/03/kustomization.yaml
    clusters/east/03/peerauthentication-default.yaml
    clusters/west/00/kustomization.yaml
    clusters/west/00/namespace-istio-system.yaml
    clusters/west/01/externalsecret-cacerts.yaml
    clusters/west/01/istio-base.helmrelease.yaml
    clusters/west/01/kustomization.yaml
    clusters/west/01/secret-stolos-peer-east.yaml
    clusters/west/02/istiod.helmrelease.yaml
    clusters/west/02/kustomization.yaml
    clusters/west/03/externalsecret-istio-remote-secret-east.yaml
    clusters/west/03/gateway-cross-network-gateway.yaml
    clusters/west/03/istio-eastwestgateway.helmrelease.yaml
    clusters/west/03/kustomization.yaml
    clusters/west/03/peerauthentication-default.yaml
    flux/east.yaml
    flux/west.yaml
    "#);
    let argo = exported("istio", &options(Format::ArgoCd));
    insta::assert_snapshot!(argo.files["applicationset.yaml"], @r#"
    apiVersion: argoproj.io/v1alpha1
    kind: ApplicationSet
    metadata:
      name: mymesh
      namespace: argocd
    spec:
      generators:
      - list:
          elements:
          - cluster: east
            path: meshes/mymesh/clusters/east
          - cluster: west
            path: meshes/mymesh/clusters/west
      goTemplate: true
      goTemplateOptions:
      - missingkey=error
      template:
        metadata:
          name: mymesh-{{.cluster}}
        spec:
          destination:
            name: "{{.cluster}}"
            namespace: istio-system
          project: default
          source:
            directory:
              exclude: "{*.values.yaml,*.istiooperator.yaml}"
              recurse: true
            path: "{{.path}}"
            repoURL: https://git.example.com/platform
            targetRevision: main
          syncPolicy:
            automated:
              prune: false
              selfHeal: true
            retry:
              backoff:
                duration: 10s
                factor: 2
                maxDuration: 5m
              limit: 10
            syncOptions:
            - ServerSideApply=true
    ---
    apiVersion: argoproj.io/v1alpha1
    kind: ApplicationSet
    metadata:
      name: mymesh-releases
      namespace: argocd
    spec:
      generators:
      - list:
          elements:
          - chart: base
            cluster: east
            namespace: istio-system
            release: istio-base
            repository: https://istio-release.storage.googleapis.com/charts
            values: meshes/mymesh/clusters/east/01/istio-base.values.yaml
            version: "1.28.0"
          - chart: istiod
            cluster: east
            namespace: istio-system
            release: istiod
            repository: https://istio-release.storage.googleapis.com/charts
            values: meshes/mymesh/clusters/east/02/istiod.values.yaml
            version: "1.28.0"
          - chart: gateway
            cluster: east
            namespace: istio-system
            release: istio-eastwestgateway
            repository: https://istio-release.storage.googleapis.com/charts
            values: meshes/mymesh/clusters/east/03/istio-eastwestgateway.values.yaml
            version: "1.28.0"
          - chart: base
            cluster: west
            namespace: istio-system
            release: istio-base
            repository: https://istio-release.storage.googleapis.com/charts
            values: meshes/mymesh/clusters/west/01/istio-base.values.yaml
            version: "1.28.0"
          - chart: istiod
            cluster: west
            namespace: istio-system
            release: istiod
            repository: https://istio-release.storage.googleapis.com/charts
            values: meshes/mymesh/clusters/west/02/istiod.values.yaml
            version: "1.28.0"
          - chart: gateway
            cluster: west
            namespace: istio-system
            release: istio-eastwestgateway
            repository: https://istio-release.storage.googleapis.com/charts
            values: meshes/mymesh/clusters/west/03/istio-eastwestgateway.values.yaml
            version: "1.28.0"
      goTemplate: true
      goTemplateOptions:
      - missingkey=error
      template:
        metadata:
          name: mymesh-{{.cluster}}-{{.release}}
        spec:
          destination:
            name: "{{.cluster}}"
            namespace: "{{.namespace}}"
          ignoreDifferences:
          - group: admissionregistration.k8s.io
            jqPathExpressions:
            - .webhooks[]?.clientConfig.caBundle
            kind: MutatingWebhookConfiguration
          - group: admissionregistration.k8s.io
            jqPathExpressions:
            - .webhooks[]?.clientConfig.caBundle
            - .webhooks[]?.failurePolicy
            kind: ValidatingWebhookConfiguration
          project: default
          sources:
          - chart: "{{.chart}}"
            helm:
              releaseName: "{{.release}}"
              valueFiles:
              - $files/{{.values}}
            repoURL: "{{.repository}}"
            targetRevision: "{{.version}}"
          - ref: files
            repoURL: https://git.example.com/platform
            targetRevision: main
          syncPolicy:
            automated:
              prune: false
              selfHeal: true
            retry:
              backoff:
                duration: 10s
                factor: 2
                maxDuration: 5m
              limit: 10
            syncOptions:
            - ServerSideApply=true
    "#);
    let plain = exported("istio", &options(Format::Plain));
    insta::assert_snapshot!(plain.files["README.md"], @r#"
    # Mesh mymesh

    Written by `stolos export`; export again rather than editing it. There is no secret in it.

    ## To do, and to know

    * east: vault has to know mymesh/east/cacerts with ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem
    * east: vault has to know mymesh/east/istio-remote-secret-west with west
    * west: vault has to know mymesh/west/cacerts with ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem
    * west: vault has to know mymesh/west/istio-remote-secret-east with east
    * the reader of Istio's charts may read every Secret of its cluster: whoever holds a remote secret can, too

    ## Cluster by cluster, folder by folder

    Go on when what a folder made is ready.

    ```sh
    # east
    # 00
    kubectl --context arn:aws:eks/east apply --server-side --field-manager=stolos -f clusters/east/00/namespace-istio-system.yaml
    # 01
    kubectl --context arn:aws:eks/east apply --server-side --field-manager=stolos -f clusters/east/01/externalsecret-cacerts.yaml -f clusters/east/01/secret-stolos-peer-west.yaml
    helm upgrade --install istio-base base --repo https://istio-release.storage.googleapis.com/charts --version 1.28.0 --namespace istio-system --labels app.kubernetes.io/managed-by=stolos,stolos.dev/mesh=mymesh --description 'by stolos, for mesh mymesh' --history-max 5 --timeout 120s --kube-context arn:aws:eks/east --values clusters/east/01/istio-base.values.yaml
    # 02
    helm upgrade --install istiod istiod --repo https://istio-release.storage.googleapis.com/charts --version 1.28.0 --namespace istio-system --labels app.kubernetes.io/managed-by=stolos,stolos.dev/mesh=mymesh --description 'by stolos, for mesh mymesh' --history-max 5 --timeout 120s --kube-context arn:aws:eks/east --values clusters/east/02/istiod.values.yaml
    # 03
    kubectl --context arn:aws:eks/east apply --server-side --field-manager=stolos -f clusters/east/03/externalsecret-istio-remote-secret-west.yaml -f clusters/east/03/gateway-cross-network-gateway.yaml -f clusters/east/03/peerauthentication-default.yaml
    helm upgrade --install istio-eastwestgateway gateway --repo https://istio-release.storage.googleapis.com/charts --version 1.28.0 --namespace istio-system --labels app.kubernetes.io/managed-by=stolos,stolos.dev/mesh=mymesh --description 'by stolos, for mesh mymesh' --history-max 5 --timeout 120s --kube-context arn:aws:eks/east --values clusters/east/03/istio-eastwestgateway.values.yaml
    ```

    ```sh
    # west
    # 00
    kubectl --context west apply --server-side --field-manager=stolos -f clusters/west/00/namespace-istio-system.yaml
    # 01
    kubectl --context west apply --server-side --field-manager=stolos -f clusters/west/01/externalsecret-cacerts.yaml -f clusters/west/01/secret-stolos-peer-east.yaml
    helm upgrade --install istio-base base --repo https://istio-release.storage.googleapis.com/charts --version 1.28.0 --namespace istio-system --labels app.kubernetes.io/managed-by=stolos,stolos.dev/mesh=mymesh --description 'by stolos, for mesh mymesh' --history-max 5 --timeout 120s --kube-context west --values clusters/west/01/istio-base.values.yaml
    # 02
    helm upgrade --install istiod istiod --repo https://istio-release.storage.googleapis.com/charts --version 1.28.0 --namespace istio-system --labels app.kubernetes.io/managed-by=stolos,stolos.dev/mesh=mymesh --description 'by stolos, for mesh mymesh' --history-max 5 --timeout 120s --kube-context west --values clusters/west/02/istiod.values.yaml
    # 03
    kubectl --context west apply --server-side --field-manager=stolos -f clusters/west/03/externalsecret-istio-remote-secret-east.yaml -f clusters/west/03/gateway-cross-network-gateway.yaml -f clusters/west/03/peerauthentication-default.yaml
    helm upgrade --install istio-eastwestgateway gateway --repo https://istio-release.storage.googleapis.com/charts --version 1.28.0 --namespace istio-system --labels app.kubernetes.io/managed-by=stolos,stolos.dev/mesh=mymesh --description 'by stolos, for mesh mymesh' --history-max 5 --timeout 120s --kube-context west --values clusters/west/03/istio-eastwestgateway.values.yaml
    ```
    "#);
    let secret = plain.files.iter().find(|(path, _)| path.ends_with("externalsecret-cacerts.yaml")).unwrap().1;
    insta::assert_snapshot!(secret, @r#"
    apiVersion: external-secrets.io/v1
    kind: ExternalSecret
    metadata:
      labels:
        app.kubernetes.io/managed-by: stolos
        stolos.dev/mesh: mymesh
      name: cacerts
      namespace: istio-system
    spec:
      data:
      - remoteRef:
          key: mymesh/east/cacerts
          property: ca-cert.pem
        secretKey: ca-cert.pem
      - remoteRef:
          key: mymesh/east/cacerts
          property: ca-key.pem
        secretKey: ca-key.pem
      - remoteRef:
          key: mymesh/east/cacerts
          property: cert-chain.pem
        secretKey: cert-chain.pem
      - remoteRef:
          key: mymesh/east/cacerts
          property: root-cert.pem
        secretKey: root-cert.pem
      refreshInterval: 1h
      secretStoreRef:
        kind: ClusterSecretStore
        name: vault
      target:
        creationPolicy: Owner
        name: cacerts
        template:
          data:
            ca-cert.pem: "{{ index . \"ca-cert.pem\" }}"
            ca-key.pem: "{{ index . \"ca-key.pem\" }}"
            cert-chain.pem: "{{ index . \"cert-chain.pem\" }}"
            root-cert.pem: "{{ index . \"root-cert.pem\" }}"
          mergePolicy: Replace
          metadata:
            labels:
              app.kubernetes.io/managed-by: stolos
              stolos.dev/mesh: mymesh
          type: Opaque
    "#);
    let kustomize = exported("istio", &options(Format::Kustomize));
    insta::assert_snapshot!(kustomize.files["clusters/east/kustomization.yaml"], @r#"
    apiVersion: kustomize.config.k8s.io/v1beta1
    helmCharts:
    - includeCRDs: true
      name: base
      namespace: istio-system
      releaseName: istio-base
      repo: https://istio-release.storage.googleapis.com/charts
      valuesFile: 01/istio-base.values.yaml
      version: "1.28.0"
    - includeCRDs: true
      name: istiod
      namespace: istio-system
      releaseName: istiod
      repo: https://istio-release.storage.googleapis.com/charts
      valuesFile: 02/istiod.values.yaml
      version: "1.28.0"
    - includeCRDs: true
      name: gateway
      namespace: istio-system
      releaseName: istio-eastwestgateway
      repo: https://istio-release.storage.googleapis.com/charts
      valuesFile: 03/istio-eastwestgateway.values.yaml
      version: "1.28.0"
    kind: Kustomization
    resources:
    - 00/namespace-istio-system.yaml
    - 01/externalsecret-cacerts.yaml
    - 01/secret-stolos-peer-west.yaml
    - 03/externalsecret-istio-remote-secret-west.yaml
    - 03/gateway-cross-network-gateway.yaml
    - 03/peerauthentication-default.yaml
    "#);
    let flux = exported("istio", &options(Format::Flux));
    insta::assert_snapshot!(flux.files["flux/east.yaml"], @r#"
    apiVersion: source.toolkit.fluxcd.io/v1
    kind: HelmRepository
    metadata:
      name: mymesh-charts
      namespace: flux-system
    spec:
      interval: 1h
      url: https://istio-release.storage.googleapis.com/charts
    ---
    apiVersion: kustomize.toolkit.fluxcd.io/v1
    kind: Kustomization
    metadata:
      name: mymesh-00
      namespace: flux-system
    spec:
      interval: 10m
      path: ./meshes/mymesh/clusters/east/00
      prune: false
      retryInterval: 1m
      sourceRef:
        kind: GitRepository
        name: flux-system
      timeout: 5m
      wait: true
    ---
    apiVersion: kustomize.toolkit.fluxcd.io/v1
    kind: Kustomization
    metadata:
      name: mymesh-01
      namespace: flux-system
    spec:
      dependsOn:
      - name: mymesh-00
      interval: 10m
      path: ./meshes/mymesh/clusters/east/01
      prune: false
      retryInterval: 1m
      sourceRef:
        kind: GitRepository
        name: flux-system
      timeout: 5m
      wait: true
    ---
    apiVersion: kustomize.toolkit.fluxcd.io/v1
    kind: Kustomization
    metadata:
      name: mymesh-02
      namespace: flux-system
    spec:
      dependsOn:
      - name: mymesh-01
      interval: 10m
      path: ./meshes/mymesh/clusters/east/02
      prune: false
      retryInterval: 1m
      sourceRef:
        kind: GitRepository
        name: flux-system
      timeout: 5m
      wait: true
    ---
    apiVersion: kustomize.toolkit.fluxcd.io/v1
    kind: Kustomization
    metadata:
      name: mymesh-03
      namespace: flux-system
    spec:
      dependsOn:
      - name: mymesh-02
      interval: 10m
      path: ./meshes/mymesh/clusters/east/03
      prune: false
      retryInterval: 1m
      sourceRef:
        kind: GitRepository
        name: flux-system
      timeout: 5m
      wait: true
    "#);
}

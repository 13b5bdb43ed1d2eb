"""What programs do with Kubernetes' Python client: list, watch, patch. Run by clients.rs; KUBECONFIG names the cluster."""

import threading
import time

from kubernetes import client, config, watch
from kubernetes.client.rest import ApiException

config.load_kube_config()
core = client.CoreV1Api()
apps = client.AppsV1Api()

version = client.VersionApi().get_code()
assert version.git_tree_state == "stolos-lab", version
assert [n.metadata.name for n in core.list_node().items] == ["c1-node"]

# Create, list with selectors and pages.
for i in range(5):
    body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name=f"py{i}", labels={"n": str(i)}), data={"a": "b"})
    core.create_namespaced_config_map("default", body)
names = [m.metadata.name for m in core.list_namespaced_config_map("default", label_selector="n in (1,2)").items]
assert names == ["py1", "py2"], names
seen, more = [], None
while True:
    page = core.list_namespaced_config_map("default", limit=2, _continue=more)
    seen += [m.metadata.name for m in page.items]
    more = page.metadata._continue
    if not more:
        break
assert {f"py{i}" for i in range(5)} <= set(seen), seen

# Patch: strategic merge (the client's default for a dict), merge, JSON.
patched = core.patch_namespaced_config_map("py0", "default", {"data": {"c": "d"}, "metadata": {"labels": {"x": "y"}}})
assert patched.data == {"a": "b", "c": "d"} and patched.metadata.labels == {"n": "0", "x": "y"}, patched
patched = core.patch_namespaced_config_map("py0", "default", [{"op": "remove", "path": "/data/a"}])
assert patched.data == {"c": "d"}, patched

# Watch from a version on, while another thread writes.
start = core.list_namespaced_config_map("default").metadata.resource_version


def write():
    time.sleep(0.3)
    core.patch_namespaced_config_map("py1", "default", {"data": {"e": "f"}})
    core.delete_namespaced_config_map("py2", "default")


writer = threading.Thread(target=write)
writer.start()
events = []
w = watch.Watch()
for event in w.stream(core.list_namespaced_config_map, "default", resource_version=start, timeout_seconds=20):
    events.append((event["type"], event["object"].metadata.name))
    if event["type"] == "DELETED":
        w.stop()
writer.join()
assert events == [("MODIFIED", "py1"), ("DELETED", "py2")], events

# A Deployment, until it is ready, and its pods' logs.
labels = {"app": "py"}
container = client.V1Container(name="web", image="stefanprodan/podinfo")
template = client.V1PodTemplateSpec(metadata=client.V1ObjectMeta(labels=labels), spec=client.V1PodSpec(containers=[container]))
spec = client.V1DeploymentSpec(replicas=2, selector=client.V1LabelSelector(match_labels=labels), template=template)
apps.create_namespaced_deployment("default", client.V1Deployment(metadata=client.V1ObjectMeta(name="py"), spec=spec))
w = watch.Watch()
for event in w.stream(apps.list_namespaced_deployment, "default", timeout_seconds=30):
    if (event["object"].status.ready_replicas or 0) == 2:
        w.stop()
        break
else:
    raise AssertionError("the deployment did not become ready")
apps.patch_namespaced_deployment_scale("py", "default", {"spec": {"replicas": 1}})
assert apps.read_namespaced_deployment_scale("py", "default").spec.replicas == 1
pod = core.list_namespaced_pod("default", label_selector="app=py").items[0]
assert "built-in stand-in" in core.read_namespaced_pod_log(pod.metadata.name, "default")

# Errors are what the client expects.
try:
    core.read_namespaced_config_map("nobody", "default")
    raise AssertionError("found nobody")
except ApiException as e:
    assert e.status == 404 and '"reason":"NotFound"' in e.body.replace(" ", ""), e

# A custom resource, without a class of its own.
crd = {
    "metadata": {"name": "boats.example.com"},
    "spec": {
        "group": "example.com",
        "scope": "Namespaced",
        "names": {"kind": "Boat", "plural": "boats", "singular": "boat"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
client.ApiextensionsV1Api().create_custom_resource_definition(crd)
custom = client.CustomObjectsApi()
place = ("example.com", "v1", "default", "boats")
for _ in range(100):
    try:
        custom.list_namespaced_custom_object(*place)
        break
    except ApiException:
        time.sleep(0.05)
custom.create_namespaced_custom_object(*place, {"apiVersion": "example.com/v1", "kind": "Boat", "metadata": {"name": "argo"}, "spec": {"oars": 50}})
boat = custom.patch_namespaced_custom_object(*place, "argo", {"spec": {"oars": 20}})
assert boat["spec"]["oars"] == 20, boat
core.delete_collection_namespaced_config_map("default", label_selector="n")
assert core.list_namespaced_config_map("default", label_selector="n").items == []
print("all good")

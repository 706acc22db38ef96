"""Plain Kubernetes, and the parts of it that every other form on Kubernetes takes: the engine's pod, the page, claims, policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engineroom.catalog import Catalog
from engineroom.forms import manifest
from engineroom.rows import Variable

Job = Mapping[str, Any]
Object = dict[str, Any]
USER = 1000  # the images' user; its group is 0, so that any other user works as well


def files(_: Catalog, job: Job) -> dict[str, str]:
    """One file: `kubectl apply` takes it."""
    return {f"{job['name']}.k8s.yaml": manifest.text([*engine(job), *around(job)], *header(job, "docs/kubernetes.md"))}


def header(job: Job, document: str) -> list[str]:
    """What a form's file says of itself, and what must be there before it."""
    space = f" --namespace {job['namespace']}" if job["namespace"] else ""
    lines = [
        f"{job['title']}: {document}",
        f"Made by `{job['command']}` from compose/stacks.toml. Settings: docs/launcher.md",
    ]
    if "cluster_token" in job["secrets"]:
        lines.append(
            f"First, once: openssl rand -hex 32 | kubectl create secret generic {job['secrets']['cluster_token']}{space} --from-file=token=/dev/stdin"
        )
    if job["gateway"]["enabled"]:
        keys, certificate = job["gateway"]["keys"], job["gateway"]["certificate"]
        lines += [
            f'First, once: echo "default:$(openssl rand -hex 32)" | kubectl create secret generic {keys}{space} --from-file=keys=/dev/stdin',
            f"       and: kubectl create secret tls {certificate}{space} --cert=certificate.pem --key=certificate-key.pem (docs/gateway.md)",
        ]
    return lines


def engine(job: Job) -> list[Object]:
    """A Deployment, or for several nodes two StatefulSets: nothing but its name tells a pod of one StatefulSet from its siblings."""
    if not job["clustered"]:
        spec = {
            "replicas": 1,
            "strategy": {"type": "Recreate"},  # a second pod would wait for the GPUs of the first
            "progressDeadlineSeconds": job["healthy_seconds"] + 600,  # after the startup probe has given up
            "selector": {"matchLabels": labels(job, "engine")},
            "template": pod(job),
        }
        return [thing("apps/v1", "Deployment", job, "engine", spec, suffix="-engine")]
    head = f"{job['label']}-head"
    worker = [
        Variable(name="LAUNCH_ROLE", value="worker", why="this StatefulSet's pods"),
        Variable(name="LAUNCH_HEAD", value=head, why="the headless Service, asked again at each try"),
    ]
    return [
        stateful(job, "head", 1, [Variable(name="LAUNCH_ROLE", value="head", why="this StatefulSet's pod")]),
        stateful(job, "worker", job["nodes"] - 1, worker),
        headless(job, "-head", labels(job, "engine", "head")),
    ]


def stateful(job: Job, role: str, replicas: int, environment: Sequence[Variable]) -> Object:
    """The StatefulSet of one role."""
    spec = {
        "serviceName": f"{job['label']}-head",
        "replicas": replicas,
        "podManagementPolicy": "Parallel",  # the nodes wait for each other, not Kubernetes for them
        # One new pod after another would never be: a new node is not ready before all are new. docs/kubernetes.md says what to type.
        **({"updateStrategy": {"type": "OnDelete"}} if replicas > 1 else {}),
        "selector": {"matchLabels": labels(job, "engine", role)},
        "template": pod(job, role, environment),
    }
    return thing("apps/v1", "StatefulSet", job, "engine", spec, suffix=f"-{role}")


def around(job: Job, head: Mapping[str, str] | None = None) -> list[Object]:
    """What stands around the engine's pods in every form: services, page, claims, policies.

    `head` are the labels of the pod with the API where another controller than Kubernetes' own makes the pods. Kubernetes does not know
    then how many there should be, which `maxUnavailable` needs: https://kubernetes.io/docs/tasks/run-application/configure-pdb.
    """
    api = head or labels(job, "engine", "head" if job["clustered"] else "")
    return [
        service(job, "engine", job["port"], api),
        service(job, "page", 80, labels(job, "page")),
        page(job),
        *(gateway(job, api) if job["gateway"]["enabled"] else []),
        *claims(job),
        *policies(job),
        budget(job, {"minAvailable": job["nodes"]} if head else {"maxUnavailable": 0}),
    ]


def labels(job: Job, component: str, role: str = "") -> dict[str, str]:
    """Kubernetes' recommended labels; `role` tells the pods of several nodes apart."""
    found = {
        "app.kubernetes.io/name": "engineroom",
        "app.kubernetes.io/instance": job["label"],
        "app.kubernetes.io/component": component,
    }
    return found | ({"engineroom/role": role} if role else {})


def thing(version: str, kind: str, job: Job, component: str, spec: Mapping[str, Any], *, suffix: str = "") -> Object:
    """An object with the stack's name, namespace and labels."""
    namespace = {"namespace": job["namespace"]} if job["namespace"] else {}
    metadata = {"name": f"{job['label']}{suffix}", **namespace, "labels": labels(job, component)}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": dict(spec)}


def pod(job: Job, role: str = "", environment: Sequence[Variable] = ()) -> Object:
    """The template of an engine's pod: one launcher, with all the GPUs that the stack takes of a node."""
    spec: Object = {
        "terminationGracePeriodSeconds": job["grace_seconds"],  # running answers are finished first
        **pod_security(),
        **where(job),
        "containers": [engine_container(job, environment)],
        "volumes": volumes(job),
    }
    return {"metadata": {"labels": labels(job, "engine", role)}, "spec": spec}


def engine_container(job: Job, environment: Sequence[Variable] = ()) -> Object:
    """The launcher. Limits are the GPUs alone: a limit on memory would end an engine for pages that the system can take back."""
    mounts = [
        {"name": "caches", "mountPath": "/cache"},
        *([{"name": "weights", "mountPath": "/cache/huggingface"}] if job["weights_gib"] else []),
        *([{"name": "models", "mountPath": job["models_folder"], "readOnly": True}] if job["models"] else []),
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - the mount point
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        *([{"name": "secrets", "mountPath": job["secrets_folder"], "readOnly": True}] if job["secrets"] else []),
    ]
    resources: Object = {"requests": {"cpu": str(job["cpus"]), "memory": f"{job['memory_gib']}Gi"}}
    if job["gpus"]:
        resources["limits"] = {"nvidia.com/gpu": str(job["gpus"])}
    return {
        "name": "engine",
        "image": job["image"],
        "env": env([*job["environment"], *environment]),
        "ports": [{"name": "http", "containerPort": job["port"]}],
        "resources": resources,
        "volumeMounts": mounts,
        **{name: probe(values) for name, values in job["probes"].items()},
        "lifecycle": pre_stop(job),
        "terminationMessagePath": "/dev/termination-log",  # where the launcher says why it ended
        **container_security(),
    }


def env(variables: Sequence[Variable]) -> list[Any]:
    """A container's variables, each with its reason."""
    return [manifest.because({"name": variable.name, "value": variable.value}, variable.why) for variable in variables]


def probe(values: Mapping[str, Any]) -> Object:
    """A probe by command. Times in seconds."""
    return {
        "exec": {"command": list(values["command"])},
        "periodSeconds": values["period"],
        "timeoutSeconds": values["timeout"],
        "failureThreshold": values["failures"],
    }


def pre_stop(job: Job) -> Object:
    """Until every node has heard that the pod is leaving."""
    return {"preStop": {"exec": {"command": ["sleep", str(job["pre_stop_seconds"])]}}}


def where(job: Job) -> Object:
    """The nodes that will do: the user's own selector, else by the labels of NVIDIA's feature discovery. CPU stacks run anywhere."""
    found: Object = {}
    if job["node_selector"]:
        found["nodeSelector"] = dict(job["node_selector"])
    elif job["gpu_rules"]:
        terms = [{"matchExpressions": [dict(rule) for rule in job["gpu_rules"]]}]
        found["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    if job["gpus"]:
        found["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return found


def volumes(job: Job) -> list[Object]:
    """Caches and weights outlive the pod; shared memory is memory."""
    found: list[Object] = [claimed("caches", f"{job['label']}-caches")]
    if job["weights_gib"]:
        found.append(claimed("weights", f"{job['label']}-weights"))
    if job["models"]:
        found.append({"name": "models", "persistentVolumeClaim": {"claimName": job["models"], "readOnly": True}})
    found += [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{job['shm_gib']}Gi"}},
        {"name": "tmp", "emptyDir": {}},
    ]
    if job["secrets"]:
        sources = [{"secret": {"name": secret, "items": [{"key": "token", "path": file}]}} for file, secret in job["secrets"].items()]
        found.append({"name": "secrets", "projected": {"defaultMode": 0o440, "sources": sources}})
    return found


def claimed(name: str, claim: str) -> Object:
    """A volume that a claim holds."""
    return {"name": name, "persistentVolumeClaim": {"claimName": claim}}


def pod_security() -> Object:
    """An ordinary user without Kubernetes' own token, who owns the volumes through their group."""
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # Kubernetes would add variables for every Service of the namespace
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": 0,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",  # not every file of the weights at every start
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def container_security() -> Object:
    """A read-only root and no capabilities."""
    return {
        "securityContext": {"readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }


def headless(job: Job, suffix: str, selector: Mapping[str, str]) -> Object:
    """The address of a node itself, from its first second on, ready or not."""
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": dict(selector)}
    return thing("v1", "Service", job, "engine", spec, suffix=suffix)


def service(job: Job, component: str, port: int, selector: Mapping[str, str], spoken: str = "http") -> Object:
    """A name inside the cluster for the API, the page or the gateway."""
    spec = {"selector": dict(selector), "ports": [{"name": spoken, "port": port, "targetPort": spoken}]}
    return thing("v1", "Service", job, component, spec, suffix=f"-{component}")


def page(job: Job) -> Object:
    """Open WebUI, wired to the stack's own server by its name."""
    health = {"httpGet": {"path": "/health", "port": "http"}}
    container = {
        "name": "page",
        "image": job["page_image"],
        "env": env(job["page_environment"]),
        "ports": [{"name": "http", "containerPort": job["page_port"]}],
        "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}},
        "volumeMounts": [{"name": "data", "mountPath": "/app/backend/data"}, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
        "startupProbe": {**health, "periodSeconds": 5, "failureThreshold": 36},
        "livenessProbe": {**health, "periodSeconds": 30, "timeoutSeconds": 10},
        **container_security(),
    }
    spec = {
        **pod_security(),
        "containers": [container],
        "volumes": [claimed("data", f"{job['label']}-page"), {"name": "tmp", "emptyDir": {}}],
    }
    deployment = {
        "replicas": 1,
        "strategy": {"type": "Recreate"},  # its database is one file
        "selector": {"matchLabels": labels(job, "page")},
        "template": {"metadata": {"labels": labels(job, "page")}, "spec": spec},
    }
    return thing("apps/v1", "Deployment", job, "page", deployment, suffix="-page")


def gateway(job: Job, api: Mapping[str, str]) -> list[Object]:
    """The gateway's pods and their name, and a name that leads to each engine's own pod, `api`: the gateway shares requests out itself."""
    values = job["gateway"]
    health = {"httpGet": {"path": "/health", "port": "https", "scheme": "HTTPS"}}
    container = {
        "name": "gateway",
        "image": values["image"],
        "env": env(values["environment"]),
        "ports": [{"name": "https", "containerPort": values["port"]}],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
        "volumeMounts": [
            {"name": "secrets", "mountPath": job["secrets_folder"], "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
        "readinessProbe": {**health, "periodSeconds": 5, "timeoutSeconds": 5},
        "livenessProbe": {**health, "initialDelaySeconds": 30, "periodSeconds": 10, "timeoutSeconds": 10},
        "lifecycle": pre_stop(job),
        **container_security(),
    }
    pairs = [{"key": "tls.crt", "path": "gateway_certificate"}, {"key": "tls.key", "path": "gateway_certificate_key"}]
    sources = [
        {"secret": {"name": values["keys"], "items": [{"key": "keys", "path": "gateway_keys"}]}},
        {"secret": {"name": values["certificate"], "items": pairs}},
    ]
    spec = {
        "terminationGracePeriodSeconds": job["grace_seconds"],  # running answers are finished first
        **pod_security(),
        "containers": [container],
        "volumes": [
            {"name": "secrets", "projected": {"defaultMode": 0o440, "sources": sources}},
            {"name": "tmp", "emptyDir": {"medium": "Memory"}},  # it writes the keys down there for nginx
        ],
    }
    deployment = {
        "replicas": values["replicas"],
        "selector": {"matchLabels": labels(job, "gateway")},
        "template": {"metadata": {"labels": labels(job, "gateway")}, "spec": spec},
    }
    return [
        thing("apps/v1", "Deployment", job, "gateway", deployment, suffix="-gateway"),
        service(job, "gateway", 443, labels(job, "gateway"), "https"),
        thing("v1", "Service", job, "engine", {"clusterIP": "None", "selector": dict(api)}, suffix="-engines"),
    ]


def claims(job: Job) -> list[Object]:
    """Disk for weights, compiled kernels and chats. Nodes of one stack share the first two."""
    mode = "ReadWriteMany" if job["clustered"] else "ReadWriteOnce"
    sizes = [("-caches", "engine", job["caches_gib"], mode), ("-page", "page", 2, "ReadWriteOnce")]
    if job["weights_gib"]:
        sizes.insert(0, ("-weights", "engine", job["weights_gib"], mode))
    storage = {"storageClassName": job["storage_class"]} if job["storage_class"] else {}
    return [
        thing("v1", "PersistentVolumeClaim", job, component, claim(mode, gib, storage), suffix=suffix)
        for suffix, component, gib, mode in sizes
    ]


def claim(mode: str, gib: int, storage: Mapping[str, str]) -> Object:
    """A claim's spec."""
    return {"accessModes": [mode], **storage, "resources": {"requests": {"storage": f"{gib}Gi"}}}


def policies(job: Job) -> list[Object]:
    """The API is open to page and gateway, the page to the gateway, which everybody may ask; nodes of a stack reach each other on every port, nobody else any.

    `kubectl port-forward` goes another way and works all the same.
    """
    nodes = [{"from": [peer(job, "engine")]}] if job["clustered"] else []
    asked = {"from": [peer(job, "page"), peer(job, "gateway")], "ports": [{"protocol": "TCP", "port": job["port"]}]}
    opened = {"from": [peer(job, "gateway")], "ports": [{"protocol": "TCP", "port": job["page_port"]}]}
    found = [policy(job, "engine", [asked, *nodes]), policy(job, "page", [opened])]
    if job["gateway"]["enabled"]:
        found.append(policy(job, "gateway", [{"ports": [{"protocol": "TCP", "port": job["gateway"]["port"]}]}]))
    return found


def policy(job: Job, component: str, ingress: list[Object]) -> Object:
    """Who may open connections to a component; where they go from there is not limited: weights come from a hub."""
    spec = {"podSelector": {"matchLabels": labels(job, component)}, "policyTypes": ["Ingress"], "ingress": ingress}
    return thing("networking.k8s.io/v1", "NetworkPolicy", job, component, spec, suffix=f"-{component}")


def peer(job: Job, component: str) -> Object:
    """The stack's pods of one component."""
    return {"podSelector": {"matchLabels": labels(job, component)}}


def budget(job: Job, limit: Mapping[str, int]) -> Object:
    """Loading takes minutes to hours, so draining a machine waits until somebody stops the stack."""
    spec = {**limit, "selector": {"matchLabels": labels(job, "engine")}}
    return thing("policy/v1", "PodDisruptionBudget", job, "engine", spec, suffix="-engine")

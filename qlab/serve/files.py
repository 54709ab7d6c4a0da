"""Files for an operations team: Docker Compose, Kubernetes, and for Ollama a Modelfile, from one description of a deployment.

PyYAML writes them, and what Compose or Kubernetes would replace in a name ($NAME, $(NAME)) is escaped. No file holds the key.
Containers run as an unprivileged user with a read-only root and no capabilities, and are published on
loopback unless the deployment says otherwise.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterable
from math import ceil
from pathlib import Path
from typing import Any

import yaml

from qlab.plan.plan import cache_bytes
from qlab.serve.deployment import KEY_VARIABLE, Deployment
from qlab.serve.runtimes import ollama
from qlab.serve.runtimes.runtime import Container, Runtime, check, expected_memory
from qlab.support.disk.scratch import Scratch
from qlab.support.errors import UserError

USER = 10001
OVERHEAD = 2 << 30  # bytes of a runtime beside weights and cache
START_SECONDS = 600  # what a large model may take to load


def files_of(runtime: Runtime, deployment: Deployment) -> dict[str, str]:
    """Contents by file name.

    Raises:
        UserError: the runtime does not serve this format.
    """
    check(runtime, deployment.kind, deployment.folder.name, deployment.cache)
    container = runtime.container(deployment)
    found = {"compose.yaml": compose(runtime, deployment, container), "kubernetes.yaml": kubernetes(runtime, deployment, container)}
    if isinstance(runtime, ollama.Ollama):
        found["Modelfile"] = ollama.modelfile(deployment, f"./{deployment.gguf.name}")
    return found


def write_files(runtime: Runtime, deployment: Deployment, out: Path) -> list[Path]:
    """Write `files_of` into the folder `out`, all of them or none; those that are there already stay.

    Raises:
        UserError: one of the files is there already.
    """
    contents = files_of(runtime, deployment)
    if there := [name for name in contents if os.path.lexists(out / name)]:
        raise UserError(f"{out.name}/{there[0]} is there already; remove it, or write to another folder")
    out.mkdir(parents=True, exist_ok=True)
    with Scratch(out) as work:
        for name, text in contents.items():
            (work / name).write_text(text, encoding="utf-8")
        for name in contents:
            shutil.move(work / name, out / name)
    return [out / name for name in contents]


def memory_bytes(runtime: Runtime, deployment: Deployment) -> int:
    """What weights, the KV cache of all sequences and the runtime itself may take, with a tenth to spare."""
    expected = expected_memory(runtime, deployment)
    cache = cache_bytes(deployment.shape, deployment.context, deployment.sequences)
    return ceil(max(1.1 * deployment.weight_bytes + cache + OVERHEAD, 1.1 * expected.total if expected else 0))


def mebibytes(size: int) -> int:
    return ceil(size / 2**20)


def compose(runtime: Runtime, deployment: Deployment, container: Container) -> str:
    """A Compose file: `docker compose up` beside the model folder, which MODEL names."""
    key = container.key_variable
    secret = {key: f"${{{KEY_VARIABLE}:?the key that clients must give}}"} if key and deployment.key else {}
    published = deployment.host if key else "127.0.0.1"
    published = f"[{published}]" if ":" in published else published
    service: dict[str, Any] = {
        "image": container.image,
        "command": literal(container.arguments),
        "environment": dict(zip(container.environment, literal(container.environment.values()))) | secret,
        "volumes": [{"type": "bind", "source": "${MODEL:?the model folder}", "target": "/model", "read_only": True}],
        "ports": [f"{published}:{deployment.port}:{container.port}"],
        "user": f"{USER}:{USER}",
        "read_only": True,
        "tmpfs": ["/tmp"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "shm_size": "1gb",
        "restart": "unless-stopped",
        "deploy": {"resources": {"limits": {"memory": f"{mebibytes(memory_bytes(runtime, deployment))}M"}}},
    }
    if deployment.gpus:
        device = {"driver": "nvidia", "count": deployment.gpus, "capabilities": ["gpu"]}
        service["deploy"]["resources"]["reservations"] = {"devices": [device]}
    model = shlex.quote(f"/path/to/{deployment.folder.name}")
    head = [
        f"{runtime.label}, {deployment.name}. MODEL={model} docker compose up",
        *container.comments,
        *([f"The key: export {KEY_VARIABLE}, or an .env file that only its owner reads."] if secret else []),
    ]
    return commented(head) + yaml.safe_dump({"services": {deployment.name.lower().replace(".", "-"): service}}, sort_keys=False)


def kubernetes(runtime: Runtime, deployment: Deployment, container: Container) -> str:
    """A Deployment and a Service within the cluster; model folder and key are a claim and a secret that the cluster's owner makes.

    A runtime that knows no key gets a NetworkPolicy beside them: only pods with a label of their own reach it.
    """
    label = deployment.name.lower().replace(".", "-").replace("_", "-").strip("-")[:53].rstrip("-")  # 63 with what is put behind it
    label = label if label[0].isalpha() else f"m-{label}"  # the name of a Service begins with a letter
    memory = {"memory": f"{mebibytes(memory_bytes(runtime, deployment))}Mi", "cpu": str(deployment.threads)}
    gpus = {"nvidia.com/gpu": str(deployment.gpus)} if deployment.gpus else {}
    probe = {"httpGet": {"path": container.health, "port": "http"}}
    environment: list[dict[str, Any]] = [
        {"name": name, "value": value} for name, value in zip(container.environment, literal(container.environment.values()))
    ]
    if container.key_variable:
        reference = {"secretKeyRef": {"name": f"{label}-key", "key": "key"}}
        environment.append({"name": container.key_variable, "valueFrom": reference})
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "server",
                "image": container.image,
                "args": literal(container.arguments),
                "env": environment,
                "ports": [{"name": "http", "containerPort": container.port}],
                "startupProbe": probe | {"periodSeconds": 5, "failureThreshold": START_SECONDS // 5},
                "readinessProbe": probe | {"periodSeconds": 10},
                "livenessProbe": probe | {"periodSeconds": 30, "timeoutSeconds": 10},
                "resources": {"requests": memory | gpus, "limits": memory | gpus},
                "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [
                    {"name": "model", "mountPath": "/model", "readOnly": True},
                    {"name": "scratch", "mountPath": "/tmp"},
                    {"name": "shared-memory", "mountPath": "/dev/shm"},
                ],
            }
        ],
        "volumes": [
            {"name": "model", "persistentVolumeClaim": {"claimName": f"{label}-model", "readOnly": True}},
            {"name": "scratch", "emptyDir": {}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        ],
    }
    labels = {"app.kubernetes.io/name": label}
    workload = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": label, "labels": labels},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": label, "labels": labels},
        "spec": {"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    }
    made = [f"Wanted in the cluster: a claim {label}-model that holds {deployment.folder.name}/"]
    made += [f"and a secret: kubectl create secret generic {label}-key --from-file=key=KEYFILE"] if container.key_variable else []
    documents = [workload, service]
    if not container.key_variable:
        documents.append(only_from_clients(label, labels))
        made += [
            f"Only pods with the label {label}-client=true reach it, where the cluster's network obeys NetworkPolicy: see that it does."
        ]
    return commented([*made, *container.comments]) + yaml.safe_dump_all(documents, sort_keys=False)


def only_from_clients(label: str, labels: dict[str, str]) -> dict[str, Any]:
    """A NetworkPolicy: nobody reaches the pods with `labels` but pods that say they are clients, by the server's port."""
    clients = {"podSelector": {"matchLabels": {f"{label}-client": "true"}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": label, "labels": labels},
        "spec": {
            "podSelector": {"matchLabels": labels},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [clients], "ports": [{"protocol": "TCP", "port": "http"}]}],
        },
    }


def literal(words: Iterable[str]) -> list[str]:
    """Words in which Compose and Kubernetes replace nothing: both read $$ as $."""
    return [word.replace("$", "$$") for word in words]


def commented(lines: list[str]) -> str:
    """Comment lines of YAML, which ends a line at more characters than a line feed."""
    return "".join(f"# {part}\n" for line in lines for part in line.splitlines())

"""Schedulers' forms of a stack: one module a form, each with `files(catalog, job) -> {file name: text}`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from engineroom.catalog import Catalog
from engineroom.forms import crater, helm, kuberay, kubernetes, lws, slurm, volcano

Job = Mapping[str, Any]
Form = Callable[[Catalog, Job], dict[str, str]]

FORMS: Final[dict[str, Form]] = {
    "k8s": kubernetes.files,
    "helm": helm.files,
    "lws": lws.files,
    "kuberay": kuberay.files,
    "volcano": volcano.files,
    "crater": crater.files,
    "slurm": slurm.files,
}

"""Whether the nodes that some files offer can run the models that others name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from deployments.checks.documents import Document, Kind, dict_of, dicts_of
from deployments.checks.finding import Findings
from deployments.checks.kubernetes import limits_of, worker_groups
from deployments.checks.platform_settings import settings_of
from deployments.checks.ray_cluster import node_types
from omai_ray.catalog import may_be_on


@dataclass(frozen=True)
class Offer:
    """A kind of node. most: how many of them there may be."""

    name: str
    cpus: float
    gpus: float
    labels: dict[str, str]
    most: int


@dataclass(frozen=True)
class Demand:
    """What one replica needs. least: how many replicas there always are."""

    place: str
    num_cpus: float
    num_gpus: float
    placement: dict[str, str]
    least: int


def check_capacity(documents: Iterable[Document], findings: Findings) -> None:
    """Find replicas that no node of the clusters among these documents could take."""
    documents = list(documents)
    demands = [demand for document in documents for demand in _demands(document)]
    for document in documents:
        offers = list(_offers(document))
        if not offers:
            continue
        for demand in demands:
            _check_fits(demand, offers, document.place, findings)
        needed = sum(demand.num_gpus * demand.least for demand in demands)
        there = sum(offer.gpus * offer.most for offer in offers)
        if len({demand.place.split(": ")[0] for demand in demands}) == 1 and needed > there:
            findings.add(
                f"{document.place}: max_workers",
                f"the models always need {needed:g} GPUs, and at most {there:g} may be started",
                "raise max_workers of a node type with GPUs, or lower the models' replicas.min",
            )


def _check_fits(demand: Demand, offers: list[Offer], cluster: str, findings: Findings) -> None:
    placed = [offer for offer in offers if may_be_on(offer.labels, demand.placement)]
    if not placed:
        labels = ", ".join(f"{key}={value}" for key, value in demand.placement.items())
        findings.add(
            f"{demand.place}.placement",
            f"no node type of {cluster} has the labels {labels}",
            "give a node type these labels, or correct them",
        )
        return
    for key, wanted, most in (
        ("num_gpus", demand.num_gpus, max(offer.gpus for offer in placed)),
        ("num_cpus", demand.num_cpus, max(offer.cpus for offer in placed)),
    ):
        if wanted > most:
            findings.add(
                f"{demand.place}.{key}",
                f"{wanted:g} asked for, and no node type of {cluster} that it may be on offers "
                f"more than {most:g}",
                "add such a node type, or lower it",
            )


def _demands(document: Document) -> Iterator[Demand]:
    if document.kind is Kind.PLATFORM:
        settings = settings_of(document)
        if settings is None:
            return
        for place, spec in enumerate(settings.models):
            yield Demand(
                document.at("models", place),
                spec.num_cpus, spec.num_gpus, spec.placement, spec.replicas.min,
            )  # fmt: skip
        edge = settings.ingress
        yield Demand(document.at("ingress"), edge.num_cpus, 0, edge.placement, edge.replicas)
    elif document.kind is Kind.SERVE:
        for place, application in enumerate(dicts_of(document.values.get("applications"))):
            for at, deployment in enumerate(dicts_of(application.get("deployments"))):
                options = dict_of(deployment.get("ray_actor_options"))
                yield Demand(
                    document.at("applications", place, "deployments", at, "ray_actor_options"),
                    _number(options.get("num_cpus")), _number(options.get("num_gpus")),
                    _labels(options.get("label_selector")), 1,
                )  # fmt: skip


def _offers(document: Document) -> Iterator[Offer]:
    if document.kind is Kind.CLUSTER:
        head = document.values.get("head_node_type")
        for name, node in node_types(document).items():
            resources = dict_of(node.get("resources"))
            most = (
                1 if name == head else node.get("max_workers", document.values.get("max_workers"))
            )
            yield Offer(
                name, _number(resources.get("CPU")), _number(resources.get("GPU")),
                _labels(node.get("labels")), int(_number(most)),
            )  # fmt: skip
    elif document.kind is Kind.KUBERNETES:
        for group in worker_groups(document):
            limits = limits_of(group)
            yield Offer(
                str(group.get("groupName")),
                _number(limits.get("cpu")), _number(limits.get("nvidia.com/gpu")),
                _labels(group.get("labels")), int(_number(group.get("maxReplicas"))),
            )  # fmt: skip


def _labels(value: Any) -> dict[str, str]:
    return {str(key): str(label) for key, label in dict_of(value).items()}


def _number(value: Any) -> float:
    """Return a number of a file, Kubernetes' `500m` too; 0 for what is none."""
    text = str(value)
    try:
        number = float(text[:-1]) / 1000 if text.endswith("m") else float(text)
    except ValueError:
        return 0.0
    return number if math.isfinite(number) else 0.0

"""The Serve application that settings become: what starts a replica anew, and what does not."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.app import _check_proxy, _deployment, build
from deployments.names import version_of
from omai_ray.catalog import ModelSpec, Replicas
from omai_ray.errors import ConfigError
from omai_ray.settings import Settings

MODEL = ModelSpec(name="m", task="chat", source="/x", placement={"omai-pool": "chat"})


def deployed(**changes: Any) -> Any:
    """Return the deployment of the model, changed."""
    return _deployment(MODEL.model_copy(update=changes), Settings())


@pytest.mark.parametrize(
    ("changes", "stays"),
    [
        ({"replicas": Replicas(min=1, max=4)}, True),
        ({"owned_by": "somebody"}, True),
        ({"context": 64}, False),
        ({"source": "/y"}, False),
        ({"max_running_requests": 2}, False),
    ],
)
def test_a_model_is_another_version_where_its_replicas_would_differ(
    changes: dict[str, Any], stays: bool
) -> None:
    """Serve keeps replicas as long as their version stays."""
    assert stays == (deployed()._version == deployed(**changes)._version)


def test_the_ingress_stays_where_only_the_catalog_changes() -> None:
    """Its replicas take the models by user_config; all else starts them anew."""
    one = build(Settings(models=(MODEL,)))._bound_deployment
    two = build(Settings(models=(MODEL, MODEL.model_copy(update={"name": "n"}))))._bound_deployment
    other = build(Settings(models=(MODEL,), log_level="DEBUG"))._bound_deployment
    assert one._version == two._version
    assert one._version != other._version
    assert [len(each.user_config["models"]) for each in (one, two)] == [1, 2]


def test_placement_reaches_serve() -> None:
    """Labels of the nodes, and how many replicas one takes."""
    model = deployed(max_replicas_per_node=2)
    assert model.ray_actor_options["label_selector"] == {"omai-pool": "chat"}
    assert model._replica_config.max_replicas_per_node == 2


def test_texts_of_a_version_are_not_run_together() -> None:
    """Where one ends matters."""
    assert version_of("ab", "c") != version_of("a", "bc")


def test_a_cluster_with_another_proxy_is_refused() -> None:
    """By the variable to set, and where."""
    haproxy = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.edge:middlewares",
        "RAY_SERVE_HAPROXY_BINARY_PATH": "/usr/local/bin/omai-haproxy",
    }
    _check_proxy(Settings(), {})
    _check_proxy(Settings(proxy="haproxy"), haproxy)
    with pytest.raises(ConfigError, match="HA_PROXY is not set: set it to 1 on every node"):
        _check_proxy(Settings(proxy="haproxy"), {})
    with pytest.raises(ConfigError, match="HA_PROXY is 1: set it to 0 on every node"):
        _check_proxy(Settings(), haproxy)
    for name in list(haproxy)[1:]:
        with pytest.raises(ConfigError, match=f"{name} has to be set"):
            _check_proxy(Settings(proxy="haproxy"), {**haproxy, name: ""})

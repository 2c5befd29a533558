from __future__ import annotations

import pytest

from deployments.names import deployment_name


def test_a_plain_name_is_its_deployments() -> None:
    """As people look for it on Ray's dashboard."""
    assert deployment_name("omai-gpt-4") == "model-omai-gpt-4"
    assert deployment_name("llama_3.1") == "model-llama_3.1"


@pytest.mark.parametrize("names", [("a/b", "a-b"), ("a/b", "a:b"), ("a@b", "a-b")])
def test_no_two_models_have_one_deployment(names: tuple[str, str]) -> None:
    """Batches find a model's replicas by it."""
    one, other = map(deployment_name, names)
    assert one != other
    assert "/" not in one

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from omai_ray.garbage import start_uncollected


@pytest.fixture(autouse=True)
def _unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_a_start_makes_is_never_gone_through_again() -> None:
    """Nor collected while it is made."""
    with start_uncollected():
        assert not gc.isenabled()
        made: list[list[int]] = [[] for _ in range(10_000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= len(made)
    assert not any(each is made for each in gc.get_objects())


def test_what_a_start_leaves_in_cycles_is_gone() -> None:
    """A model that was converted may be in one."""

    class Tensor:
        pass

    with start_uncollected():
        tensor: Any = Tensor()
        tensor.owner = tensor
        left = weakref.ref(tensor)
        del tensor
    assert left() is None


def test_a_start_that_fails_leaves_the_collector_as_it_was() -> None:
    """What was made until then can be collected."""
    frozen = gc.get_freeze_count()
    with pytest.raises(ValueError, match="no model"), start_uncollected():
        raise ValueError("no model")
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen

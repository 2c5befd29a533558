"""What of the GPU's steps needs no GPU."""

from __future__ import annotations

import pytest
import torch

from omai_ray.engines.chat.decode_graphs import sizes
from omai_ray.engines.chat.gpu_attention import layout
from omai_ray.engines.chat.slot_attention import _independent


@pytest.mark.parametrize("most", [1, 2, 3, 8, 20, 64, 256, 300])
def test_a_step_of_any_number_of_rows_has_a_graph_with_few_more(most: int) -> None:
    """Up to as many as run at once; from 8 rows on, 7 more or a quarter more at most."""
    found = sizes(most)
    assert found == sorted(set(found))
    assert found[-1] == most
    for rows in range(1, most + 1):
        size = next(size for size in found if size >= rows)
        assert size - rows <= max(7, rows // 4)


def test_copies_go_together_until_one_touches_what_another_wrote() -> None:
    """A place read or written again waits; two that read the same place do not."""
    copies = [(0, 64, 10), (0, 128, 10), (64, 192, 5), (300, 320, 30), (0, 340, 4)]
    assert list(_independent(copies)) == [
        [(0, 64, 10), (0, 128, 10)],
        [(64, 192, 5), (300, 320, 30)],
        [(0, 340, 4)],
    ]
    assert list(_independent([])) == []


def test_single_tokens_come_first_and_all_others_are_chunks() -> None:
    """A single token behind a longer piece too; places follow what was computed before."""
    pieces = [(64, 9, 1), (0, 3, 1), (128, 4, 3), (256, 0, 1)]
    singles, chunks = layout(pieces, torch.device("cpu"))
    assert singles is not None
    assert chunks is not None
    assert (singles.starts.tolist(), singles.lengths.tolist()) == ([64, 0], [10, 4])
    assert (chunks.first, chunks.most_rows, chunks.most_seen) == (2, 3, 7)
    assert chunks.places.tolist() == [132, 133, 134, 256]
    assert chunks.bounds.tolist() == [0, 3, 4]
    assert chunks.starts.tolist()[:2] == [128, 256]
    assert chunks.seen.tolist() == [7, 1]
    assert layout(pieces[:2], torch.device("cpu"))[1] is None
    assert layout(pieces[2:], torch.device("cpu"))[0] is None

"""Packing tokenised dialogues into rows of equal length for training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from omai_ray.models.chat_tokens import render, reply_mask
from omai_ray.models.dialogues import dialogues

CHUNK_DIALOGUES = 512
OPEN_ROWS = 24
IGNORED = -100


@dataclass
class Row:
    """A row being filled: token ids, labels (IGNORED where unsupervised), dialogue numbers."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)

    def add(self, ids: list[int], mask: list[bool]) -> None:
        """Append a dialogue."""
        segment = self.segments[-1] + 1 if self.segments else 1
        self.ids += ids
        self.labels += [token if said else IGNORED for token, said in zip(ids, mask, strict=True)]
        self.segments += [segment] * len(ids)

    def pad(self, length: int) -> None:
        """Fill up with tokens of dialogue 0, which carry no loss."""
        missing = length - len(self.ids)
        self.ids += [0] * missing
        self.labels += [IGNORED] * missing
        self.segments += [0] * missing


@dataclass(frozen=True)
class Batch:
    """ids and labels int64 [B, T]; mask bool [B, 1, T, T], True where a token may look."""

    ids: Tensor
    labels: Tensor
    mask: Tensor


def token_stream(
    tokenizer: Any, seed: int, skill: str | None, longest: int
) -> Iterator[tuple[list[int], list[bool]]]:
    """Yield dialogues as (ids, reply mask) without end; longer ones are cut at `longest`."""
    opening = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    chunk = 0
    while True:
        made = dialogues(seed + 1000 * chunk, "train", CHUNK_DIALOGUES, skill)
        texts = [render(tokenizer, dialogue) for dialogue in made]
        for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
            kept = ids[:longest]
            yield kept, reply_mask(kept, opening, tokenizer.eos_token_id)
        chunk += 1


def rows(
    stream: Iterator[tuple[list[int], list[bool]]], length: int, open_rows: int = OPEN_ROWS
) -> Iterator[Row]:
    """Pack a stream into rows of `length` tokens: each dialogue goes to the fullest that fits."""
    waiting: list[Row] = []
    for ids, mask in stream:
        fitting = [row for row in waiting if len(row.ids) + len(ids) <= length]
        if fitting:
            row = max(fitting, key=lambda candidate: len(candidate.ids))
        else:
            row = Row()
            waiting.append(row)
        row.add(ids, mask)
        if len(waiting) > open_rows:
            fullest = max(waiting, key=lambda candidate: len(candidate.ids))
            waiting.remove(fullest)
            fullest.pad(length)
            yield fullest


def batches(row_stream: Iterator[Row], size: int) -> Iterator[Batch]:
    """Group rows into batches with a mask that keeps each dialogue to itself."""
    while True:
        taken = [next(row_stream) for _ in range(size)]
        segments = torch.tensor([row.segments for row in taken])
        same = segments[:, None, :, None] == segments[:, None, None, :]
        yield Batch(
            torch.tensor([row.ids for row in taken]),
            torch.tensor([row.labels for row in taken]),
            same.tril(),
        )

"""How a model's linear layers hang together, found out by watching a forward.

So that layers can be prepared and joined in any architecture, none is known by name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu


@dataclass(frozen=True)
class Activation:
    """A function that oneDNN can apply to a product's values before it stores them.

    name, algorithm: what oneDNN's operators call it.
    """

    name: str
    algorithm: str
    function: Callable[[Tensor], Tensor]

    @property
    def operands(self) -> tuple[str, list[float], str]:
        """Return what oneDNN's operators take: name, arguments, algorithm."""
        return self.name, [], self.algorithm


ACTIVATIONS = (
    Activation("gelu", "none", gelu),
    Activation("gelu", "tanh", partial(gelu, approximate="tanh")),
    Activation("relu", "", relu),
)


@dataclass(frozen=True)
class Chain:
    """Two linear layers with an activation between them, as in a feed-forward block."""

    up: nn.Linear
    activation: nn.Module
    down: nn.Linear
    kind: Activation


@dataclass(frozen=True)
class Wiring:
    """What was seen of a model.

    linears: those that were called, in order. chains: disjoint. readers: linears grouped by the
    tensor that they read, each of them in one group.
    """

    linears: list[nn.Linear]
    chains: list[Chain]
    readers: list[list[nn.Linear]]


@dataclass(frozen=True)
class _Call:
    module: nn.Module
    read: Tensor
    made: Tensor


def watch(model: nn.Module, forward: Callable[[], object]) -> Wiring:
    """Run `forward` and return what it shows of the model's wiring."""
    calls: list[_Call] = []  # keeps the tensors, so that an id means one of them

    def note(module: nn.Module, arguments: tuple[Any, ...], made: Any) -> None:
        read = arguments[0] if len(arguments) == 1 else None
        if isinstance(read, Tensor) and isinstance(made, Tensor) and made is not read:
            calls.append(_Call(module, read, made))

    leaves = [module for module in model.modules() if not any(module.children())]
    hooks = [leaf.register_forward_hook(note) for leaf in leaves]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    reads: dict[nn.Linear, list[int]] = {}
    for call in calls:
        if isinstance(call.module, nn.Linear) and type(call.module) is nn.Linear:
            reads.setdefault(call.module, []).append(id(call.read))
    readers: dict[tuple[int, ...], list[nn.Linear]] = defaultdict(list)
    for module, tensors in reads.items():
        readers[tuple(tensors)].append(module)
    return Wiring(list(reads), _chains(calls), list(readers.values()))


def _chains(calls: list[_Call]) -> list[Chain]:
    """Return linears whose values go to an activation, and from there to one other linear.

    A tensor may have readers that are no modules; so what is built on this must be compared.
    """
    makers = {id(call.made): call.module for call in calls}
    sources = defaultdict(set)  # of each module, which modules made what it read
    targets = defaultdict(set)
    for call in calls:
        maker = makers.get(id(call.read))
        sources[call.module].add(maker)
        targets[maker].add(call.module)
    found: list[Chain] = []
    used: set[nn.Module | None] = set()
    for between in sources:
        if len(sources[between]) != 1 or len(targets[between]) != 1:
            continue
        (up,), (down,) = sources[between], targets[between]
        alone = targets[up] == sources[down] == {between} and not {up, down} & used
        if alone and type(up) is nn.Linear and type(down) is nn.Linear:
            kind = _kind(between)
            if kind is not None:
                found.append(Chain(up, between, down, kind))
                used |= {up, down}
    return found


def _kind(module: nn.Module) -> Activation | None:
    """Return the activation that a module computes, by its values."""
    if any(True for _ in module.parameters()):
        return None
    points = torch.linspace(-6, 6, 193)
    try:
        values = module(points)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None
    for kind in ACTIVATIONS:
        if torch.allclose(values, kind.function(points), rtol=0, atol=2e-6):
            return kind
    return None


def rewire(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put modules in the places of others, everywhere in the model."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in replacements:
                setattr(parent, name, replacements[child])

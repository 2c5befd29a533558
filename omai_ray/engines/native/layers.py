"""Layers that the kernels compute, found in any model by what they compute, not by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omai_ray.engines.linear import Product, joined
from omai_ray.engines.native.kernels import GATES, Kernels

_EPSILONS = ("variance_epsilon", "eps", "epsilon")
# (offset, early): Llama and most others; Gemma; OLMo 2.
_FORMS = ((0.0, True), (1.0, False), (0.0, False))
_ALIKE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


class NativeRmsNorm(nn.Module):
    """Root mean square normalisation; a form is (offset, early), as the kernel has them."""

    def __init__(
        self, kernels: Kernels, weight: Tensor, epsilon: float, form: tuple[float, bool]
    ) -> None:
        super().__init__()
        self._kernels, self.epsilon = kernels, epsilon
        self.offset, self.early = form
        self.weight = weight.detach().contiguous()

    def forward(self, values: Tensor) -> Tensor:
        """Return [..., N] for [..., N]."""
        return self._kernels.rms_norm(values, self.weight, self.epsilon, self.offset, self.early)


class NativeGatedMlp(nn.Module):
    """A feed-forward block down(f(gate(x)) * up(x)), gate and up as one product."""

    def __init__(
        self, kernels: Kernels, both: nn.Module, down: nn.Module, *, gate_first: bool, gate: str
    ) -> None:
        super().__init__()
        self._kernels, self.gate_first, self.gate = kernels, gate_first, gate
        self.both, self.down = both, down

    def forward(self, values: Tensor) -> Tensor:
        """Return [..., N] for [..., N]."""
        both = self.both.forward(values)  # a module's call costs more than the kernel
        made: Tensor = self.down.forward(
            self._kernels.gated_product(both, gate_first=self.gate_first, gate=self.gate)
        )
        return made


def native_layers(
    model: nn.Module, kernels: Kernels, product: Product
) -> dict[nn.Module, nn.Module]:
    """Return what to put in the places of a model's layers; product: what computes a linear one."""
    found: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        made = _rms_norm(module, kernels) or _gated_mlp(module, kernels, product)
        if made is not None:
            found[module] = made
    return found


@torch.inference_mode()
def _rms_norm(module: nn.Module, kernels: Kernels) -> NativeRmsNorm | None:
    parameters = dict(module.named_parameters())
    epsilon = next((getattr(module, n) for n in _EPSILONS if hasattr(module, n)), None)
    weight = parameters.get("weight")
    if len(parameters) != 1 or weight is None or weight.ndim != 1 or epsilon is None:
        return None
    values = _random(weight, len(weight))
    expected = _try(module, values)
    if expected is None or any(module.children()):
        return None
    made = [NativeRmsNorm(kernels, weight, float(epsilon), form) for form in _FORMS]
    errors = [_error(layer(values), expected) for layer in made]
    least = min(errors)
    return made[errors.index(least)] if least <= _ALIKE[kernels.dtype] else None


@torch.inference_mode()
def _gated_mlp(module: nn.Module, kernels: Kernels, product: Product) -> NativeGatedMlp | None:
    linears = [child for child in module.children() if type(child) is nn.Linear]
    others = [child for child in module.children() if type(child) is not nn.Linear]
    if len(linears) not in (2, 3) or any(True for other in others for _ in other.parameters()):
        return None
    for down in linears:
        ups = [linear for linear in linears if linear is not down]
        fits = all(linear.in_features == down.out_features for linear in ups)
        if fits and sum(linear.out_features for linear in ups) == 2 * down.in_features:
            found = _gate(module, ups, down, kernels)
            if found is not None:
                both, (gate_first, gate) = product(joined(ups)), found
                return NativeGatedMlp(
                    kernels, both, product(down), gate_first=gate_first, gate=gate
                )
    return None


def _gate(
    module: nn.Module, ups: list[nn.Linear], down: nn.Linear, kernels: Kernels
) -> tuple[bool, str] | None:
    """Tell whether the first half of what `ups` make is the gate, and its function.

    None where the module is no gated block.
    """
    values = _random(down.weight, down.out_features)
    expected = _try(module, values)
    if expected is None or len({linear.bias is None for linear in ups}) != 1:
        return None
    halves = torch.cat([linear(values) for linear in ups], -1).chunk(2, -1)
    errors = {
        (gate_first, name): _error(down(GATES[name](gate) * up), expected)
        for gate_first, (gate, up) in ((True, halves), (False, halves[::-1]))
        for name in kernels.gates
    }
    least = min(errors, key=lambda key: errors[key])
    return least if errors[least] <= _ALIKE[kernels.dtype] else None


def _random(like: Tensor, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, width, generator=generator)
    rows[1::2] += 1  # a mean, which some layers take off and others do not
    rows *= torch.tensor([[1e-3], [0.1], [1.0], [30.0]])
    return rows.to(like)[None]


def _try(module: nn.Module, values: Tensor) -> Tensor | None:
    try:
        out = module(values)
    except Exception:  # it takes something else, whatever that is
        return None
    return out if isinstance(out, Tensor) and out.shape[:-1] == values.shape[:-1] else None


def _error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a part of its row's largest value."""
    if found.shape != expected.shape:
        return float("inf")
    found, expected = found.float(), expected.float()
    largest = expected.abs().amax(-1, keepdim=True).clamp_min(1e-12)
    return float(((found - expected).abs() / largest).max())

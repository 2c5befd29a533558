"""The kernels of kernels.cpp, on tensors of a CPU, and the choice between them and a GPU's."""

from __future__ import annotations

import ctypes
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from omai_ray.engines.native.build import library

WIDEST_HEAD = 512  # as kernels.cpp has it
GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "gelu": functools.partial(gelu, approximate="tanh"),
}
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_ARGUMENTS = {
    "attend": [*[_POINTER] * 8, *[_INT] * 4, *[_LONG] * 6, _FLOAT, _INT, _INT],
    "rms_norm": [*[_POINTER] * 3, _LONG, _INT, _FLOAT, _FLOAT, _INT, _INT],
    "rotate": [*[_POINTER] * 4, _LONG, _INT, _INT, _LONG, _LONG, _INT],
    "gated_product": [*[_POINTER] * 3, _LONG, _INT, _LONG, _INT, _INT],
    "multiply_row": [*[_POINTER] * 3, _INT],
    "decode": [*[_POINTER] * 7, _LONG, _INT, _INT],
}


class Packed(ctypes.Structure):
    """A linear layer in oneDNN's order, the `Product` of kernels.cpp."""

    _fields_ = [
        ("weight", _POINTER),
        ("bias", _POINTER),
        *((name, ctypes.c_int32) for name in ("outputs", "inputs", "padded", "block", "pair")),
    ]


class PackedNorm(ctypes.Structure):
    """The `Norm` of kernels.cpp."""

    _fields_ = [
        *(("weight", _POINTER), ("epsilon", _FLOAT), ("offset", _FLOAT)),
        ("early", ctypes.c_int32),
    ]


class PackedLayer(ctypes.Structure):
    """The `Layer` of kernels.cpp."""

    _fields_ = [
        *((name, PackedNorm) for name in ("attention_first", "attention_last")),
        *((name, PackedNorm) for name in ("block_first", "block_last", "query_norm", "key_norm")),
        *((name, Packed) for name in ("joint", "projection", "both", "down")),
        *(
            (name, ctypes.c_int32)
            for name in ("heads", "key_heads", "width", "window", "gate_first", "gelu")
        ),
        ("scale", _FLOAT),
    ]


class Kernels(ABC):
    """What a decoder does between its products, for one dtype, on a CPU or a GPU.

    gates: the functions of gates that it computes, of GATES.
    """

    gates: tuple[str, ...] = ("silu",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    @abstractmethod
    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        keys: Tensor,
        values: Tensor,
        starts: Tensor,
        lengths: Tensor,
        scale: float,
        window: int | None,
        out: Tensor,
    ) -> None:
        """Store the key and value of one token each of S sequences, and attend with its query.

        query [S, H, D], key and value [S, K, D]; keys and values [places, K, D] and out [S, H, D],
        contiguous. starts: int64 [S], a sequence's first place. lengths: int32 [S], its tokens
        with the new one.
        """

    @abstractmethod
    def rms_norm(
        self, values: Tensor, weight: Tensor, epsilon: float, offset: float, early: bool
    ) -> Tensor:
        """Return values [..., N] over their root mean square, times weight [N] plus offset.

        early: what is normalised is rounded before it is multiplied; the offset is 0 then.
        """

    @abstractmethod
    def rotate(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return states [H, T, D] with rotary positions, for cos and sin [T, D], contiguous."""

    @abstractmethod
    def gated_product(self, both: Tensor, *, gate_first: bool, gate: str) -> Tensor:
        """Return f(gate) * up, [..., N], for gate and up side by side in [..., 2 N].

        gate: which of `gates` is f.
        """

    def _check(self, *tensors: Tensor) -> None:
        """Raise TypeError for another dtype: the kernels would read, or return, something else."""
        for tensor in tensors:
            if tensor.dtype != self.dtype:
                raise TypeError(f"kernels for {self.dtype} were given {tensor.dtype}")


class CpuKernels(Kernels):
    """Those of a CPU: they run on as many threads as torch's own operators do."""

    gates = tuple(GATES)

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        functions = [
            _function(library, f"{name}_{_NAMES[dtype]}", arguments)
            for name, arguments in _ARGUMENTS.items()
        ]
        self._attend, self._rms_norm, self._rotate, self._gated_product = functions[:4]
        self._multiply_row, self._decode = functions[4:]

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        keys: Tensor,
        values: Tensor,
        starts: Tensor,
        lengths: Tensor,
        scale: float,
        window: int | None,
        out: Tensor,
    ) -> None:
        """See `Kernels`."""
        self._check(query, key, value, keys, values, out)
        query, key, value = (
            part if part.stride(2) == 1 else part.contiguous() for part in (query, key, value)
        )
        sequences, heads, width = query.shape
        self._attend(
            *(query.data_ptr(), key.data_ptr(), value.data_ptr()),
            *(keys.data_ptr(), values.data_ptr(), out.data_ptr()),
            *(starts.data_ptr(), lengths.data_ptr(), sequences, heads, key.shape[1], width),
            *(*query.stride()[:2], *key.stride()[:2], *value.stride()[:2]),
            *(scale, window or 0, torch.get_num_threads()),
        )

    def rms_norm(
        self, values: Tensor, weight: Tensor, epsilon: float, offset: float, early: bool
    ) -> Tensor:
        """See `Kernels`."""
        self._check(values, weight)
        width = len(weight)
        if values.shape[-1] != width:
            raise TypeError(f"{values.shape[-1]} values for a float weight of {width}")
        values = values.contiguous()
        out = torch.empty_like(values)
        self._rms_norm(
            *(values.data_ptr(), weight.data_ptr(), out.data_ptr()),
            *(values.numel() // width, width, epsilon, offset, early, torch.get_num_threads()),
        )
        return out

    def rotate(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """See `Kernels`."""
        self._check(states, cos, sin)
        if states.stride(2) != 1:
            states = states.contiguous()
        heads, tokens, width = states.shape
        if not cos.shape == sin.shape == (tokens, width) or width % 2:
            raise TypeError(f"{tokens} tokens of {width} values were given others' positions")
        out = states.new_empty(tokens, heads, width)
        self._rotate(
            *(states.data_ptr(), cos.data_ptr(), sin.data_ptr(), out.data_ptr()),
            *(tokens, heads, width, states.stride(1), states.stride(0), torch.get_num_threads()),
        )
        return out.transpose(0, 1)

    def gated_product(self, both: Tensor, *, gate_first: bool, gate: str) -> Tensor:
        """See `Kernels`."""
        self._check(both)
        both = both.contiguous()
        width = both.shape[-1] // 2
        out = both.new_empty(*both.shape[:-1], width)
        first = both.data_ptr()
        second = first + width * both.element_size()
        self._gated_product(
            *((first, second) if gate_first else (second, first)),
            *(out.data_ptr(), both.numel() // (2 * width), width, 2 * width),
            *(gate == "gelu", torch.get_num_threads()),
        )
        return out

    def multiply_row(self, product: Packed, row: Tensor, out: Tensor) -> None:
        """Multiply one row of N values, contiguous, into out, of M, likewise."""
        self._check(row, out)
        self._multiply_row(
            *(ctypes.byref(product), row.data_ptr(), out.data_ptr(), torch.get_num_threads())
        )

    def decode(
        self,
        layer: PackedLayer,
        values: Tensor,
        cos: Tensor,
        sin: Tensor,
        keys: Tensor,
        past: Tensor,
        start: int,
        length: int,
    ) -> Tensor:
        """Return what a layer makes of one token of one sequence, values [..., N], contiguous.

        keys and past, its values, are [places, K, D], as `attend` takes them; so are `start` and
        `length`. cos and sin: of D values. Raises TypeError for other sizes.
        """
        self._check(values, cos, sin, keys, past)
        inputs, width = layer.joint.inputs, layer.width
        fits = keys.shape[1:] == past.shape[1:] == (layer.key_heads, width)
        fits = fits and 0 <= start < start + length <= min(len(keys), len(past))
        fits = fits and all(part.is_contiguous() for part in (values, cos, sin, keys, past))
        if not fits or values.numel() != inputs or not cos.numel() == sin.numel() == width:
            raise TypeError(f"a layer of {inputs} inputs was given tensors of other sizes")
        out = torch.empty_like(values)
        self._decode(
            *(ctypes.byref(layer), values.data_ptr(), out.data_ptr()),
            *(cos.data_ptr(), sin.data_ptr(), keys.data_ptr(), past.data_ptr()),
            *(start, length, torch.get_num_threads()),
        )
        return out


@functools.cache
def kernels(dtype: torch.dtype, device_type: str = "cpu") -> Kernels | None:
    """Return the kernels for a dtype and a kind of device, None where this machine has none."""
    if device_type == "cuda" and dtype in _GPU_DTYPES:
        try:
            from omai_ray.engines.native.gpu_kernels import GpuKernels
        except ImportError:  # Triton is a package of its own
            return None
        return GpuKernels(dtype)
    if device_type != "cpu" or dtype not in _NAMES:
        return None
    found = library()
    return None if found is None else CpuKernels(found, dtype)


def _function(library: ctypes.CDLL, name: str, arguments: list[Any]) -> Any:
    function = getattr(library, name)
    function.argtypes, function.restype = arguments, None
    return function

"""The kernels that are built for the CPU at hand."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen3Config,
)

from omai_ray.engines.linear import PackedLinear
from omai_ray.engines.native import build
from omai_ray.engines.native.kernels import GATES, Kernels, kernels
from omai_ray.engines.native.layers import NativeGatedMlp, NativeRmsNorm, native_layers
from omai_ray.engines.native.rotary import NativeRotary, adopt_rotary
from tests.checkpoints import save_chat_checkpoint
from tests.programs import require_program

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = list(TOLERANCE)


@pytest.fixture(params=DTYPES)
def native(request: pytest.FixtureRequest) -> Kernels:
    """Return the kernels for each dtype."""
    require_program("c++", package="g++")
    found = kernels(request.param)
    assert found is not None
    return found


def require_packing(dtype: torch.dtype) -> None:
    """Skip where oneDNN has no products of such packed weights; no engine makes any then."""
    if dtype == torch.bfloat16 and not torch.cpu.get_capabilities().get("avx512_bw"):
        pytest.skip("this CPU has no AVX-512, which packed bfloat16 needs")


def close(found: Tensor, expected: Tensor) -> None:
    """Compare as closely as the dtype allows."""
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[found.dtype])


@pytest.mark.parametrize("width", [8, 64, 80, 128])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("window", [None, 5])
def test_attention_equals_torchs_own(
    native: Kernels, width: int, heads: int, key_heads: int, window: int | None
) -> None:
    """Whatever the sizes; the new key and value are stored where they belong, and nothing else."""
    torch.manual_seed(0)
    lengths = [1, 7, 33]
    starts = [64, 0, 128]
    keys, values = (torch.randn(192, key_heads, width).to(native.dtype) for _ in range(2))
    query = torch.randn(heads, 3, width).to(native.dtype).transpose(0, 1)
    key, value = (torch.randn(3, key_heads, width).to(native.dtype) for _ in range(2))
    expected_keys = keys.clone()
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        expected_keys[start + length - 1] = key[row]
    out = torch.empty(3, heads, width, dtype=native.dtype)
    native.attend(
        *(query, key, value, keys, values, torch.tensor(starts)),
        *(torch.tensor(lengths, dtype=torch.int32), 0.3, window, out),
    )
    assert torch.equal(keys, expected_keys)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        assert torch.equal(values[start + length - 1], value[row])
        first = start + (max(0, length - window) if window else 0)
        k, v = (part[first : start + length].transpose(0, 1)[None] for part in (keys, values))
        attended = scaled_dot_product_attention(
            query[row][None, :, None], k, v, scale=0.3, enable_gqa=True
        )
        close(out[row], attended[0, :, 0])


def test_attention_holds_large_scores(native: Kernels) -> None:
    """Scores far beyond what an exponential can hold weigh one key alone."""
    keys = torch.zeros(4, 1, 64, dtype=native.dtype)
    keys[1] = 100
    values = torch.arange(4).view(4, 1, 1).expand(4, 1, 64).to(native.dtype).contiguous()
    query = torch.full((1, 1, 64), 100, dtype=native.dtype)
    out = torch.empty(1, 1, 64, dtype=native.dtype)
    native.attend(
        *(query, keys[3:].clone(), values[3:].clone(), keys, values, torch.tensor([0])),
        *(torch.tensor([4], dtype=torch.int32), 1.0, None, out),
    )
    assert out.eq(1).all()


@pytest.mark.parametrize("rows", [1, 50])
@pytest.mark.parametrize("gate", GATES)
def test_the_gated_product_equals_torchs_own(native: Kernels, rows: int, gate: str) -> None:
    """For either order of the halves, tails of vectors included, and for large values."""
    function = GATES[gate]
    both = (torch.randn(rows, 2 * 77) * 20).to(native.dtype)
    first, second = both.chunk(2, -1)
    for gate_first, expected in (
        (True, function(first) * second),
        (False, function(second) * first),
    ):
        found = native.gated_product(both, gate_first=gate_first, gate=gate)
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-5)


CONFIGS: list[tuple[type[PreTrainedConfig], dict[str, Any], int, int]] = [
    (LlamaConfig, {"num_key_value_heads": 2}, 5, 2),
    (LlamaConfig, {"num_key_value_heads": 2, "mlp_bias": True}, 5, 2),
    (Qwen3Config, {"num_key_value_heads": 1, "head_dim": 16}, 9, 2),
    (GemmaConfig, {"num_key_value_heads": 1, "head_dim": 8}, 5, 2),
    (Phi3Config, {"num_key_value_heads": 2}, 5, 2),
    (Olmo2Config, {}, 9, 2),
    (GPT2Config, {}, 0, 0),
]


@pytest.mark.parametrize(("config", "options", "norms", "blocks"), CONFIGS)
def test_layers_are_found_by_what_they_compute(
    native: Kernels,
    tmp_path: Path,
    config: type[PreTrainedConfig],
    options: dict[str, Any],
    norms: int,
    blocks: int,
) -> None:
    """In any architecture; a block without a gate stays as it is."""
    require_packing(native.dtype)
    save_chat_checkpoint(tmp_path, config=config, **options)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=native.dtype)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.normal_(1, 0.3)
    found = native_layers(model, native, PackedLinear)
    kinds = [type(made) for made in found.values()]
    assert (kinds.count(NativeRmsNorm), kinds.count(NativeGatedMlp)) == (norms, blocks)
    for module, made in found.items():
        weight = next(module.parameters())
        values = torch.randn(1, 3, weight.shape[-1]).to(native.dtype)
        torch.testing.assert_close(made(values), module(values), rtol=2e-2, atol=1e-4)


def test_what_only_looks_like_a_gated_block_is_left_alone(native: Kernels) -> None:
    """Three layers of fitting sizes that are put together otherwise, or that raise."""

    class Other(nn.Module):
        def __init__(self, fails: bool) -> None:
            super().__init__()
            self.gate, self.up = (nn.Linear(4, 8, dtype=native.dtype) for _ in range(2))
            self.down = nn.Linear(8, 4, dtype=native.dtype)
            self.fails = fails

        def forward(self, values: Tensor) -> Tensor:
            if self.fails:
                raise KeyError("mask")
            out: Tensor = self.down(self.gate(values) * self.up(values))
            return out

    assert native_layers(nn.Sequential(Other(False), Other(True)), native, PackedLinear) == {}


def test_a_layer_that_takes_the_mean_off_is_no_rms_norm(native: Kernels) -> None:
    """However wide."""
    norm = nn.LayerNorm(4096, bias=False, dtype=native.dtype)
    assert native_layers(nn.Sequential(norm), native, PackedLinear) == {}


def test_tensors_of_another_dtype_or_width_are_refused(native: Kernels) -> None:
    """They would be read as what they are not."""
    other = torch.float32 if native.dtype == torch.bfloat16 else torch.bfloat16
    values = torch.zeros(2, 8, dtype=native.dtype)
    for wrong in (values.to(other), torch.zeros(2, 16, dtype=native.dtype)):
        with pytest.raises(TypeError, match="float"):
            native.rms_norm(wrong, values[0], 1e-6, 0.0, True)
    with pytest.raises(TypeError):
        native.gated_product(values.to(other), gate_first=True, gate="silu")
    with pytest.raises(TypeError):
        native.rotate(values[None].to(other), values, values)


@pytest.fixture
def llama(tmp_path: Path, native: Kernels) -> Iterator[Any]:
    """Return a Llama, and put its architecture's function back after."""
    save_chat_checkpoint(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=native.dtype)
    module = sys.modules[type(model).__module__]
    kept = module.apply_rotary_pos_emb
    yield model
    module.apply_rotary_pos_emb = kept  # type: ignore[attr-defined]


def test_rotary_positions_equal_the_originals(llama: Any, native: Kernels) -> None:
    """Also for heads that lie side by side; what the kernel does not do goes to the original."""
    module: Any = sys.modules[type(llama).__module__]
    if isinstance(module.apply_rotary_pos_emb, NativeRotary):
        module.apply_rotary_pos_emb = module.apply_rotary_pos_emb.original
    original = module.apply_rotary_pos_emb
    adopt_rotary(llama)
    adopted = module.apply_rotary_pos_emb
    assert isinstance(adopted, NativeRotary)
    adopt_rotary(llama)
    assert module.apply_rotary_pos_emb is adopted
    both = torch.randn(1, 40, 6 * 16).to(native.dtype)
    q = both[..., : 4 * 16].view(1, 40, 4, 16).transpose(1, 2)
    k = both[..., 4 * 16 :].view(1, 40, 2, 16).transpose(1, 2)
    angles = torch.rand(1, 40, 16) * 6
    cos, sin = angles.cos().to(native.dtype), angles.sin().to(native.dtype)
    for found, expected in zip(adopted(q, k, cos, sin), original(q, k, cos, sin), strict=True):
        close(found, expected)
    batch = [torch.cat([part, part]) for part in (q, k, cos, sin)]
    for found, expected in zip(adopted(*batch), original(*batch), strict=True):
        assert torch.equal(found, expected)


def test_a_function_that_rotates_otherwise_is_left_alone(llama: Any) -> None:
    """Pairs of neighbours instead of halves, say."""
    module: Any = sys.modules[type(llama).__module__]

    def other(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return q * cos.unsqueeze(1), k * cos.unsqueeze(1)

    module.apply_rotary_pos_emb = other
    adopt_rotary(llama)
    assert module.apply_rotary_pos_emb is other


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return an empty cache directory for what is built."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.library.cache_clear()
    yield tmp_path / "omai-ray"
    build.library.cache_clear()


def test_it_is_built_once(cache: Path) -> None:
    """The second process finds it."""
    require_program("c++", package="g++")
    assert build.library() is not None
    (built,) = cache.iterdir()
    written = built.stat().st_mtime_ns
    build.library.cache_clear()
    assert build.library() is not None
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [written]


def test_a_cache_that_others_can_write_to_is_not_used(cache: Path) -> None:
    """Code from there would run."""
    require_program("c++", package="g++")
    cache.mkdir()
    cache.chmod(0o777)
    assert build.library() is not None
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_working_compiler_there_are_no_kernels(
    cache: Path, compiler: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A log line says so."""
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("CXX", compiler)
    assert build.library() is None
    assert "more slowly" in caplog.text

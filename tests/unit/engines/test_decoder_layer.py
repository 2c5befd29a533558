"""Decoders' layers in few calls on a CPU, and products of one row in oneDNN's order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GlmConfig,
    GraniteConfig,
    HunYuanDenseV1Config,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from omai_ray.catalog import ModelSpec
from omai_ray.engines.chat.arena import Extent
from omai_ray.engines.chat.decoder_layer import DecoderLayer
from omai_ray.engines.chat.prefixes import Stored
from omai_ray.engines.chat.protocol import GenerationRequest
from omai_ray.engines.chat.scheduler import Piece, Sequence
from omai_ray.engines.chat.transformers_runner import TransformersRunner
from omai_ray.engines.linear import PackedLinear
from omai_ray.engines.native.kernels import (
    GATES,
    CpuKernels,
    Packed,
    PackedLayer,
    PackedNorm,
    kernels,
)
from omai_ray.engines.native.rows import RowProduct
from omai_ray.engines.wiring import Activation
from tests.checkpoints import save_chat_checkpoint
from tests.programs import require_program

ALIKE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
ORDERS = [
    *((torch.float32, 1, block) for block in (64, 48, 32, 16)),
    *((torch.bfloat16, pair, block) for pair in (1, 2) for block in (64, 48, 32, 16)),
]


def cpu_kernels(dtype: torch.dtype) -> CpuKernels:
    """Return the kernels of this CPU."""
    require_program("c++", package="g++")
    found = kernels(dtype)
    assert isinstance(found, CpuKernels)
    return found


def require_known_order() -> None:
    """Skip where oneDNN has an order of weights of its own; with AVX2 alone it is known."""
    found = torch.cpu.get_capabilities()
    if not found.get("avx2"):
        pytest.skip("oneDNN's order is known on x86 CPUs with AVX2 or more")
    if found.get("avx512_f") and PackedLinear(nn.Linear(64, 64)).row is None:
        pytest.skip("oneDNN's order on this CPU is not known: one token takes many calls here")


def in_order(weight: Tensor, block: int, pair: int) -> Tensor:
    """Return [outputs / block, inputs / pair, block, pair], what is beyond the weights zero."""
    outputs, inputs = weight.shape
    blocks, padded = -(-outputs // block), -(-inputs // 16) * 16
    room = weight.new_zeros(blocks * block, padded)
    room[:outputs, :inputs] = weight
    return room.view(blocks, block, padded // pair, pair).transpose(1, 2).contiguous()


def packed(ordered: Tensor, weight: Tensor, bias: Tensor | None = None) -> Packed:
    """Return what the kernels take."""
    _, pairs, block, pair = ordered.shape
    address = None if bias is None else bias.data_ptr()
    return Packed(ordered.data_ptr(), address, *weight.shape, pairs * pair, block, pair)


def close(found: Tensor, expected: Tensor) -> None:
    """Compare as closely as the dtype allows, by the largest value."""
    limit = ALIKE[found.dtype] * float(expected.abs().max())
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=0, atol=limit)


@pytest.mark.parametrize(("dtype", "pair", "block"), ORDERS)
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 16), (300, 77), (1, 1), (33, 130)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_is_multiplied_whatever_the_order_and_the_sizes(
    dtype: torch.dtype,
    pair: int,
    block: int,
    outputs: int,
    inputs: int,
    biased: bool,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also for more threads than there are blocks; nothing beyond the outputs is written."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    weight, row = torch.randn(outputs, inputs).to(dtype), torch.randn(inputs).to(dtype)
    bias = torch.randn(outputs).to(dtype) if biased else None
    ordered = in_order(weight, block, pair)
    room = torch.full((outputs + 64,), 7.0, dtype=dtype)
    cpu_kernels(dtype).multiply_row(packed(ordered, weight, bias), row, room)
    close(room[:outputs], linear(row, weight, bias))
    assert room[outputs:].eq(7).all()


@pytest.mark.parametrize("shape", [(64, 16), (300, 77), (96, 64), (7, 5)])
@pytest.mark.parametrize("bias", [False, True])
def test_onednns_order_is_found(shape: tuple[int, int], bias: bool) -> None:
    """One row goes to the kernel, more go to oneDNN, and the answers are the same."""
    cpu_kernels(torch.float32)
    require_known_order()
    plain = nn.Linear(shape[1], shape[0], bias=bias).requires_grad_(False)
    layer = PackedLinear(plain)
    assert layer.row is not None
    values = torch.randn(1, 3, shape[1])
    single = values[:, 1:2]
    assert layer.row.fits(single)
    assert not layer.row.fits(values)
    assert not layer.row.fits(single.double())
    close(layer(single), plain(single))
    close(layer(values), plain(values))
    assert layer(single).shape == (1, 1, shape[0])


@pytest.mark.parametrize(("dtype", "pair", "block"), ORDERS)
@pytest.mark.parametrize(("few_norms", "gate"), [(True, "silu"), (False, "gelu")])
@pytest.mark.parametrize("window", [None, 3])
def test_a_token_goes_through_a_layer_in_one_call(
    dtype: torch.dtype, pair: int, block: int, few_norms: bool, gate: str, window: int | None
) -> None:
    """As through torch's own operators; its key and value are stored, and nothing else is."""
    native = cpu_kernels(dtype)
    torch.manual_seed(0)
    hidden, inner, heads, key_heads, width, start, length = 40, 56, 6, 2, 8, 5, 9

    def random(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype)

    sizes = [((heads + 2 * key_heads) * width, hidden), (hidden, heads * width)]
    sizes += [(2 * inner, hidden), (hidden, inner)]
    weights = [random(*size) / size[1] ** 0.5 for size in sizes]
    bias = random(sizes[0][0])
    ordered = [in_order(weight, block, pair) for weight in weights]
    norms = [random(size) for size in (*[hidden] * 4, width, width)]
    given = [0, 2] if few_norms else range(6)
    layer = PackedLayer(
        *(
            PackedNorm(norm.data_ptr(), 1e-6, 0.0, True) if index in given else PackedNorm()
            for index, norm in enumerate(norms)
        ),
        packed(ordered[0], weights[0], bias),
        *(packed(*pair) for pair in zip(ordered[1:], weights[1:], strict=True)),
        *(heads, key_heads, width, window or 0, True, gate == "gelu", 0.3),
    )
    values, angles = random(1, 1, hidden), torch.rand(1, width // 2) * 6
    cos, sin = (torch.cat([part, part], 1).to(dtype) for part in (angles.cos(), angles.sin()))
    keys, past = random(20, key_heads, width), random(20, key_heads, width)
    kept = keys.clone(), past.clone()
    found = native.decode(layer, values, cos, sin, keys, past, start, length)

    def normed(x: Tensor, index: int) -> Tensor:
        if index not in given:
            return x
        return rms_norm(x.float(), x.shape[-1:], norms[index].float(), 1e-6).to(dtype)

    joint = linear(normed(values[0, 0], 0), weights[0], bias).view(-1, width)
    query, key, value = torch.split(joint, [heads, key_heads, key_heads])
    query, key = normed(query, 4), normed(key, 5)
    query, key = (
        part * cos + torch.cat([-part[:, width // 2 :], part[:, : width // 2]], 1) * sin
        for part in (query, key)
    )
    place = start + length - 1
    close(keys[place], key)
    close(past[place], value)
    for now, before in zip((keys, past), kept, strict=True):
        assert torch.equal(torch.cat([now[:place], now[place + 1 :]]), _without(before, place))
    seen = slice(place + 1 - (window or length), place + 1)
    attended = scaled_dot_product_attention(
        *(query[None, :, None], keys[seen].transpose(0, 1)[None], past[seen].transpose(0, 1)[None]),
        scale=0.3,
        enable_gqa=True,
    )
    total = values[0, 0] + normed(linear(attended.flatten(), weights[1]), 1)
    first, second = linear(normed(total, 2), weights[2]).chunk(2)
    close(found[0, 0], total + normed(linear(GATES[gate](first) * second, weights[3]), 3))


def _without(tensor: Tensor, index: int) -> Tensor:
    return torch.cat([tensor[:index], tensor[index + 1 :]])


def test_what_does_not_fit_a_layer_is_refused() -> None:
    """The kernels would read, or write, beyond the end."""
    native = cpu_kernels(torch.float32)
    layer = PackedLayer(key_heads=2, width=8, joint=Packed(inputs=40))
    values, angle, keys = torch.zeros(1, 1, 40), torch.zeros(1, 8), torch.zeros(20, 2, 8)
    for wrong in (
        (torch.zeros(1, 1, 41), angle, angle, keys, keys, 0, 1),
        (values, angle[:, :4], angle, keys, keys, 0, 1),
        (values, angle, angle, keys[:, :1], keys, 0, 1),
        (values, angle, angle, keys, keys, 15, 6),
    ):
        with pytest.raises(TypeError, match="a layer of 40 inputs"):
            native.decode(layer, *wrong)
    with pytest.raises(TypeError, match="positions"):
        native.rotate(torch.zeros(2, 3, 8), torch.zeros(3, 4), torch.zeros(3, 4))


# Queries are scaled by their position, from the 33rd on.
SCALED = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "llama_4_scaling_beta": 0.1,
}
LAYERS: list[tuple[type[PreTrainedConfig], dict[str, Any], int]] = [
    (LlamaConfig, {"num_key_value_heads": 2}, 2),
    (LlamaConfig, {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}, 2),
    (LlamaConfig, {"num_key_value_heads": 2, "sliding_window": 9}, 2),  # which it does not use
    (Qwen2Config, {"num_key_value_heads": 2}, 2),
    (Qwen3Config, {"num_key_value_heads": 1, "head_dim": 16}, 2),
    (MistralConfig, {"num_key_value_heads": 2, "sliding_window": 9}, 2),
    (SmolLM3Config, {"num_key_value_heads": 2, "no_rope_layers": [1, 0]}, 1),
    (GemmaConfig, {"num_key_value_heads": 1, "head_dim": 8}, 2),
    (GemmaConfig, {"num_key_value_heads": 1, "head_dim": 8, "hidden_act": "silu"}, 2),
    (
        Gemma3TextConfig,
        {
            "num_key_value_heads": 1,
            "head_dim": 8,
            "sliding_window": 9,
            "_sliding_window_pattern": 2,
        },
        2,
    ),
    (GraniteConfig, {"num_key_value_heads": 2, "attention_multiplier": 0.4}, 2),
    (GraniteConfig, {"num_key_value_heads": 2, "residual_multiplier": 0.97}, 0),
    (Ministral3Config, {"num_key_value_heads": 2, "head_dim": 8, "rope_parameters": SCALED}, 0),
    (HunYuanDenseV1Config, {"num_key_value_heads": 2, "head_dim": 8}, 0),
    (GlmConfig, {"num_key_value_heads": 2, "head_dim": 8}, 0),
    (Olmo2Config, {}, 0),
    (Phi3Config, {"num_key_value_heads": 2}, 0),
]


@pytest.mark.parametrize(("config", "options", "adopted"), LAYERS)
def test_layers_are_put_together_anew_where_they_compute_the_same(
    tmp_path: Path,
    config: type[PreTrainedConfig],
    options: dict[str, Any],
    adopted: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others stay as they are. All logits are the model's own, those of single tokens too."""
    cpu_kernels(torch.float32)
    require_known_order()
    save_chat_checkpoint(tmp_path, config=config, **options)
    runner = TransformersRunner(_spec(tmp_path), tmp_path, 256)
    found = [each for each in runner._model.modules() if isinstance(each, DecoderLayer)]
    assert len(found) == adopted
    in_one_call: list[int] = []
    decode = CpuKernels.decode

    def counted(*arguments: Any) -> Tensor:
        in_one_call.append(1)
        return decode(*arguments)

    monkeypatch.setattr(CpuKernels, "decode", counted)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(250, (70,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids])).logits[0]
    stored = Stored("", ids, Extent(64, 128))
    sequence = Sequence(GenerationRequest("", ids, 1), ids, stored)
    for start, count in ((0, 1), (1, 1), (2, 38), (40, 1), (41, 28), (69, 1)):
        made = runner.run([Piece(sequence, stored, start, count, True)])
        torch.testing.assert_close(made[0], expected[start + count - 1], rtol=1e-4, atol=1e-4)
    assert len(in_one_call) == 3 * adopted  # the first token goes another way


@pytest.mark.parametrize("config", [LlamaConfig, Qwen3Config, Gemma3TextConfig])
def test_bfloat16_layers_are_put_together_too(
    tmp_path: Path, config: type[PreTrainedConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a CPU whose oneDNN packs bfloat16: here torch's own product stands in for oneDNN's."""
    native = cpu_kernels(torch.bfloat16)

    def pack(layer: Any, plain: nn.Linear, activation: Activation | None = None) -> None:
        nn.Module.__init__(layer)
        assert activation is None
        layer.weight, layer.bias = plain.weight.detach(), plain.bias
        ordered = in_order(layer.weight, 64, 2)
        layer.row = RowProduct(native, packed(ordered, layer.weight, layer.bias), (ordered,))

    def multiply(layer: Any, values: Tensor) -> Tensor:
        if layer.row.fits(values):
            made: Tensor = layer.row(values)
            return made
        return linear(values, layer.weight, layer.bias)

    monkeypatch.setattr(PackedLinear, "__init__", pack)
    monkeypatch.setattr(PackedLinear, "forward", multiply)
    monkeypatch.setattr("omai_ray.engines.prepare._is_useful", lambda model: True)
    options = {"num_key_value_heads": 2, "head_dim": 8, "hidden_size": 64}
    save_chat_checkpoint(tmp_path, config=config, **options)
    spec = _spec(tmp_path).model_copy(update={"dtype": "bfloat16"})
    runner = TransformersRunner(spec, tmp_path, 256)
    assert sum(isinstance(each, DecoderLayer) for each in runner._model.modules()) == 2


def test_a_step_of_one_token_ends_between_layers(tmp_path: Path) -> None:
    """So that a batch's step gives way, whatever its size."""
    cpu_kernels(torch.float32)
    save_chat_checkpoint(tmp_path)
    runner = TransformersRunner(_spec(tmp_path), tmp_path, 256)
    ids = [7, 8, 9]
    stored = Stored("", ids, Extent(0, 64))
    sequence = Sequence(GenerationRequest("", ids, 1), ids, stored)
    runner.run([Piece(sequence, stored, 0, 2, False)])
    calls: list[int] = []

    def held() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise InterruptedError

    runner.between_layers = held
    with pytest.raises(InterruptedError):
        runner.run([Piece(sequence, stored, 2, 1, True)])
    assert len(calls) == 2


def _spec(directory: Path) -> ModelSpec:
    return ModelSpec(name="m", task="chat", source=str(directory), dtype="float32")

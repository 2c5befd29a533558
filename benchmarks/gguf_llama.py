"""Writes a Llama checkpoint of transformers as a GGUF file, for llama.cpp.

llama.cpp's own converter, which is no package, knows every architecture; this one knows what the
benchmark and the tests need.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from torch import Tensor
from transformers import AutoModelForCausalLM

_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(directory: Path) -> Path:
    """Write `model.gguf` beside a checkpoint's own files, matrices in the checkpoint's dtype."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    config = model.config
    path = directory / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, directory, config.vocab_size, config.eos_token_id)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if ".q_proj" in name:
            tensor = _permuted(tensor, config.num_attention_heads)
        if ".k_proj" in name:
            tensor = _permuted(tensor, config.num_key_value_heads)
        _add(writer, _name(name), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{_PARTS[part]}.weight"


def _permuted(weight: Tensor, heads: int) -> Tensor:
    """Return rows as llama.cpp's rotary positions pair them: neighbours instead of halves."""
    rows, width = weight.shape
    return weight.view(heads, 2, rows // heads // 2, width).transpose(1, 2).reshape(rows, width)


def _add(writer: GGUFWriter, name: str, tensor: Tensor) -> None:
    if tensor.ndim > 1 and tensor.dtype == torch.bfloat16:
        data = tensor.contiguous().view(torch.int16).numpy().view(np.uint8)
        writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(name, tensor.float().contiguous().numpy())


def _add_tokenizer(writer: GGUFWriter, directory: Path, size: int, eos: int | None) -> None:
    found = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["content"] for token in found["added_tokens"]}
    known = found["model"]["vocab"] | {t["content"]: t["id"] for t in found["added_tokens"]}
    by_id = {number: text for text, number in known.items()}
    tokens, types = [], []
    for number in range(size):
        text = by_id.get(number, f"[unused {number}]")
        tokens.append(text)
        control = TokenType.CONTROL if text in added else TokenType.NORMAL
        types.append(control if number in by_id else TokenType.UNUSED)
    merges = [m if isinstance(m, str) else " ".join(m) for m in found["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    if eos is not None:
        writer.add_eos_token_id(eos)

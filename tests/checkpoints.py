"""Small checkpoints with random weights, made on the spot: every test runs real engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    PreTrainedConfig,
)

torch.set_num_threads(1)  # such small models are faster so, most of all on a busy machine

CHAT_TEMPLATE = """
{%- if tools %}<|im_start|>tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role not in ["system", "user", "assistant", "tool"] %}
{{- raise_exception("unknown role " + message.role) }}
{%- endif %}
{{- "<|im_start|>" + message.role + "\n" + message.content }}
{%- for call in message.tool_calls or [] %}
{{- "<tool_call>" + call.function | tojson + "</tool_call>" }}
{%- endfor %}
{{- "<|im_end|>\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\n" }}{% endif %}
"""
_MODULES = "sentence_transformers.models"
_SPECIAL = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
_CORPUS = [
    "Hello, how are you? I am fine, thank you.",
    "The quick brown fox jumps over the lazy dog.",
    "user assistant system tool 0123456789",
]


def save_chat_checkpoint(
    directory: Path,
    *,
    context: int = 256,
    seed: int = 0,
    config: type[PreTrainedConfig] = LlamaConfig,
    **options: Any,
) -> Path:
    """Write a model of 2 layers, a Llama by default, with a byte-level tokenizer and a template."""
    tokenizer = _byte_level(["<|im_start|>", "<|im_end|>"])
    _save_tokenizer(tokenizer, directory, eos_token="<|im_end|>")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    torch.manual_seed(seed)
    shape = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": None,
        "bos_token_id": None,
    }
    if config is LlamaConfig:
        shape["num_key_value_heads"] = 2
    model = AutoModelForCausalLM.from_config(config(**{**shape, **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # of a norm, or a bias: one left out or mistaken is seen
                parameter.add_(torch.rand_like(parameter) * 0.4)
        # spread the logits, so that greedy choices are not near-ties
        model.get_output_embeddings().weight.mul_(20)
    model.save_pretrained(directory)
    return directory


def save_embedding_checkpoint(
    directory: Path,
    *,
    pooling: str | list[str] = "mean",
    seed: int = 0,
    config: type[PreTrainedConfig] = BertConfig,
    width: int = 32,
    **options: Any,
) -> Path:
    """Write a model of 2 layers in the sentence-transformers layout, a BERT by default.

    Its weights are large enough for attention and positions to matter to every vector.
    """
    tokenizer = _word_pieces()
    _save_tokenizer(tokenizer, directory, **_SPECIAL)
    _save_encoder(directory, AutoModel, tokenizer, seed, config, width, options)
    write_modules(
        directory,
        ("Pooling", {"embedding_dimension": width, "pooling_mode": pooling}, {}),
        ("Normalize", {}, {}),
    )
    _write(directory / "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": False})
    return directory


def save_rerank_checkpoint(
    directory: Path,
    *,
    seed: int = 0,
    config: type[PreTrainedConfig] = BertConfig,
    width: int = 32,
    segments: bool = True,
    **options: Any,
) -> Path:
    """Write a cross-encoder of 2 layers, a BERT by default, as transformers saves it.

    segments: join texts as BERT does; else as RoBERTa, by two separators without segments.
    """
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1" if segments else "[CLS] $A [SEP] [SEP] $B [SEP]"
    names = ["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"]
    tokenizer = _word_pieces(pair=pair)
    _save_tokenizer(tokenizer, directory, **_SPECIAL, model_input_names=names)
    options = {"num_labels": 1, **options}
    loader = AutoModelForSequenceClassification
    _save_encoder(directory, loader, tokenizer, seed, config, width, options)
    return directory


def write_modules(
    directory: Path, *modules: tuple[str, dict[str, Any], dict[str, torch.Tensor]]
) -> None:
    """Write what follows a checkpoint's transformer: each module's kind, settings and weights."""
    listed = [{"idx": 0, "name": "0", "path": "", "type": f"{_MODULES}.Transformer"}]
    for index, (kind, settings, weights) in enumerate(modules, start=1):
        name = f"{index}_{kind}"
        listed.append(
            {"idx": index, "name": str(index), "path": name, "type": f"{_MODULES}.{kind}"}
        )
        if settings:
            _write(directory / name / "config.json", settings)
        if weights:
            save_file(weights, directory / name / "model.safetensors")
    _write(directory / "modules.json", listed)


def _save_encoder(
    directory: Path,
    loader: Any,
    tokenizer: Tokenizer,
    seed: int,
    config: type[PreTrainedConfig],
    width: int,
    options: dict[str, Any],
) -> None:
    torch.manual_seed(seed)
    shape = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    model = loader.from_config(config(**{**shape, **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    model.save_pretrained(directory)


def _byte_level(specials: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def _word_pieces(**templates: str) -> Tokenizer:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        _CORPUS,
        trainers.WordPieceTrainer(vocab_size=200, special_tokens=specials, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)], **templates
    )
    return tokenizer


def _save_tokenizer(tokenizer: Tokenizer, directory: Path, **special: Any) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    _write(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 10**6, **special},
    )


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")

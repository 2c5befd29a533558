"""Which checkpoints may be loaded: safetensors only, and no code of their own."""

from __future__ import annotations

import hashlib
from pathlib import Path

from omai_ray.catalog import ModelSpec
from omai_ray.errors import CheckpointError
from omai_ray.text.tokenizer import read_json

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def check_weights(spec: ModelSpec, directory: Path) -> None:
    """Raise CheckpointError where a directory has nothing that the model's engine can load."""
    if spec.engine == "llama-cpp":
        gguf_file(directory)
    else:
        check_safe(directory)


def check_adapter(directory: Path) -> None:
    """Raise CheckpointError where a directory has no LoRA adapter in peft's layout."""
    kind = read_json(directory / "adapter_config.json").get("peft_type")
    if kind != "LORA" or not (directory / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(
            f"{directory}: no LoRA adapter in peft's layout (adapter_config.json with peft_type "
            f"LORA, and {ADAPTER_WEIGHTS})"
        )


def gguf_file(directory: Path) -> Path:
    """Return a directory's one GGUF file; raise CheckpointError where there is not one."""
    files = sorted(directory.glob("*.gguf"))
    if len(files) != 1:
        raise CheckpointError(
            f"{directory}: engine llama-cpp needs one .gguf file, and there are {len(files)}"
        )
    _config(directory)
    return files[0]


def check_safe(directory: Path) -> None:
    """Raise CheckpointError for pickled weights, code to run, or missing parts."""
    config = _config(directory)
    if "auto_map" in read_json(config):
        raise CheckpointError(
            f"{config}: asks to run code of its own (auto_map), which is never done; "
            "use a checkpoint of an architecture that transformers has"
        )
    if not any(directory.glob("*.safetensors")):
        pickled = [p.name for p in [*directory.glob("*.bin"), *directory.glob("*.pt")]]
        found = f" (found {', '.join(sorted(pickled))}, which can run code)" if pickled else ""
        raise CheckpointError(
            f"{directory}: no .safetensors weights{found}; convert them with "
            "model.save_pretrained(..., safe_serialization=True)"
        )


def _config(directory: Path) -> Path:
    path = directory / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{directory}: no config.json; this is not a transformers checkpoint")
    return path


def stop_tokens(directory: Path) -> frozenset[int]:
    """Return the ids that end an answer, as a checkpoint's files name them."""
    for name in ("generation_config.json", "config.json"):
        found = read_json(directory / name).get("eos_token_id")
        if found is not None:
            return frozenset([found] if isinstance(found, int) else found)
    return frozenset()


def hash_files(directory: Path) -> str:
    """Return a SHA-256 over the names and bytes of what decides a model's output."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.suffix in {".safetensors", ".json", ".jinja"} and path.is_file():
            digest.update(f"{path.relative_to(directory).as_posix()}\0".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()

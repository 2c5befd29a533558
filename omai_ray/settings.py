"""The platform's settings: the only reader of configuration files and of `OMAI_*` that are in them.

A value comes from the command line, else the environment (`OMAI_*`), else the YAML file, else the
default. Unknown keys are refused, so that a misspelt one cannot pass unseen.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from omai_ray.catalog import Catalog, ModelSpec, default_models
from omai_ray.errors import ConfigError
from omai_ray.secret_literals import secret_literals
from omai_ray.spelling import meant
from omai_ray.unknown_keys import unknown_keys

ENVIRONMENT = {
    "OMAI_HOST": "host",
    "OMAI_PORT": "port",
    "OMAI_STATE_DIR": "state_dir",
    "OMAI_DATABASE_URL": "database_url",
    "OMAI_PEPPER_FILE": "pepper_file",
    "OMAI_ADMIN_PASSWORD": "admin_password",
    "OMAI_FILES_LOCATION": "files.location",
    "OMAI_LOG_LEVEL": "log_level",
    "OMAI_LOG_FILE": "log_file",
    "OMAI_REDIS_URL": "limiter.redis_url",
}
CONFIG_VARIABLE = "OMAI_CONFIG"
EDGE_VARIABLE = "OMAI_EDGE"
DEFAULT_BASE_URL = "http://127.0.0.1:8000/v1"
FORM_BYTES = 64 * 1024
"""What an upload's form may have besides the file."""


BatchBackend = Literal["shared", "own"]
Origin = Annotated[str, Field(pattern=r"^https?://[^/\s*]+$"), AfterValidator(str.lower)]


class Tier(BaseModel):
    """What an account may use in a minute, and how many requests at once; None is unlimited.

    batch_enqueued_tokens: of all its batches and embedding jobs that have not ended, estimated from
    their inputs.
    storage_bytes: of files, in all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_minute: Annotated[int, Field(ge=1, le=10**9)] | None
    tokens_per_minute: Annotated[int, Field(ge=1, le=10**12)] | None
    concurrent_requests: Annotated[int, Field(ge=1, le=10**9)] | None = None
    batch_enqueued_tokens: Annotated[int, Field(ge=1, le=10**15)] | None = None
    storage_bytes: Annotated[int, Field(ge=1, le=10**18)] | None = 10 * 1024**3


DEFAULT_TIERS = {
    "basic": Tier(
        requests_per_minute=60, tokens_per_minute=40_000, batch_enqueued_tokens=2_000_000
    ),
    "pro": Tier(
        requests_per_minute=3_000,
        tokens_per_minute=2_000_000,
        batch_enqueued_tokens=200_000_000,
    ),
    "enterprise": Tier(requests_per_minute=None, tokens_per_minute=None, storage_bytes=None),
}


class IngressSettings(BaseModel):
    """The HTTP edge: how many processes share it, and what a request may be.

    cors_origins: those of web pages that may call it (`https://app.example`), or `*` for all.
    keep_alive_s: after how much silence a stream says that it still is there.
    placement: labels that their nodes must have. max_replicas_per_node: on one node, at most.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    num_cpus: Annotated[float, Field(ge=0)] = 0.1
    max_ongoing_requests: Annotated[int, Field(ge=1)] = 1000
    max_body_bytes: Annotated[int, Field(ge=1024)] = 8 * 1024 * 1024
    cors_origins: tuple[Literal["*"] | Origin, ...] = ()
    keep_alive_s: Annotated[float, Field(ge=1, le=3600)] = 10.0
    placement: dict[str, str] = Field(default_factory=dict)
    max_replicas_per_node: Annotated[int, Field(ge=1, le=100)] | None = None


class LimiterSettings(BaseModel):
    """Who keeps the buckets of the tiers for all ingress replicas.

    backend: `actor`, one on the Ray cluster, or `redis`. shards: over how many actors accounts are
    spread. deadline_ms: how long a decision may take before the ingress replica makes it itself,
    within its share of each limit. snapshot_s: how often an actor writes down its buckets; from
    there it goes on after a restart.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Literal["actor", "redis"] = "actor"
    redis_url: str | None = None
    shards: Annotated[int, Field(ge=1, le=64)] = 1
    deadline_ms: Annotated[int, Field(ge=10, le=60_000)] = 250
    snapshot_s: Annotated[float, Field(ge=0.1, le=60)] = 1.0

    @model_validator(mode="after")
    def _complete(self) -> LimiterSettings:
        if (self.backend == "redis") != (self.redis_url is not None):
            raise ValueError("redis_url belongs to backend redis, and backend redis needs one")
        if self.backend == "redis" and self.shards != 1:
            raise ValueError("shards are of backend actor")
        return self


class BatchSettings(BaseModel):
    """How batches are answered.

    backend: `shared`, by the replicas that serve, behind whoever waits online; `own`, by engines
    of the batch's own, on what the cluster has free. backends: the same for single models.
    workers: how many processes a model's batches are divided among. idle_s: how long one stays
    that has nothing to do. max_in_flight: requests for text that each of them has under way.
    max_running: batches that are answered at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: BatchBackend = "shared"
    backends: dict[str, BatchBackend] = Field(default_factory=dict)
    workers: Annotated[int, Field(ge=1, le=1000)] = 1
    idle_s: Annotated[float, Field(ge=0, le=86_400)] = 60
    max_in_flight: Annotated[int, Field(ge=1, le=10_000)] = 64
    max_running: Annotated[int, Field(ge=1, le=1000)] = 4

    def backend_of(self, model: str) -> BatchBackend:
        """Return what answers a model's batches."""
        return self.backends.get(model, self.backend)


class EmbeddingJobSettings(BaseModel):
    """What jobs that are asked for over HTTP may read and write, and how they are run.

    locations: absolute paths, `s3://BUCKET/…` or `gs://BUCKET/…` below which they may; by default
    none, so that there are only uploaded files. `{account}` in one stands for the account's id.
    workers: copies of the model that a job has. max_running: jobs at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    locations: tuple[
        Annotated[str, Field(pattern=r"^(/|s3://[^/?]|gs://[^/?])[^*\[\]]*$")], ...
    ] = ()
    workers: Annotated[int, Field(ge=1, le=1000)] = 1
    max_running: Annotated[int, Field(ge=1, le=1000)] = 1


class SessionSettings(BaseModel):
    """Logins that a cookie carries.

    idle_minutes, absolute_hours: a session ends that long after its last and its first use.
    secure: `auto` marks the cookie Secure where the login came by TLS, `always` in any case.
    origins: those that may use a session: this server's own where a proxy in front replaces its
    host, and those of pages elsewhere, which ingress.cors_origins has to name too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    idle_minutes: Annotated[float, Field(ge=5, le=525_600)] = 480
    absolute_hours: Annotated[float, Field(ge=1, le=8760)] = 168
    secure: Literal["auto", "always"] = "auto"
    origins: tuple[Origin, ...] = ()


class FileSettings(BaseModel):
    """Where files are kept, and how large one may be.

    location: a directory that all ingress replicas see, or `s3://BUCKET/…`, `gs://BUCKET/…`; by
    default `files` in the state directory. max_batch_bytes: of a batch's input.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    location: Annotated[str, Field(min_length=1)] | None = None
    max_bytes: Annotated[int, Field(ge=1, le=10**12)] = 512 * 1024**2
    max_batch_bytes: Annotated[int, Field(ge=1, le=10**12)] = 200 * 1024**2

    @field_validator("location")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return value if value is None or "://" in value else str(Path(value).expanduser().resolve())


class TelemetrySettings(BaseModel):
    """What is told of requests besides metrics and logs.

    traces: where OpenTelemetry's spans go: an OTLP endpoint (`http://HOST:4318`) or a directory;
    none by default. traces_ratio: the part of the requests that is traced, where the client has not
    decided in its traceparent.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    traces: Annotated[str, Field(min_length=1)] | None = None
    traces_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01

    @field_validator("traces")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is None or value.startswith(("http://", "https://")):
            return value
        if "://" in value:
            raise ValueError("expected http://HOST:PORT, https://HOST:PORT or a directory")
        return str(Path(value).expanduser().resolve())


class Settings(BaseModel):
    """Everything an operator can set.

    state_dir: accounts, keys and usage live here.
    database_url: an SQLAlchemy async URL; by default SQLite in the state directory.
    pepper_file: the secret that key hashes depend on, the same on every node; by default `pepper`
    in the state directory.
    admin_password: of the administrator that the first start makes; by default one is made up.
    log_file: where every process appends its JSON log lines; by default each one's stderr.
    drain_s: how long a replica that is to end may take to finish what it is at.
    trusted_proxies: peers whose X-Forwarded-* headers are believed; `*` for any.
    proxy: what takes the connections: Serve's own in Python, or HAProxy, which takes far more.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    state_dir: Path = Field(default_factory=lambda: _default_state_dir())
    database_url: str | None = None
    pepper_file: Path | None = None
    admin_password: SecretStr | None = None
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_file: Path | None = None
    dashboard: bool = True
    drain_s: Annotated[float, Field(ge=0, le=86_400)] = 30.0
    trusted_proxies: tuple[str, ...] = ()
    proxy: Literal["python", "haproxy"] = "python"
    ingress: IngressSettings = IngressSettings()
    limiter: LimiterSettings = LimiterSettings()
    sessions: SessionSettings = SessionSettings()
    batches: BatchSettings = BatchSettings()
    embedding_jobs: EmbeddingJobSettings = EmbeddingJobSettings()
    files: FileSettings = FileSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    models: Annotated[tuple[ModelSpec, ...], Field(min_length=1)] = Field(
        default_factory=default_models
    )
    aliases: dict[str, str] = Field(default_factory=dict)
    tiers: dict[str, Tier] = Field(default_factory=lambda: dict(DEFAULT_TIERS))

    @field_validator("state_dir", "pepper_file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value.expanduser().resolve() if value else None

    @field_validator("trusted_proxies")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if entry != "*":
                try:
                    ip_network(entry)
                except ValueError as error:
                    raise ValueError(f"{error}; an address, a network, or '*'") from None
        return value

    @model_validator(mode="after")
    def _named(self) -> Settings:
        unknown = self.batches.backends.keys() - {spec.name for spec in self.models}
        if unknown:
            raise ValueError(f"batches.backends: no model is named {', '.join(sorted(unknown))}")
        return self

    @property
    def catalog(self) -> Catalog:
        """The models and aliases, checked against each other."""
        return Catalog(self.models, self.aliases)

    @property
    def pepper_path(self) -> Path:
        """The file of the peppers."""
        return self.pepper_file or self.state_dir / "pepper"

    @property
    def files_location(self) -> str:
        """Where the content of files is."""
        return self.files.location or str(self.state_dir / "files")

    @property
    def sqlalchemy_url(self) -> str:
        """The database, as SQLAlchemy's async engine wants it."""
        return self.database_url or f"sqlite+aiosqlite:///{self.state_dir / 'omai.db'}"


class EdgeSettings(BaseModel):
    """What Serve's proxies need to know. max_upload_bytes: of a body that uploads a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_body_bytes: int
    max_upload_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> EdgeSettings:
        """Return what these settings say."""
        return cls(
            max_body_bytes=settings.ingress.max_body_bytes,
            max_upload_bytes=settings.files.max_bytes + FORM_BYTES,
        )


def load_settings(
    config: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Read the settings; raise ConfigError naming the file, key, value and what is allowed.

    config: a YAML file; by default the one that OMAI_CONFIG names, if any.
    overrides: what the command line said; None values are left out.
    """
    environment = os.environ if environment is None else environment
    named = environment.get(CONFIG_VARIABLE)
    path = config or (Path(named) if named else None)
    return parse_settings(_read_settings(path) if path else {}, environment, overrides, path)


def parse_settings(
    values: Mapping[str, Any],
    environment: Mapping[str, str],
    overrides: Mapping[str, Any] | None = None,
    path: Path | None = None,
) -> Settings:
    """Return the settings of a file's keys and values; raises as `load_settings` does."""
    merged = dict(values)
    origins: dict[str, str] = {}
    for name, key in ENVIRONMENT.items():
        if name in environment:
            _put(merged, key, environment[name])
            origins[key] = f"{name}: "
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    merged |= given
    origins |= {key: f"{key}: " for key in given}
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_explain(error, merged, path, origins)) from None
    try:
        settings.catalog  # noqa: B018 - fails here, at start, when an alias leads nowhere
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}" if path else error.message) from None
    return settings


def edge_settings(environment: Mapping[str, str] | None = None) -> EdgeSettings:
    """Return how long bodies may be, in a process that Serve started.

    It is what OMAI_EDGE has as JSON, else what `load_settings` says.
    """
    environment = os.environ if environment is None else environment
    if EDGE_VARIABLE in environment:
        return EdgeSettings.model_validate_json(environment[EDGE_VARIABLE])
    return EdgeSettings.of(load_settings(environment=environment))


def server_access(environment: Mapping[str, str] | None = None) -> tuple[str, str]:
    """Return the address and the API key with which commands ask a server, as the SDKs do.

    Raises ConfigError where there is no key.
    """
    environment = os.environ if environment is None else environment
    key = environment.get("OMAI_API_KEY", "").strip()
    if not key:
        raise ConfigError("OMAI_API_KEY: not set; set it to a key of the account's own")
    return environment.get("OMAI_BASE_URL") or DEFAULT_BASE_URL, key


def _put(values: dict[str, Any], key: str, value: str) -> None:
    """Set a key of the settings, `limiter.redis_url` being one of `limiter`."""
    *outer, last = key.split(".")
    for name in outer:
        inner = values.get(name)
        values[name] = values = dict(inner) if isinstance(inner, dict) else {}
    values[last] = value


def _read_settings(path: Path) -> dict[str, Any]:
    """Return a file's settings. Raises ConfigError for a secret in it, which would spread."""
    values = read_yaml(path)
    variables = {key: name for name, key in ENVIRONMENT.items()}
    lines = [
        f"{path}: {key}: {what} stands in the file; "
        + (f"set {variables[key]} instead" if key in variables else "name a variable or a file")
        for key, what in secret_literals(values)
    ]
    if lines:
        raise ConfigError("\n".join(lines))
    return values


class StrictLoader(yaml.SafeLoader):
    """Refuses a key that is there twice: what it said first would have no effect."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return the keys and values. Raises yaml.constructor.ConstructorError."""
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key '{key.value}' is there twice", problem_mark=key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def yaml_problem(error: Exception) -> str:
    """Return what is wrong with a text that is no YAML, and in which line."""
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    return what if mark is None else f"{what} (line {mark.line + 1}, column {mark.column + 1})"


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file. Raises ConfigError where it has none."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), StrictLoader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {yaml_problem(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, got a {type(values).__name__}")
    return values


def _explain(
    error: ValidationError, values: Mapping[str, Any], path: Path | None, origins: Mapping[str, str]
) -> str:
    """One line a problem: where it is, what is wrong, what was given.

    A list whose entry is wrong is also reported as too short; that is left out. origins: the keys
    that are of no file, and what the line begins with then.
    """
    where = f"{path}: " if path else ""
    lines = []
    problems = error.errors(include_url=False, include_context=False)
    outer = {p["loc"][:depth] for p in problems for depth in range(len(p["loc"]))}
    known = dict(unknown_keys(values, Settings))
    for problem in problems:
        if problem["loc"] in outer:
            continue
        key = ".".join(str(part) for part in problem["loc"]) or "settings"
        given = problem["input"] if isinstance(problem["input"], str | int | float) else None
        shown = "" if given is None else f" (got {given!r})"
        begin = origins.get(key, f"{where}{key}: ")
        of_model = _model_at(problem["loc"], values)
        said, remedy = problem["msg"].removeprefix("Value error, "), ""
        if problem["type"] == "missing":
            remedy = "; add it"
        elif problem["type"] == "extra_forbidden":
            near = meant(str(problem["loc"][-1]), known.get(key, ()))
            said = "no such key"
            remedy = f"; did you mean '{near}'?" if near else "; correct its name or remove it"
        lines.append(f"{begin}{of_model}{said}{shown}{remedy}")
    return "\n".join(lines)


def _model_at(loc: tuple[int | str, ...], values: Mapping[str, Any]) -> str:
    """Return whose entry in the list of models a problem is in, as `model 'NAME': `."""
    match loc:
        case ("models", int(place), *_):
            models = values["models"]
            entry = models[place] if isinstance(models, list | tuple) else None
            name = entry.get("name") if isinstance(entry, dict) else None
            return f"model {name!r}: " if isinstance(name, str) else ""
    return ""


def _default_state_dir() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base) / "omai-ray"

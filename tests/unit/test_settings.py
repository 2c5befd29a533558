from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from omai_ray.errors import ConfigError
from omai_ray.settings import (
    DEFAULT_TIERS,
    EDGE_VARIABLE,
    FORM_BYTES,
    EdgeSettings,
    edge_settings,
    load_settings,
)

MODEL = "models: [{name: m, task: chat, source: /x}]\n"


def load(tmp_path: Path, text: str, **environment: str) -> Any:
    """Return the settings of a YAML text and an environment."""
    path = tmp_path / "omai.yaml"
    path.write_text(text, encoding="utf-8")
    return load_settings(path, environment=environment)


def test_defaults_are_the_builtin_models_and_the_references_tiers() -> None:
    """Nothing need be configured."""
    settings = load_settings(environment={})
    assert ["omai-gpt-4", "text-embedding-ada-002"] == [m.name for m in settings.models]
    limits = {
        name: (tier.requests_per_minute, tier.tokens_per_minute)
        for name, tier in settings.tiers.items()
    }
    assert limits == {
        "basic": (60, 40_000),
        "pro": (3_000, 2_000_000),
        "enterprise": (None, None),
    }
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.tiers == DEFAULT_TIERS


def test_the_command_line_wins_over_the_environment_over_the_file(tmp_path: Path) -> None:
    """And the file over the default."""
    path = tmp_path / "omai.yaml"
    path.write_text("port: 1\nhost: file\nlog_level: ERROR\n", encoding="utf-8")
    environment = {"OMAI_PORT": "2", "OMAI_HOST": "environment"}
    settings = load_settings(path, {"port": 3, "host": None}, environment)
    assert settings.port == 3
    assert settings.host == "environment"
    assert settings.log_level == "ERROR"


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    """A file given outright wins."""
    for name, port in (("a.yaml", 1), ("b.yaml", 2)):
        (tmp_path / name).write_text(f"port: {port}\n", encoding="utf-8")
    environment = {"OMAI_CONFIG": str(tmp_path / "a.yaml")}
    assert load_settings(environment=environment).port == 1
    assert load_settings(tmp_path / "b.yaml", environment=environment).port == 2


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    """Comments alone, too."""
    assert load(tmp_path, "# nothing\n").port == 8000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot: 8000", "prot: no such key .got 8000.; did you mean .port."),
        ("ingress: {replica: 2}", "ingress.replica: no such key .got 2.; did you mean .replicas"),
        ("files: {place: x}", "files.place: no such key"),
        ("files: {max_bytes: 0}", "files.max_bytes: .*greater than or equal to 1 .got 0."),
        ("tiers: {a: {requests_per_minute: 1, tokens_per_minute: 1, storage_bytes: 0}}", "a.stor"),
        (
            "models: [{name: m, task: chat, source: /x, contxt: 8}]",
            "contxt: model .m.: no such key .*mean .context.",
        ),
        ("port: 70000", "port: .*65535 .got 70000."),
        ("port: many", "port: .*integer.* .got 'many'."),
        ("log_level: LOUD", "log_level: .*'DEBUG'.* .got 'LOUD'."),
        ("models: []", "models: .*at least 1"),
        (MODEL + "aliases: {a: nothing}", "'a' points at 'nothing'"),
        (MODEL + "aliases: {m: m}", "'m' is already the name"),
        ("tiers: {free: {requests_per_minute: 0, tokens_per_minute: 5}}", "free.requests_per_mi"),
        ("tiers: {free: {requests_per_minute: -1, tokens_per_minute: 5}}", "free.requests_per_m"),
        ("tiers: {free: {requests_per_minute: 5}}", "free.tokens_per_minute: Field required"),
        ("tiers: {free: {requests_per_minute: 5, tokens_per_minute: .inf}}", "free.tokens_per_m"),
        ("tiers: {free: {requests_per_minute: 1.5, tokens_per_minute: 5}}", "free.requests_per_m"),
        ("tiers: {free: {requests_per_minute: 5, tokens_per_minute: 9e15}}", "free.tokens_per_m"),
        (
            "tiers: {a: {requests_per_minute: 5, tokens_per_minute: 5, concurrent_requests: 0}}",
            "a.concurrent_requests: ",
        ),
        ("limiter: {backend: redis}", "limiter: .*redis_url belongs to backend redis"),
        ("limiter: {redis_url: 'redis://x'}", "limiter: .*redis_url belongs to backend redis"),
        ("limiter: {backend: redis, redis_url: 'redis://x', shards: 2}", "limiter: .*shards"),
        ("limiter: {backend: memory}", "limiter.backend: .*'actor' or 'redis'"),
        ("sessions: {origins: ['console.example']}", "sessions.origins.0: "),
        ("sessions: {idle_minutes: 1}", "sessions.idle_minutes: .*5"),
        ("models: [{name: m, task: chat, source: /x, price: {input: -1}}]", "price.input: "),
        ("ingress: {max_body_bytes: 10}", "ingress.max_body_bytes: .*1024"),
        ("ingress: {replicas: 0}", "ingress.replicas: .*1"),
        ("trusted_proxies: [10.0.0.1/8]", "trusted_proxies: .*10.0.0.1/8 has host bits set; an ad"),
        ("trusted_proxies: [10.0.0.0/8, lb]", "trusted_proxies: .*'lb' does not .*or '\\*'"),
        (MODEL + "batches: {backends: {n: own}}", "batches.backends: no model is named n"),
        ("1: 2", "1: "),
        ("- port", "expected keys and values, got a list"),
        ("port: [", r"not YAML: .*\(line 1, column 8\)"),
        ("port: 1\nhost: a\nport: 2", r"the key 'port' is there twice \(line 3, column 1\)"),
        ("port: !!python/object:os.system x", "not YAML"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    """One line a problem: the file, the key, what is wrong, what was given."""
    with pytest.raises(ConfigError, match=words) as caught:
        load(tmp_path, text)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("environment", "overrides", "words"),
    [
        ({"OMAI_PORT": "web"}, {}, r"^OMAI_PORT: .*integer.* \(got 'web'\)$"),
        ({"OMAI_PORT": "web"}, {"port": 70000}, r"^port: .*65535 \(got 70000\)$"),
    ],
)
def test_what_is_of_no_file_is_not_blamed_on_it(
    tmp_path: Path, environment: dict[str, str], overrides: dict[str, int], words: str
) -> None:
    """The variable is named, or the key that the command line gave."""
    path = tmp_path / "a.yaml"
    path.write_text("host: 127.0.0.1")
    with pytest.raises(ConfigError, match=words):
        load_settings(path, overrides, environment)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """With the system's reason; so is one that is no text."""
    with pytest.raises(ConfigError, match=r"nothing\.yaml: No such file"):
        load_settings(tmp_path / "nothing.yaml", environment={})
    with pytest.raises(ConfigError, match="Is a directory"):
        load_settings(tmp_path, environment={})
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match=r"x\.yaml: not YAML"):
        load_settings(tmp_path / "x.yaml", environment={})


def test_two_problems_are_two_lines(tmp_path: Path) -> None:
    """Nobody has to fix them one start at a time."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "prot: 1\nport: 70000\n")
    assert len(caught.value.message.splitlines()) == 2


def test_an_environment_value_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """An empty one too."""
    for value in ("", "many", "-1"):
        with pytest.raises(ConfigError, match=r"^OMAI_PORT: "):
            load(tmp_path, "", OMAI_PORT=value)


def test_the_state_directory_is_absolute_and_holds_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`~` is expanded; another database wins."""
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = load_settings(None, {"state_dir": "~/state"}, {})
    assert tmp_path / "state" == settings.state_dir
    assert f"sqlite+aiosqlite:///{tmp_path}/state/omai.db" == settings.sqlalchemy_url
    url = "postgresql+asyncpg://db/omai"
    assert url == load_settings(None, {"database_url": url}, {}).sqlalchemy_url


def test_settings_cannot_be_changed() -> None:
    """What was checked at start stays so."""
    with pytest.raises(ValueError, match="frozen"):
        load_settings(environment={}).port = 1


def test_files_are_in_the_state_directory_unless_said_otherwise(tmp_path: Path) -> None:
    """A directory is made absolute, a URI stays what it is."""
    assert str(tmp_path / "files") == load(tmp_path, f"state_dir: {tmp_path}").files_location
    assert str(Path.cwd() / "x") == load(tmp_path, "files: {location: x}").files_location
    uri = "s3://bucket/files?region=eu-west-1"
    assert uri == load(tmp_path, f"files: {{location: '{uri}'}}").files_location
    assert uri == load(tmp_path, "files: {}", OMAI_FILES_LOCATION=uri).files_location


def test_the_edge_knows_how_long_bodies_may_be(tmp_path: Path) -> None:
    """From its variable as from the settings themselves."""
    text = "ingress: {max_body_bytes: 2048}\nfiles: {max_bytes: 4096}\n"
    edge = EdgeSettings.of(load(tmp_path, text))
    assert (2048, 4096 + FORM_BYTES) == (edge.max_body_bytes, edge.max_upload_bytes)
    assert edge == edge_settings({EDGE_VARIABLE: edge.model_dump_json()})
    assert edge == edge_settings({"OMAI_CONFIG": str(tmp_path / "omai.yaml")})

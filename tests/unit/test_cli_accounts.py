"""Accounts, users, keys, usage and the audit log by command, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import io
import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from omai_ray.cli import main
from omai_ray.identity import keys
from omai_ray.identity.first_administrator import make_first_administrator
from omai_ray.ledger import UsageLedger, UsageRecord
from omai_ray.settings import Settings, load_settings
from omai_ray.store import Store
from omai_ray.store.tables import REVISIONS

NOVEMBER_S = 1_793_491_200.0  # 2026-11-01T00:00:00Z
Run = Callable[..., str]
ROW = Callable[..., list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database_url: str) -> None:
    """Keep the caller's own settings and state out of it."""
    monkeypatch.delenv("OMAI_CONFIG", raising=False)
    monkeypatch.setenv("OMAI_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("OMAI_DATABASE_URL", database_url)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return what runs a command that succeeds, and gives what it prints."""

    def run(*arguments: str, stdin: str = "") -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        status = main(list(arguments))
        captured = capsys.readouterr()
        assert (0, "") == (status, captured.err)
        return captured.out

    return run


@pytest.fixture
def rows(run: Run) -> ROW:
    """Return what runs a command that prints JSON."""

    def rows(*arguments: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(run(*arguments, "--json"))
        return found

    return rows


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that fails, and return its one line."""
    assert main(list(arguments)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line.removeprefix("omai-ray: ")


def test_an_account_is_made_shown_and_changed(run: Run, rows: ROW) -> None:
    """What is left out stays; 'none' and 'all' take a bound away."""
    (made,) = rows("accounts", "create", "lab", "--tier", "basic", "--monthly-tokens", "500",
                   "--models", "omai-gpt-4, text-embedding-ada-002")  # fmt: skip
    assert (500, ["omai-gpt-4", "text-embedding-ada-002"]) == (
        made["monthly_tokens"],
        made["models"],
    )
    (changed,) = rows("accounts", "update", "lab", "--tier", "pro", "--status", "suspended")
    assert changed == {**made, "tier": "pro", "status": "suspended"}
    (freed,) = rows("accounts", "update", made["id"], "--monthly-tokens", "none", "--models", "all")
    assert freed == {**changed, "monthly_tokens": None, "models": None}
    assert [freed] == rows("accounts", "list")
    assert [{**freed, "tokens_this_month": 0}] == rows("accounts", "show", "lab")
    table = run("accounts", "list")
    assert "suspended" in table
    assert "None" not in table


def test_users_are_made_and_changed(run: Run, rows: ROW) -> None:
    """A password comes from standard input, and is nowhere in what is printed."""
    secret = "correct horse"
    run("accounts", "create", "lab", "--tier", "basic")
    printed = run("users", "create", "ada", "--account", "lab", "--password-stdin",
                  stdin=f"{secret}\n")  # fmt: skip
    assert "created user ada, member of the account lab (basic)" in printed
    printed += run("users", "create", "bob", "--tier", "pro", "--role", "admin",
                   "--password-stdin", stdin=secret)  # fmt: skip
    printed += run("users", "role", "ada", "owner")
    printed += run("users", "password", "ada", "--password-stdin", stdin="battery staple\n")
    assert secret not in printed
    assert "battery" not in printed
    assert [("ada", "lab", "owner"), ("bob", "bob", "admin")] == [
        (row["name"], row["account"], row["role"]) for row in rows("users", "list")
    ]
    assert ["ada"] == [row["name"] for row in rows("users", "list", "--account", "lab")]
    assert [] == rows("users", "sessions", "ada")
    assert "ended 0 sessions of ada" in run("users", "logout", "ada")
    run("users", "delete", "ada")
    assert ["bob"] == [row["name"] for row in rows("users", "list")]


def test_a_key_is_changed_rotated_and_moved_to_a_new_pepper(run: Run, rows: ROW) -> None:
    """Each shown once; the list tells what is left of the old one."""
    first = run("keys", "create", "--tier", "pro", "--account", "lab", "--quiet", "--expires-in",
                "90d", "--requests-per-minute", "5").strip()  # fmt: skip
    parsed = keys.parse(first)
    assert parsed is not None
    (row,) = rows("keys", "update", parsed.key_id, "--name", "server", "--tokens-per-minute", "9")
    assert ("server", 5, 9) == (
        row["name"],
        row["requests_per_minute"],
        row["tokens_per_minute"],
    )
    assert row["expires"]
    (row,) = rows("keys", "update", parsed.key_id, "--expires-in", "none")
    assert not row["expires"]
    assert "has version 2" in run("keys", "new-pepper", "--after", "0s")
    second = keys.parse(run("keys", "rotate", parsed.key_id, "--grace", "1h", "--quiet").strip())
    assert second is not None
    listed = {row["id"]: row for row in rows("keys", "list", "--account", "lab")}
    assert (1, second.key_id) == (
        listed[parsed.key_id]["pepper"],
        listed[parsed.key_id]["replaced_by"],
    )
    assert (2, "server") == (listed[second.key_id]["pepper"], listed[second.key_id]["name"])


def test_the_audit_log_names_the_systems_user(rows: ROW) -> None:
    """Newest first, as far as is asked for."""
    rows("accounts", "create", "lab", "--tier", "basic")
    rows("accounts", "update", "lab", "--tier", "pro")
    entries = rows("audit")
    assert ["account.update", "account.create"] == [entry["action"] for entry in entries]
    assert all(entry["actor"].startswith("cli:") for entry in entries)
    assert entries[0]["details"] == {"tier": "pro"}
    assert entries[:1] == rows("audit", "--limit", "1")
    assert entries[1:] == rows("audit", "--action", "account.create", "--account", "lab")


def record_usage(*accounts: str) -> None:
    """Record one request of each account, on 2026-11-01."""

    async def record() -> None:
        store = await Store.open(load_settings().sqlalchemy_url)
        ledger = UsageLedger(store)
        for number, owner in enumerate(accounts):
            usage = UsageRecord(f"r{number}", owner, "k", "m", "/", 200, 3, 4, 1, NOVEMBER_S, 5)
            await ledger.record(replace(usage, cost=0.5))
        await store.close()

    asyncio.run(record())


def test_usage_is_summed_as_it_is_asked_for(rows: ROW) -> None:
    """Of an account or all, within a span of days."""
    (account,) = rows("accounts", "create", "lab", "--tier", "basic")
    record_usage(account["id"], "acct_gone")
    own = {"requests": 1, "prompt_tokens": 3, "completion_tokens": 4, "cached_tokens": 1}
    assert [{"model": "m", **own, "cost": 0.5}] == rows("usage", "--account", "lab")
    assert [2] == [row["requests"] for row in rows("usage", "--since", "2026-11-01")]
    assert [] == rows("usage", "--until", "2026-11-01")
    by_account = rows("usage", "--by", "day,account,key")
    assert {("2026-11-01T00:00:00+00:00", "k")} == {(r["day"], r["key"]) for r in by_account}
    assert {"lab", "acct_gone"} == {row["account"] for row in by_account}


def test_usage_is_exported_to_parquet(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every record with all that it has; a place that cannot be written is one line."""
    record_usage("acct_1", "acct_2", "acct_1")
    path = tmp_path / "usage.parquet"
    assert "3 records written" in run("usage", "--parquet", str(path), "--since", "2026-11-01")
    table = pq.read_table(path)
    assert ["acct_1", "acct_2", "acct_1"] == table["account_id"].to_pylist()
    assert [0.5] * 3 == table["cost"].to_pylist()
    assert [None] * 3 == table["first_token_ms"].to_pylist()
    assert [3] * 3 == table["prompt_tokens"].to_pylist()
    assert ["usage.parquet"] == [p.name for p in tmp_path.iterdir() if "usage" in p.name]
    nowhere = tmp_path / "no" / "usage.parquet"
    assert f"--parquet {nowhere}: No such file" in fails(capsys, "usage", "--parquet", str(nowhere))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["accounts", "create", "lab", "--tier", "gold"], "no tier 'gold'"),
        (["accounts", "create", "a b", "--tier", "basic"], "Invalid 'name'"),
        (["accounts", "update", "nobody", "--tier", "pro"], "no account 'nobody'"),
        (["users", "create", "ada", "--password-stdin"], "give --tier"),
        (["users", "delete", "nobody"], "no user 'nobody'"),
        (["keys", "rotate", "nothing"], "no key 'nothing'"),
        (["keys", "rotate", "x", "--grace", "91d"], "Invalid 'grace_seconds'"),
        (["keys", "create", "--tier", "pro", "--models", "gpt-9"], "no model 'gpt-9'"),
        (["audit", "--account", "nobody"], "no account 'nobody'"),
        (["usage", "--account", "nobody"], "no account 'nobody'"),
    ],
)
def test_what_cannot_be_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    """On stderr, with status 1."""
    assert main(["db", "upgrade"]) == 0
    capsys.readouterr()
    assert words in fails(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["keys", "create", "--expires-in", "soon"], "expected such as 90s"),
        (["usage", "--since", "yesterday"], "expected such as 2026-11-24"),
        (["usage", "--by", "hour,day"], "expected some of hour, day"),
        (["usage", "--by", "color"], "expected some of hour, day"),
        (["accounts", "update", "x", "--monthly-tokens", "many"], "expected a number or 'none'"),
    ],
)
def test_an_option_that_cannot_be_read_is_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    """With what it should look like."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_the_first_start_makes_an_administrator_once(rows: ROW, run: Run) -> None:
    """Their password is made up and told once, or comes from the environment."""
    settings = load_settings()
    password = make_first_administrator(settings)
    assert password is not None
    assert len(password) == 20
    assert make_first_administrator(settings) is None
    assert [("admin", "admin")] == [(r["name"], r["role"]) for r in rows("users", "list")]
    assert ["enterprise"] == [row["tier"] for row in rows("accounts", "list")]


def test_a_given_administrators_password_is_not_told(
    monkeypatch: pytest.MonkeyPatch, rows: ROW
) -> None:
    """Nor shown in what settings print of themselves; one that is too short is refused by name."""
    monkeypatch.setenv("OMAI_ADMIN_PASSWORD", "short")
    with pytest.raises(Exception, match="Invalid 'admin_password': expected 8"):
        make_first_administrator(load_settings())
    monkeypatch.setenv("OMAI_ADMIN_PASSWORD", "correct horse")
    settings: Settings = load_settings()
    assert "correct" not in repr(settings)
    assert make_first_administrator(settings) is None
    assert ["admin"] == [row["name"] for row in rows("users", "list")]


def test_the_schema_is_shown_and_upgraded(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An older database ends every command with one line; the upgrade mends it."""
    newest = REVISIONS[-1]
    run("db", "upgrade")
    assert f"schema {newest}; this omai-ray needs {newest}" in run("db", "status")
    assert f"schema {newest}: nothing to do" in run("db", "upgrade")
    path = tmp_path / "new" / "omai.db"
    monkeypatch.setenv("OMAI_DATABASE_URL", f"sqlite:///{path}")
    assert "schema none yet" in run("db", "status")
    assert not path.exists()
    assert f"schema none -> {newest}" in run("db", "upgrade")
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '0001'")
    connection.commit()
    connection.close()
    assert "run 'omai-ray db upgrade'" in fails(capsys, "keys", "list")


def test_a_name_that_is_taken_does_not_keep_the_server_from_starting(
    run: Run, rows: ROW, capsys: pytest.CaptureFixture[str]
) -> None:
    """An account of that name gets the administrator; a user of that name is left alone."""
    run("accounts", "create", "admin", "--tier", "basic")
    assert make_first_administrator(load_settings()) is not None
    assert [("admin", "admin", "admin")] == [
        (row["name"], row["account"], row["role"]) for row in rows("users", "list")
    ]


def test_a_user_called_admin_is_no_administrator(run: Run, rows: ROW) -> None:
    """Nor made one."""
    run("users", "create", "admin", "--tier", "basic", "--password-stdin", stdin="correct horse")
    assert make_first_administrator(load_settings()) is None
    assert ["owner"] == [row["role"] for row in rows("users", "list")]


def test_a_key_that_cannot_be_leaves_no_account_behind(
    rows: ROW, capsys: pytest.CaptureFixture[str]
) -> None:
    """All or nothing."""
    fails(capsys, "keys", "create", "--tier", "pro", "--models", "gpt-9")
    fails(capsys, "keys", "create", "--tier", "pro", "--expires-in", "999999999d")
    assert [] == rows("accounts", "list")


def test_a_password_that_is_no_text_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that are no UTF-8 come in as half surrogates."""
    monkeypatch.setattr("sys.stdin", io.StringIO("correct \udcff horse\n"))
    assert "Invalid 'password'" in fails(
        capsys, "users", "create", "ada", "--tier", "basic", "--password-stdin"
    )

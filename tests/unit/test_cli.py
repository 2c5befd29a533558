from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from omai_ray.cli import main
from omai_ray.identity import keys

ROOT = Path(__file__).resolve().parents[2]
# What the installed `omai-ray` script does.
_RUN = "import sys; from omai_ray.cli import main; sys.exit(main())"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the caller's own settings and state out of it."""
    for name in ("OMAI_CONFIG", "OMAI_STATE_DIR", "OMAI_DATABASE_URL", "OMAI_PORT", "OMAI_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMAI_STATE_DIR", str(tmp_path / "state"))


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that fails, and return its one line."""
    assert main(list(arguments)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("omai-ray: ")
    return line.removeprefix("omai-ray: ")


def create_key(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Create a key and return it."""
    assert main(["keys", "create", "--quiet", *arguments]) == 0
    return capsys.readouterr().out.strip()


def test_a_quiet_key_is_printed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """One line that a script can take; nothing on stderr."""
    assert main(["keys", "create", "--tier", "basic", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.endswith("\n")
    assert keys.parse(captured.out.removesuffix("\n")) is not None


def test_a_key_is_shown_once_with_its_account(capsys: pytest.CaptureFixture[str]) -> None:
    """And what to do about it."""
    assert main(["keys", "create", "--tier", "pro", "--account", "lab"]) == 0
    text = capsys.readouterr().out
    assert "account  lab" in text
    assert "omai-sk-" in text
    assert "cannot be shown again" in text


def test_keys_are_listed_as_json_without_their_secrets(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every field of the table, and no more of the key than its end."""
    key = create_key(capsys, "--tier", "basic", "--account", "lab", "--name", "[/red] laptop")
    assert main(["keys", "list", "--json"]) == 0
    text = capsys.readouterr().out
    (row,) = json.loads(text)
    parsed = keys.parse(key)
    assert parsed is not None
    assert parsed.secret not in text
    assert (row["id"], row["last_four"]) == (parsed.key_id, key[-4:])
    assert (row["account"], row["tier"], row["name"]) == ("lab", "basic", "[/red] laptop")
    assert row["revoked"] is None
    assert row["created"].endswith("+00:00")


def test_a_table_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """What looks like markup is none."""
    create_key(capsys, "--tier", "basic", "--name", "[/red] [bold]x")
    assert main(["keys", "list"]) == 0
    assert "[/red] [bold]x" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        ["keys", "list"],
        ["keys", "new-pepper"],
        ["accounts", "show", "lab"],
        ["users", "list"],
        ["usage"],
        ["audit"],
    ],
)
def test_what_reads_makes_no_database(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str]
) -> None:
    """A mistaken directory would seem an empty platform."""
    line = fails(capsys, *command, "--state-dir", str(tmp_path / "mistaken"))
    assert "no database in" in line
    assert not (tmp_path / "mistaken").exists()


def test_sqlites_file_is_looked_for_where_the_url_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at its own place."""
    monkeypatch.setenv("OMAI_DATABASE_URL", f"sqlite:///{tmp_path / 'other.db'}")
    assert "no database at `database_url`" in fails(capsys, "keys", "list")
    assert not (tmp_path / "other.db").exists()


def test_a_table_of_keys_tells_which_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In few columns; an expired and a revoked one do not."""
    for expiry in ("90d", "1d", "none"):
        main(["keys", "create", "--account", "a", "--tier", "pro", "--expires-in", expiry])
    capsys.readouterr()
    tomorrow = time.time() + 86_401
    monkeypatch.setattr("omai_ray.cli.keys.time.time", lambda: tomorrow)
    main(["keys", "list", "--json"])
    works = {row["id"]: row["status"] for row in json.loads(capsys.readouterr().out)}
    assert sorted(works.values()) == ["active", "active", "expired"]
    gone = next(key for key, status in works.items() if status == "active")
    main(["keys", "revoke", gone])
    capsys.readouterr()
    main(["keys", "list"])
    table = capsys.readouterr().out.splitlines()
    assert any(gone in line and "revoked" in line for line in table)
    main(["accounts", "update", "a", "--status", "suspended"])
    capsys.readouterr()
    main(["keys", "list"])
    assert "suspended" in capsys.readouterr().out
    assert max(map(len, table)) < 160


def test_a_key_is_revoked_by_its_id(capsys: pytest.CaptureFixture[str]) -> None:
    """And the list says when."""
    parsed = keys.parse(create_key(capsys, "--tier", "basic"))
    assert parsed is not None
    assert main(["keys", "revoke", parsed.key_id]) == 0
    capsys.readouterr()
    main(["keys", "list", "--json"])
    assert json.loads(capsys.readouterr().out)[0]["revoked"]


def test_a_second_key_of_an_account_needs_no_tier(capsys: pytest.CaptureFixture[str]) -> None:
    """Another tier than the account's is refused."""
    create_key(capsys, "--tier", "pro", "--account", "lab")
    create_key(capsys, "--account", "lab")
    line = fails(capsys, "keys", "create", "--account", "lab", "--tier", "basic")
    assert "account 'lab' is of tier 'pro', not 'basic'" in line


def test_impossible_keys_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown tier, no tier, unknown account, unknown key."""
    line = fails(capsys, "keys", "create", "--tier", "gold")
    assert "there is no tier 'gold' (there are: basic, pro, enterprise)" in line
    assert "--tier" in fails(capsys, "keys", "create")
    assert "no account 'lab'" in fails(capsys, "keys", "create", "--account", "lab")
    assert "no key 'xyz'" in fails(capsys, "keys", "revoke", "xyz")


def test_a_whole_key_that_is_not_there_is_not_repeated(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A secret pasted by mistake stays out of terminals and logs."""
    _, key = keys.generate()
    assert key not in fails(capsys, "keys", "revoke", key)


def test_users_are_created_with_a_password_from_stdin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The password is nowhere in what is printed."""
    monkeypatch.setattr("sys.stdin", io.StringIO("correct horse\n"))
    assert main(["users", "create", "ann", "--tier", "basic", "--password-stdin"]) == 0
    assert "correct horse" not in capsys.readouterr().out
    assert main(["users", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["role"]) == ("ann", "owner")


@pytest.mark.parametrize("password", ["", "short", "x" * 2000])
def test_a_password_that_cannot_be_is_refused_unseen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    """The error has its length and the limits."""
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{password}\n"))
    line = fails(capsys, "users", "create", "ann", "--tier", "basic", "--password-stdin")
    assert f"got {len(password)}" in line
    assert not password or password not in line


def test_a_password_is_typed_twice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slip of the hand changes nothing."""
    typed = iter(["correct horse", "correct house", "correct horse", "correct horse"])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(typed))
    assert "differ" in fails(capsys, "users", "create", "ann", "--tier", "basic")
    assert main(["users", "create", "ann", "--tier", "basic"]) == 0


def test_no_password_at_all_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody can be asked for one."""

    def closed(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("getpass.getpass", closed)
    assert "--password-stdin" in fails(capsys, "users", "create", "ann", "--tier", "basic")


def test_a_user_is_created_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is told that there is one."""
    for _ in range(2):
        monkeypatch.setattr("sys.stdin", io.StringIO("correct horse\n"))
        status = main(["users", "create", "ann", "--tier", "basic", "--password-stdin"])
    assert status == 1
    assert "already exists" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["keys", "list"], ["users", "list"], ["models"]])
def test_a_bad_configuration_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str]
) -> None:
    """With file and key, for every command."""
    path = tmp_path / "omai.yaml"
    path.write_text("prot: 8000\n", encoding="utf-8")
    assert f"{path}: prot: " in fails(capsys, *command, "--config", str(path))
    assert "No such file" in fails(capsys, *command, "--config", str(tmp_path / "nothing"))


def test_a_state_directory_that_cannot_be_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A file in its place: the path and the system's reason."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    line = fails(capsys, "keys", "list", "--state-dir", str(tmp_path / "file"))
    assert str(tmp_path / "file") in line
    line = fails(capsys, "keys", "list", "--state-dir", str(tmp_path / "file" / "below"))
    assert str(tmp_path / "file") in line


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "sqlite://"])
def test_a_database_that_cannot_be_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """The error names the setting."""
    monkeypatch.setenv("OMAI_DATABASE_URL", url)
    assert "database_url" in fails(capsys, "keys", "list")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--alias", "x"], "--alias: expected NAME=MODEL, got 'x'"),
        (["--alias", "x=nothing"], "'x' points at 'nothing'"),
        (["--port", "70000"], "port: "),
        (["--chat-model", "/nowhere"], "no directory /nowhere"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    """Before anything is started."""
    assert words in fails(capsys, "serve", *arguments)


def test_models_are_listed_with_what_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As a table and as JSON."""
    path = tmp_path / "omai.yaml"
    path.write_text(
        f"models:\n- {{name: a, task: chat, source: {tmp_path}}}\n"
        "- {name: b, task: embedding, source: /nowhere}\naliases: {c: a}\n",
        encoding="utf-8",
    )
    assert main(["models", "--json", "--config", str(path)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert ["yes", "no: model 'b': no directory /nowhere"] == [r["available"] for r in rows]
    assert ["c", ""] == [row["aliases"] for row in rows]
    assert main(["models", "--config", str(path)]) == 0
    assert "no directory /nowhere" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["keys"], ["nonsense"], ["serve", "--port", "x"]])
def test_a_misspelt_command_is_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """With the usage."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: omai-ray" in capsys.readouterr().err


def test_what_a_command_does_not_know_is_told_with_its_own_usage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Words too many are most often a pattern that the shell has expanded."""
    for words, hint in (
        (["a.parquet", "b.parquet", "out"], "must be quoted"),
        (["--fast"], "--fast"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["embed", "in", "out", "--column", "text", *words])
        assert caught.value.code == 2
        told = capsys.readouterr().err
        assert "usage: omai-ray embed" in told
        assert hint in told
    with pytest.raises(SystemExit):
        main(["serve", "settings.yaml"])
    assert capsys.readouterr().err.endswith("unrecognized arguments: settings.yaml\n")


def test_the_command_itself_leaves_no_traceback(tmp_path: Path) -> None:
    """As installed: status 1, one line, stdout empty."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN, "keys", "list", "--config", str(tmp_path / "no")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1


def test_an_interruption_while_commands_load_is_a_status() -> None:
    """As a later one, and without a traceback: what loads them is inside the guard."""
    script = """
import sys
from omai_ray import cli
assert "omai_ray.cli.serve" not in sys.modules
class Interrupted:
    def find_spec(self, name, *_):
        if name == "omai_ray.cli.serve":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
sys.exit(cli.main([]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (130, "")

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from omai_ray.cli import main
from tests.programs import require_program

# What each shell offers for a line, one to a line of output.
_BASH = """
source "$1"
COMP_WORDS=($2) COMP_CWORD=$(($(wc -w <<< "$2") - 1))
"$(complete -p omai-ray | sed 's/.* -F \\([^ ]*\\).*/\\1/')"
printf '%s\\n' "${COMPREPLY[@]}"
"""
_FISH = """
source $argv[1]
complete --do-complete $argv[2]
"""
# zsh completes at a terminal only: the words that would be offered are caught on their way there.
_ZSH = """
autoload -Uz compinit && compinit -u -D
eval "$(<$1)"
_describe() { for listed in "${@[2,-1]}"; do
  [[ $listed == -* ]] || print -l -- ${${(P)listed}%%:*}; done }
print -- $_comps[omai-ray]
_shtab_omai_ray_commands
"""


def script(shell: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Write down what the command prints for a shell."""
    assert main(["completion", shell]) == 0
    path = folder / f"completion.{shell}"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    return path


def offered(shell: str, program: str, *arguments: str, folder: Path) -> set[str]:
    """Run a shell's program; return the first word of each line that it prints."""
    require_program(shell, package=shell)
    name = [] if shell == "fish" else [shell]
    done = subprocess.run(
        [shell, "-c", program, *name, *arguments],
        capture_output=True, text=True, check=True, cwd=folder, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    return {line.split()[0] for line in done.stdout.splitlines() if line.strip()}


@pytest.mark.parametrize(("shell", "program"), [("bash", _BASH), ("fish", _FISH)])
def test_commands_options_and_files_are_completed(
    shell: str, program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As far as they are typed, in commands of commands too."""
    path = str(script(shell, tmp_path, capsys))
    assert offered(shell, program, path, "omai-ray do", folder=tmp_path) == {"doctor"}
    keys = offered(shell, program, path, "omai-ray keys r", folder=tmp_path)
    assert keys == {"revoke", "rotate"}
    option = offered(shell, program, path, "omai-ray serve --conf", folder=tmp_path)
    assert option == {"--config"}


def test_zsh_knows_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The script registers itself, and lists them."""
    path = str(script("zsh", tmp_path, capsys))
    words = offered("zsh", _ZSH, path, folder=tmp_path)
    assert {"_shtab_omai_ray", "doctor", "serve", "embed"} <= words


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The ones that there are, are named."""
    with pytest.raises(SystemExit, match="2"):
        main(["completion", "tcsh"])
    assert "choose from bash, zsh, fish" in capsys.readouterr().err.replace("'", "")

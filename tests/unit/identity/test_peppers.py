from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from omai_ray.errors import ConfigError
from omai_ray.identity.peppers import Peppers, add_version
from omai_ray.store import Store


def test_a_new_pepper_is_its_owners_alone_and_stays(tmp_path: Path) -> None:
    """Mode 0600 in a directory of 0700; made once."""
    state = tmp_path / "a" / "state"
    first = Peppers.load(state / "pepper")

    assert (1, 32) == (first.version, len(first.current))
    assert first.current == Peppers.load(state / "pepper").current
    assert 0o600 == stat.S_IMODE((state / "pepper").stat().st_mode)
    assert 0o700 == stat.S_IMODE(state.stat().st_mode)
    assert ["pepper"] == [path.name for path in state.iterdir()]


def test_all_who_start_at_once_get_the_same_pepper(tmp_path: Path) -> None:
    """Another one would make the keys of the first useless."""
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(Peppers.load, [tmp_path / "pepper"] * 32))

    assert 1 == len({peppers.current for peppers in loaded})
    assert ["pepper"] == [path.name for path in tmp_path.iterdir()]


def test_the_highest_version_makes_new_keys(tmp_path: Path) -> None:
    """Older ones remain for the keys that they made."""
    (tmp_path / "pepper").write_text(f"1 {'aa' * 32}\n2 {'bb' * 32}\n")
    peppers = Peppers.load(tmp_path / "pepper")

    assert (2, b"\xbb" * 32) == (peppers.version, peppers.current)
    assert b"\xaa" * 32 == peppers.get(1)
    assert peppers.get(3) is None


@pytest.mark.parametrize("content", ["", "secret", "1 zz", "x aa", "1 aabb", "1 a\n\xff"])
def test_an_unusable_file_is_a_configuration_error(tmp_path: Path, content: str) -> None:
    """It is never replaced, and never shown."""
    (tmp_path / "pepper").write_text(content, encoding="latin-1")

    with pytest.raises(ConfigError, match="pepper"):
        Peppers.load(tmp_path / "pepper")
    assert content == (tmp_path / "pepper").read_text(encoding="latin-1")


def test_an_unreadable_place_is_a_configuration_error(tmp_path: Path) -> None:
    """It names the path."""
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="file"):
        Peppers.load(tmp_path / "file" / "pepper")


def test_a_new_version_leaves_the_old_ones(tmp_path: Path) -> None:
    """The file stays its owner's alone, and no draft is left behind."""
    path = tmp_path / "pepper"
    first = Peppers.load(path)
    assert 2 == add_version(path, 0.0)
    second = Peppers.load(path)

    assert (first.current, 2) == (second.get(1), second.version)
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert ["pepper"] == [entry.name for entry in tmp_path.iterdir()]
    first.reload()
    assert second.current == first.current


async def test_another_databases_pepper_is_refused(tmp_path: Path, store: Store) -> None:
    """A node that made up a new one would find every key wrong, and say nothing."""
    ours, theirs = Peppers.load(tmp_path / "ours"), Peppers.load(tmp_path / "theirs")
    for _ in range(2):
        await ours.check(store)
    with pytest.raises(ConfigError, match=r"theirs: version 1 is not the pepper .* pepper_file"):
        await theirs.check(store)
    add_version(tmp_path / "ours", 0.0)
    ours.reload()
    await ours.check(store)


def test_a_version_is_used_from_its_time_on(tmp_path: Path) -> None:
    """Until then every node gets the file."""
    now = [1000.0]
    Peppers.load(tmp_path / "pepper")
    add_version(tmp_path / "pepper", 1500.0)
    by_version = Peppers.load(tmp_path / "pepper")._by_version
    peppers = Peppers(by_version, clock=lambda: now[0])

    assert (1, True) == (peppers.version, peppers.get(2) is not None)
    now[0] = 1500.0
    assert 2 == peppers.version

from __future__ import annotations

import string
from dataclasses import fields, replace

from hypothesis import assume, given
from hypothesis import strategies as st

from omai_ray.identity.keys import (
    KEY_LENGTH,
    PREFIX,
    ParsedKey,
    compute_mac,
    generate,
    matches,
    parse,
    redact,
)
from omai_ray.identity.peppers import Peppers
from omai_ray.store import ApiKey

PEPPERS = Peppers({1: b"old" * 11, 2: b"new" * 11})


def row_of(parsed: ParsedKey, version: int = 2) -> ApiKey:
    """Return the row of a key made with that pepper."""
    mac = compute_mac(parsed, PEPPERS.get(version) or b"")
    empty = dict.fromkeys(field.name for field in fields(ApiKey))
    return ApiKey(**{**empty, "id": parsed.key_id, "mac": mac, "pepper_version": version})  # type: ignore[arg-type]


def test_a_new_key_has_its_form_and_is_found_again() -> None:
    """`omai-sk-<id>_<secret>_<checksum>`, 256 bits of secret."""
    parsed, text = generate()

    assert parsed == parse(text)
    assert (KEY_LENGTH, True) == (len(text), text.startswith(PREFIX))
    assert 62 ** len(parsed.secret) > 2**256
    assert matches(parsed, row_of(parsed), PEPPERS)


def test_keys_do_not_repeat() -> None:
    """Neither ids nor secrets."""
    made = [generate()[0] for _ in range(200)]

    assert 200 == len({key.key_id for key in made}) == len({key.secret for key in made})


@given(st.integers(0, KEY_LENGTH - 1), st.sampled_from(string.printable))
def test_any_wrong_character_fails_the_checksum(index: int, character: str) -> None:
    """A typing error never reaches the database."""
    _, text = generate()
    assume(text[index] != character)

    assert parse(text[:index] + character + text[index + 1 :]) is None


@given(st.text(max_size=100))
def test_any_other_text_is_no_key(text: str) -> None:
    """Whatever its characters; nothing raises."""
    assert parse(text) is None
    assert parse(PREFIX + text) is None
    assert parse(PREFIX + text[:63].ljust(63, "_")) is None


@given(st.integers(0, 42), st.sampled_from(string.ascii_letters + string.digits))
def test_a_wrong_secret_with_a_right_checksum_fails_the_mac(index: int, character: str) -> None:
    """The checksum is no protection, and is not meant to be."""
    parsed, _ = generate()
    assume(parsed.secret[index] != character)
    wrong = replace(parsed, secret=parsed.secret[:index] + character + parsed.secret[index + 1 :])

    assert not matches(wrong, row_of(parsed), PEPPERS)


def test_a_mac_fits_no_other_id() -> None:
    """A row that is copied over another one gives no access to it."""
    parsed, _ = generate()
    other = replace(parsed, key_id="another00000")

    assert not matches(other, replace(row_of(parsed), id=other.key_id), PEPPERS)


def test_keys_of_an_older_pepper_still_match_until_it_is_removed() -> None:
    """Each key names the version that it was made with."""
    parsed, _ = generate()

    assert matches(parsed, row_of(parsed, version=1), PEPPERS)
    assert not matches(parsed, row_of(parsed, version=1), Peppers({2: b"new" * 11}))


def test_no_row_matches_nothing() -> None:
    """A MAC is computed and compared all the same."""
    assert not matches(generate()[0], None, PEPPERS)


def test_secrets_are_not_shown() -> None:
    """Neither in a repr nor in what an error may quote."""
    parsed, text = generate()

    assert parsed.secret not in repr(parsed)
    assert f"omai-sk-...{text[-4:]}" == redact(text)
    assert "" == redact("hunter2") == redact("omai-sk-short")

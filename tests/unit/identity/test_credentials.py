from __future__ import annotations

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omai_ray.errors import Unauthorized
from omai_ray.identity.cookies import clear_cookie, read_session, set_cookie
from omai_ray.identity.credentials import Basic, Bearer, Presented, read_credentials

VALUE = "v" * 43


def basic(text: str, encoding: str = "utf-8") -> bytes:
    """Return the value of a Basic header."""
    return b"Basic " + base64.b64encode(text.encode(encoding))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"Bearer key", Bearer("key")),
        (b"bearer key", Bearer("key")),
        (b"BEARER   key  ", Bearer("key")),
        (b"  Bearer key", Bearer("key")),
        (basic("ada:secret"), Basic("ada", "secret")),
        (basic("ada:se:cret"), Basic("ada", "se:cret")),
        (basic("ada:pässwörd"), Basic("ada", "pässwörd")),
        (basic("ada:pässwörd", "latin-1"), Basic("ada", "pässwörd")),
        (basic(":key"), Bearer("key")),
        (basic("key:"), Bearer("key")),
        (b"", None),
    ],
)
def test_credentials_are_read_in_all_their_forms(
    header: bytes, expected: Basic | Bearer | None
) -> None:
    """As curl, browsers, requests and the SDKs send them."""
    assert Presented(None, expected) == read_credentials([(b"authorization", header)])


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([b"Bearer"], "didn't provide an API key"),
        ([b"Bearer  "], "didn't provide an API key"),
        ([b"Digest x"], "must be 'Bearer YOUR_KEY' or Basic"),
        ([b"omai-sk-key"], "must be 'Bearer YOUR_KEY' or Basic"),
        ([b"Basic ???"], "not base64"),
        ([b"Basic \xff"], "not base64"),
        ([basic("ada")], "no password"),
        ([b"Bearer a", b"Bearer a"], "more than one Authorization"),
        ([b"Bearer " + b"x" * 4096], "longer than 4096 bytes"),
    ],
)
def test_what_cannot_be_read_is_unauthorized(headers: list[bytes], reason: str) -> None:
    """The answer says what is asked for."""
    with pytest.raises(Unauthorized, match=reason) as caught:
        read_credentials([(b"authorization", header) for header in headers])

    assert {"WWW-Authenticate": "Bearer"} == caught.value.headers
    assert (401, "invalid_api_key") == (caught.value.status, caught.value.code)


@given(st.binary(max_size=200))
def test_any_other_bytes_are_read_or_unauthorized(header: bytes) -> None:
    """Nothing else is raised."""
    for value in (header, b"Basic " + base64.b64encode(header), b"Bearer " + header):
        with contextlib.suppress(Unauthorized):
            read_credentials([(b"authorization", value), (b"cookie", header)])


def test_an_over_long_cookie_is_unauthorized() -> None:
    """Without looking into it."""
    with pytest.raises(Unauthorized, match="cookie header is longer"):
        read_credentials([(b"cookie", b"x" * 4097)])


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([f"omai_session={VALUE}"], VALUE),
        ([f"a=b; omai_session={VALUE}; c=d"], VALUE),
        (["a=b", f"omai_session={VALUE}"], VALUE),
        (["omai_session=short"], None),
        ([f"xomai_session={VALUE}"], None),
        ([f"omai_session={VALUE}!"], None),
        ([], None),
    ],
)
def test_the_session_cookie_is_found_among_others(headers: list[str], expected: str | None) -> None:
    """One that is not in its form is no session, and costs no query."""
    assert expected == read_session(header.encode() for header in headers)


def test_the_cookie_is_kept_from_scripts_other_sites_and_plain_http() -> None:
    """Secure only where the request came by TLS: plain http would never return it."""
    plain = "omai_session=v; Path=/; Max-Age=604800; HttpOnly; SameSite=Lax"

    assert plain == set_cookie("v", 604800.0, secure=False)
    assert f"{plain}; Secure" == set_cookie("v", 604800.0, secure=True)
    assert "omai_session=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax" == clear_cookie(False)


def test_secrets_are_not_shown() -> None:
    """Neither a token nor a password is in a repr."""
    assert "canary" not in repr([Bearer("canary"), Basic("ada", "canary")])

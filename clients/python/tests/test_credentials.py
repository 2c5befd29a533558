from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest
from omai_stub import HELLO, Stub, settle

import omai

SECRET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQ"
KEY = f"omai-sk-0123456789ab_{SECRET}_8mokGz"
Make = Callable[..., Any]


def test_key_is_sent_as_bearer() -> None:
    """KEY is well formed, so that the tests below test what they say."""
    with omai.OMAi(api_key=KEY) as client:
        assert client.api_key == KEY


def test_key_of_another_form_is_accepted(make: Make) -> None:
    """What does not begin with omai-sk- may be any text: the reference's example constructs."""
    assert "your-api-key" == make(api_key="your-api-key").api_key


@pytest.mark.parametrize(
    "key",
    [
        KEY[:-1],
        KEY[:-8],
        KEY + "a",
        KEY.replace("abc", "abd"),
        KEY.replace("0123", "0132"),
        "omai-sk-",
        "omai-sk-" + "_" * 63,
    ],
)
def test_malformed_key_is_refused_without_naming_it(make: Make, key: str) -> None:
    """A mistyped or truncated key never leaves the machine, nor is it in the message."""
    with pytest.raises(omai.CredentialsError, match="checksum does not fit") as raised:
        make(api_key=key)
    assert "abcdef" not in str(raised.value)
    assert "0123" not in str(raised.value)
    assert isinstance(raised.value, omai.OMAiError)


@pytest.mark.parametrize("key", ["schlüssel", "two\nlines", "nul\0"])
def test_key_that_no_header_can_hold_is_refused_without_naming_it(make: Make, key: str) -> None:
    """The HTTP library would show it in its own error."""
    with pytest.raises(omai.CredentialsError) as raised:
        make(api_key=key)
    assert key not in str(raised.value)


def test_white_space_around_a_key_is_dropped(make: Make) -> None:
    """A key that was read from a file ends with its line."""
    assert make(api_key=f"{KEY}\n").api_key == KEY


def test_key_comes_from_the_environment(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """OMAI_API_KEY is used, and checked, where no key is given."""
    monkeypatch.setenv("OMAI_API_KEY", KEY)
    assert make().api_key == KEY
    assert "other" == make(api_key="other").api_key
    monkeypatch.setenv("OMAI_API_KEY", KEY[:-1])
    with pytest.raises(omai.CredentialsError, match="checksum"):
        make()


@pytest.mark.parametrize("empty", [None, "", " "])
def test_missing_credentials_are_named(
    make: Make, monkeypatch: pytest.MonkeyPatch, empty: str | None
) -> None:
    """The message says what can be passed or set."""
    if empty is not None:
        monkeypatch.setenv("OMAI_API_KEY", empty)
    for options in ({}, {"api_key": empty}):
        with pytest.raises(omai.OMAiError, match=r"api_key=.*username=.*OMAI_API_KEY"):
            make(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"username": "ada"},
        {"password": "secret"},
        {"username": "ada", "password": ""},
        {"username": "ada", "password": "secret", "api_key": "key"},
    ],
)
def test_half_a_login_or_two_credentials_are_refused(make: Make, options: dict[str, str]) -> None:
    """Nobody has to guess which of them is used."""
    with pytest.raises(omai.CredentialsError):
        make(**options)


def test_base_url_comes_from_argument_environment_or_default(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this order."""
    assert "https://api.omai.ai/v1/" == str(make(api_key="k").base_url)
    monkeypatch.setenv("OMAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert "http://127.0.0.1:1/v1/" == str(make(api_key="k").base_url)
    url = openai.OpenAI(api_key="k", base_url="http://127.0.0.1:2/v1").base_url
    assert "http://127.0.0.1:2/v1/" == str(make(api_key="k", base_url=url).base_url)


def test_password_in_the_base_url_is_refused_without_naming_it(make: Make) -> None:
    """It would replace the key, and be logged with every URL."""
    with pytest.raises(omai.CredentialsError, match="base_url holds a password") as raised:
        make(api_key="k", base_url="https://ada:hunter2@127.0.0.1/v1")
    assert "hunter2" not in str(raised.value)


async def test_key_may_be_a_function(make: Make, client_class: type[Any], stub: Stub) -> None:
    """It is asked for every call, and its keys are checked like any other."""
    keys = iter(["first", "second", KEY[:-1], ""])

    async def provide() -> str:
        return next(keys)

    given = provide if client_class is omai.AsyncOMAi else lambda: next(keys)
    client = make(api_key=given, base_url=stub.base_url)
    for copy in (client, client.with_options(timeout=5)):
        await settle(copy.chat.completions.create(model="m", messages=HELLO))
    for _ in range(2):
        with pytest.raises(omai.CredentialsError):
            await settle(client.rerank(model="m", query="q", documents=["d"]))
    sent = [seen.headers["Authorization"] for seen in stub.seen]
    assert ["Bearer first", "Bearer second"] == sent

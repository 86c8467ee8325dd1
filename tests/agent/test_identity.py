"""Credentials of a publish: which are taken, what stands for them, and that nothing prints one."""

from __future__ import annotations

import pytest

from agent.errors import BadRequest
from agent.identity import MAX_VALUE, OWN, credentials_of
from agent.logs import redact

S3 = {"access_key_id": "key-1", "secret_access_key": "hush-1"}


def test_no_secrets_are_the_agents_own_credentials_and_identity() -> None:
    assert credentials_of("file:///x", {}) is OWN
    assert (OWN.identity, bool(OWN)) == ("", False)


def test_both_spellings_of_s3_are_one_identity_and_another_secret_is_another() -> None:
    upper = {"AWS_ACCESS_KEY_ID": "key-1", "AWS_SECRET_ACCESS_KEY": "hush-1"}
    first = credentials_of("s3://b", S3)
    assert first == credentials_of("s3://b/c", upper)
    assert first.identity == credentials_of("s3://b", dict(reversed(S3.items()))).identity
    assert first.identity != credentials_of("s3://b", {**S3, "secret_access_key": "hush-2"}).identity
    assert first.identity != credentials_of("s3://b", {**S3, "session_token": "t"}).identity
    assert len(first.identity) == 24


@pytest.mark.parametrize(
    ("secrets", "header"),
    [
        ({"authorization": "Token abc"}, "Token abc"),
        ({"bearer_token": "abc"}, "Bearer abc"),
        ({"username": "u", "password": "p"}, "Basic dTpw"),
    ],
)
def test_an_http_server_is_sent_what_its_secret_means(secrets: dict[str, str], header: str) -> None:
    credentials = credentials_of("https://h/x", secrets)
    assert credentials.authorization == header
    assert credentials.identity == credentials_of("http://h/x", secrets).identity


@pytest.mark.parametrize(
    ("uri", "secrets", "words"),
    [
        ("s3://b", {**S3, "passwort": "hush-3"}, "unknown secret passwort; there are access_key_id"),
        ("s3://b", {**S3, "hush hush\n": "hush-3"}, "unknown secret (a name)"),
        ("s3://b", {"access_key_id": "hush-3"}, "the secret secret_access_key is missing"),
        ("s3://b", {**S3, "session_token": "hush" * MAX_VALUE}, "the secret session_token must be 1 to"),
        ("s3://b", {**S3, "session_token": ""}, "the secret session_token must be 1 to"),
        ("s3://b", {**S3, "session_token": "hush\r\nX: y"}, "the secret session_token must be"),
        ("s3://b", {**S3, "AWS_ACCESS_KEY_ID": "hush-3"}, "is given twice"),
        ("https://h", {"username": "hush-3"}, "username with password"),
        ("https://h", {"bearer_token": "hush-3", "authorization": "hush"}, "one of the secrets auth"),
        ("file:///x", S3, "no secrets are taken for file://"),
    ],
)
def test_what_is_refused_is_named_by_name_only(uri: str, secrets: dict[str, str], words: str) -> None:
    with pytest.raises(BadRequest) as raised:
        credentials_of(uri, secrets)
    assert words in redact(str(raised.value))
    assert "hush" not in str(raised.value)


def test_no_representation_shows_a_value() -> None:
    shown = repr(credentials_of("s3://b", S3)) + str(credentials_of("s3://b", S3))
    assert "hush" not in shown
    assert "key-1" not in shown

"""Which requests are well-formed: each refusal names its field, and none tells a secret."""

from __future__ import annotations

import pytest

from agent.control.views import MountRequest
from csi.failures import InvalidArgument
from csi.publication import Publication, publication
from tests.csi.serving import publication as made


def checked(secrets: dict[str, str] | None = None, **attributes: str) -> Publication:
    request = made("/t/a")
    request.volume_context.update(attributes)
    request.secrets.update(secrets or {})
    return publication(request)


def test_attributes_become_what_the_agent_is_asked_for() -> None:
    request = checked(
        revision="ab" * 16,
        subPath="models/llama",
        include="*.json, *.bin ,*.bin",
        exclude="tmp/",
        prefetch="all",
        onOriginDown="last",
    ).request
    assert request == MountRequest(
        uri="s3://b/d",
        revision="ab" * 16,
        sub_path="models/llama",
        include=("*.bin", "*.json"),
        exclude=("tmp/",),
        prefetch="all",
        on_origin_down="last",
    )


def test_an_ephemeral_volume_is_as_good_as_a_persistent_one() -> None:
    request = made("/t/a")
    request.volume_context["csi.storage.k8s.io/ephemeral"] = "true"
    request.volume_context["csi.storage.k8s.io/serviceAccount.tokens"] = "{}"
    assert publication(request).request.uri == "s3://b/d"


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("uri", "", "is missing"),
        ("uri", "x" * 5000, "at most 4096"),
        ("revision", "latest", "pattern"),
        ("revision", "AB" * 16, "pattern"),
        ("revision", "ab" * 16 + "\n", "pattern"),
        ("subPath", "../x", "a segment '..'"),
        ("subPath", "/abs", "an absolute path"),
        ("subPath", "a//b", "an empty segment"),
        ("subPath", "a/", "'/' at its end"),
        ("subPath", "a\0b", "NUL"),
        ("include", "a,,b", "an empty pattern"),
        ("exclude", "x" * 300, "more than 256"),
        ("include", ",".join(map(str, range(100))), "at most 64"),
        ("prefetch", "yes", "'none', 'file' or 'all'"),
        ("prefetch", "", "'none', 'file' or 'all'"),
        ("onOriginDown", "true", "'fail' or 'last'"),
        ("url", "s3://typo", "unknown attribute; there are uri, revision, subPath"),
        ("Prefetch", "all", "unknown attribute"),
        ("access_key_id", "hush", "unknown attribute"),
    ],
)
def test_an_attribute_that_is_wrong_is_named(attribute: str, value: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        request = made("/t/a")
        request.volume_context[attribute] = value
        publication(request)
    assert str(raised.value).startswith(f"volume_context.{attribute}: ")
    assert words in str(raised.value)
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize("volume", ["../x", "a/../b", "..", "a\0b", "x" * 5000, "ü" * 65, "a\nb"])
def test_a_volume_id_that_is_wrong_is_named(volume: str) -> None:
    request = made("/t/a", volume=volume)
    with pytest.raises(InvalidArgument, match=r"^volume_id: "):
        publication(request)


@pytest.mark.parametrize("volume", ["csi-" + "0" * 64, "s3://bucket/path", "a..b", "x" * 128])
def test_ids_of_all_kinds_of_volumes_are_taken(volume: str) -> None:
    assert publication(made("/t/a", volume=volume)).volume == volume


def test_secrets_go_along_and_no_representation_shows_them() -> None:
    found = checked({"access_key_id": "hush-1", "secret_access_key": "hush-2"})
    assert found.request.body()["secrets"] == {"access_key_id": "hush-1", "secret_access_key": "hush-2"}
    assert "hush" not in repr(found)
    assert "hush" not in str(found.request.model_dump(mode="json"))


def test_too_many_secrets_are_refused_without_telling_one() -> None:
    with pytest.raises(InvalidArgument, match=r"^secrets: ") as raised:
        checked({f"name-{number}": "hush" for number in range(9)})
    assert "hush" not in str(raised.value)


def test_the_digest_tells_attributes_apart_and_not_secrets() -> None:
    plain = checked()
    assert checked({"access_key_id": "a"}).wanted == plain.wanted == checked(prefetch="file").wanted
    others = [checked(subPath="a"), checked(include="a"), checked(exclude="a"), checked(prefetch="all")]
    assert len({plain.wanted, *(one.wanted for one in others)}) == 5

"""The manifest as YAML that a parser of its own reads."""

from __future__ import annotations

from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from csi.manifest import BadManifest, manifest, quote


def documents(uri: str, name: str = "llama-70b", namespace: str = "default") -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(manifest({"uri": uri}, name, namespace)))


def test_volume_and_claim_mean_each_other() -> None:
    volume, claim = documents("s3://models/llama-70b", namespace="ml")
    assert (volume["apiVersion"], volume["kind"]) == ("v1", "PersistentVolume")
    assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")
    assert volume["metadata"] == {"name": "llama-70b"}
    assert claim["metadata"] == {"name": "llama-70b", "namespace": "ml"}
    reference = volume["spec"]["claimRef"]
    assert (reference["name"], reference["namespace"]) == ("llama-70b", "ml")
    assert claim["spec"]["volumeName"] == "llama-70b"
    assert volume["spec"]["storageClassName"] == claim["spec"]["storageClassName"] == ""
    assert volume["spec"]["accessModes"] == claim["spec"]["accessModes"] == ["ReadOnlyMany"]
    asked = claim["spec"]["resources"]["requests"]["storage"]
    assert volume["spec"]["capacity"]["storage"] == asked


def test_the_volume_is_the_drivers_with_the_uri_as_its_one_attribute() -> None:
    csi = documents("s3://models/llama-70b")[0]["spec"]["csi"]
    assert csi == {
        "driver": "csi.headrace.io",
        "volumeHandle": "llama-70b",
        "readOnly": True,
        "volumeAttributes": {"uri": "s3://models/llama-70b"},
    }


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_uri_is_carried_to_the_letter(rest: str) -> None:
    uri = f"s3://{rest}"
    assert documents(uri)[0]["spec"]["csi"]["volumeAttributes"]["uri"] == uri


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_quoted_text_is_one_line_of_ascii(text: str) -> None:
    quoted = quote(text)
    assert quoted.isascii() and quoted.isprintable()
    assert yaml.safe_load(quoted) == text


@pytest.mark.parametrize("name", ["a", "true", "null", "1", "1e3", "a.b-c.d", "0x1f", "a" * 63])
def test_names_stay_texts(name: str) -> None:
    volume, claim = documents("s3://b/d", name)
    assert volume["metadata"]["name"] == claim["metadata"]["name"] == name


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a..b", "a\n", "a" * 64, "a." * 127, "é"])
def test_a_name_that_kubernetes_refuses_is_refused(name: str) -> None:
    with pytest.raises(BadManifest, match=r"^--name: "):
        manifest({"uri": "s3://b/d"}, name, "default")


@pytest.mark.parametrize("namespace", ["", "a.b", "A", "a" * 64])
def test_a_namespace_that_kubernetes_refuses_is_refused(namespace: str) -> None:
    with pytest.raises(BadManifest, match=r"^--namespace: "):
        manifest({"uri": "s3://b/d"}, "a", namespace)


@pytest.mark.parametrize("uri", ["", "models/llama", "s3://", "s3:/b", "S3://b", "s3://b/\udcff"])
def test_what_is_no_uri_is_refused(uri: str) -> None:
    with pytest.raises(BadManifest, match=r"^URI: "):
        manifest({"uri": uri}, "a", "default")


def test_attributes_and_a_secret_are_in_the_volume() -> None:
    attributes = {"uri": "s3://b/d", "subPath": "a: b", "include": '*.bin,"q"', "prefetch": "all"}
    volume, _ = yaml.safe_load_all(manifest(attributes, "a", "ml", "team-key"))
    assert volume["spec"]["csi"]["volumeAttributes"] == attributes
    assert volume["spec"]["csi"]["nodePublishSecretRef"] == {"name": "team-key", "namespace": "ml"}


@pytest.mark.parametrize(
    ("attribute", "value"), [("subPath", "../x"), ("prefetch", "yes"), ("include", ","), ("revision", "v1")]
)
def test_an_attribute_that_the_node_would_refuse_is_refused_before_it_is_applied(
    attribute: str, value: str
) -> None:
    with pytest.raises(BadManifest, match=f"^{attribute}: "):
        manifest({"uri": "s3://b/d", attribute: value}, "a", "default")


def test_a_secrets_name_is_checked() -> None:
    with pytest.raises(BadManifest, match="--secret: "):
        manifest({"uri": "s3://b/d"}, "a", "default", "No Name")


def test_a_long_name_makes_an_id_that_is_short_enough() -> None:
    name = "a" + ".a" * 120
    handle = documents("s3://b/d", name)[0]["spec"]["csi"]["volumeHandle"]
    assert len(handle) <= 128
    assert documents("s3://b/d", "short")[0]["spec"]["csi"]["volumeHandle"] == "short"

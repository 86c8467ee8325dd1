"""Which queries hold a credential, and how their URLs are named."""

from __future__ import annotations

import pytest

from agent.origin import http_query
from agent.origin.http_query import Queries, is_named, named, with_query


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("X-Amz-Algorithm=A&X-Amz-Credential=c&X-Amz-Signature=s&versionId=7", "versionId=7&"),
        ("sv=2024&se=2026&sig=abc%2Bd", "sv=2024&se=2026&"),
        ("GoogleAccessId=x&Expires=1&Signature=s", "Expires=1&"),
        ("token=t", ""),
        ("%74oken=t", ""),
        ("a=1&access_token=t&a=2", "a=1&a=2&"),
    ],
)
def test_credentials_are_left_out_of_a_name(query: str, kept: str) -> None:
    name, whole = named(f"https://host/f?{query}#part")
    assert (name, whole) == (f"https://host/f?{kept}query=redacted", query)
    assert is_named(name)
    assert with_query(name, whole) == f"https://host/f?{query}"


@pytest.mark.parametrize(
    "url", ["https://h/f", "https://h/f?", "https://h/f?id=5&download", "s3://b/k?sig=x"]
)
def test_other_urls_are_their_own_names(url: str) -> None:
    assert named(url) == (url, "")
    assert not is_named(url)


def test_no_more_queries_are_remembered_than_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_query, "MOST", 2)
    queries = Queries()
    names = [queries.learn(f"https://h/{number}?sig={number}") for number in range(3)]
    assert [queries.of(name) for name in names] == [None, "sig=1", "sig=2"]

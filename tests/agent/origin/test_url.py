"""URLs are quoted once, shown without secrets, and redirects never lose TLS."""

from __future__ import annotations

import pytest

from agent.errors import BadRequest, OriginError
from agent.origin.url import canonical, endpoint_of, host_header, redirected, request_target, shown_url


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://Host/a b", "http://host/a%20b"),
        ("http://host", "http://host/"),
        ("http://host/a%20b%2F?q=\u00e9#frag", "http://host/a%20b%2F?q=%C3%A9"),
        ("https://[::1]:8443/x", "https://[::1]:8443/x"),
        ("http://host/a/../b//c", "http://host/a/../b//c"),
    ],
)
def test_urls_are_sent_as_written_with_what_must_be_quoted_quoted(url: str, sent: str) -> None:
    assert canonical(url) == sent


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://host/x", "http://", "http://host:0/", "http://[::1/", "http://u:p@host/"),
        *(
            "http://a..b/x",
            f"http://{'a' * 64}/x",
            "http://a\0b/x",
            "http://host/\ud800",
            "http://host/?\ud800",
        ),
    ],
)
def test_what_is_no_url_of_ours_is_refused(url: str) -> None:
    with pytest.raises(BadRequest) as raised:
        canonical(url)
    assert "p@" not in str(raised.value) or "u:p" not in str(raised.value)


def test_request_parts_of_an_ipv6_url() -> None:
    endpoint = endpoint_of("https://[::1]:8443/x?y")
    assert (endpoint.host, endpoint.port) == ("::1", 8443)
    assert host_header(endpoint) == "[::1]:8443"
    assert host_header(endpoint_of("https://host/")) == "host"
    assert request_target("https://[::1]:8443/x?y") == "/x?y"


def test_queries_are_not_shown() -> None:
    assert shown_url("https://host/a?X-Amz-Signature=1") == "https://host/a?..."


def test_redirects_keep_tls() -> None:
    assert redirected("https://host/a/b", "../c?x") == "https://host/c?x"
    assert redirected("http://host/a", "https://other/b") == "https://other/b"
    with pytest.raises(OriginError, match="https to http"):
        redirected("https://host/a", "http://host/a")

"""Logging: one line per record on stderr, with whatever looks like a secret taken out.

Redaction works on the finished text, so arguments, tracebacks and what libraries log are covered alike. It
goes by names ("password=", "Authorization:", "X-Amz-Signature=") and by forms that only secrets have (access
key ids, bearer tokens, private keys). It rather takes too much than too little: what is lost is a word of a
message.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import TextIO

LEVELS = ("debug", "info", "warning", "error")

REDACTED = "[redacted]"

_SECRET_NAME = (
    r"[\w.-]*(?:secret|password|passwd|passphrase|token|credential|signature|api[_-]?key|private[_-]?key|"
    r"access[_-]?key|accesskeyid|x-amz-|x-goog-|customer-key)[\w-]*"
)
_QUERY_NAME = rf"(?:{_SECRET_NAME}|sig|key|auth|code|pass|pwd|policy|key-pair-id)"
_STOP = r"[^\s'\"&;#<>]"  # what a value in a query is made of

_PATTERNS = (
    # a private key in PEM form, its line breaks escaped or not
    re.compile(
        r"(?P<keep>)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S
    ),
    # userinfo in a URL; a password may hold a slash, a port may not be taken for one
    re.compile(r"(?P<keep>\b[a-z][a-z0-9+.-]*://)(?:[^/\s?#'\"<>]*@)+", re.I),
    re.compile(r"(?P<keep>\b[a-z][a-z0-9+.-]*://)[^/\s?#'\"<>:@]*:(?!\d+[/?#])[^\s'\"<>@]+@", re.I),
    # queries, presigned ones among them, percent-encoded inside another URL too
    re.compile(rf"(?P<keep>(?:[?&;]|%3F|%26)(?:amp;)?{_QUERY_NAME}=){_STOP}+", re.I),
    re.compile(rf"(?P<keep>(?:[?&;]|%3F|%26){_QUERY_NAME}%3D)(?:(?!%26){_STOP})+", re.I),
    # headers that carry credentials, also as a pair or an item of a mapping; to the end of the value
    re.compile(
        r"(?P<keep>(?:(?:proxy-|x-)?authorization|(?:set-)?cookie)['\"]?\s*[:=,]\s*b?['\"])(?:\\.|[^'\"\\])*",
        re.I,
    ),
    re.compile(
        r"(?P<keep>(?:(?:proxy-|x-)?authorization|(?:set-)?cookie)\s*[:=]\s*)(?!b?['\"])[^\r\n'\"]+", re.I
    ),
    # settings, variables, items of a mapping and pairs, by their name
    re.compile(
        rf"(?P<keep>\b{_SECRET_NAME}['\"]\s*[:=,]\s*b?)(?P<quote>['\"])(?:\\.|(?!(?P=quote)).)*", re.I
    ),
    re.compile(rf"(?P<keep>\b{_SECRET_NAME}\s*[:=]\s*b?)(?P<quote>['\"])(?:\\.|(?!(?P=quote)).)*", re.I),
    re.compile(rf"(?P<keep>\b{_SECRET_NAME}['\"]?\s*[:=]\s*)(?!b?['\"]|\[redacted)[^\s'\",;&)}}\]]+", re.I),
    # forms that nothing else has
    re.compile(r"(?P<keep>\bbearer\s+)[\w.~+/=-]{6,}", re.I),
    re.compile(r"(?P<keep>\bbasic\s+)(?=\S*[A-Z0-9=])[\w+/=-]{6,}"),
    re.compile(r"(?P<keep>\bBasic\s+)(?=\S*[0-9=]|[a-z]*[A-Z])[\w+/=-]{6,}"),
    re.compile(r"(?P<keep>)\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}\b"),
    re.compile(r"(?P<keep>)\b(?:hf_|gh[opsur]_|github_pat_|glpat-)[A-Za-z0-9_-]{16,}"),
    re.compile(r"(?P<keep>)\beyJ[\w-]{8,}\.[\w-]{4,}(?:\.[\w-]*)*"),
)


def redact(text: str) -> str:
    """The text without credentials, tokens and presigned queries; the names stay, the values go."""
    for pattern in _PATTERNS:
        text = pattern.sub(_replacement, text)
    return text


def redact_url(url: str) -> str:
    """A URL for people: no userinfo, and each value of its query taken out, whatever its name."""
    base, mark, query = url.partition("?")
    names = (pair.partition("=")[0] + "=" + REDACTED for pair in query.split("#")[0].split("&") if pair)
    return redact(base) + mark + "&".join(names)


def _replacement(match: re.Match[str]) -> str:
    return match["keep"] + (match.groupdict().get("quote") or "") + REDACTED


class OneLine(logging.Formatter):
    """A record on one line, redacted; a traceback's lines are joined."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return " | ".join(redact(super().format(record)).splitlines())


def set_up(level: str, stream: TextIO | None = None) -> None:
    """Log to `stream` (stderr) from `level` (one of LEVELS) on; libraries only from warnings on."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("agent").setLevel(level.upper())
    logging.raiseExceptions = False  # a record that cannot be formatted would print its arguments unredacted

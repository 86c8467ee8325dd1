"""Logging: one line per record on stderr, with whatever looks like a secret taken out."""

from __future__ import annotations

import logging
import re
import sys

LEVELS = ("debug", "info", "warning", "error")

_REDACTED = "[redacted]"
_PATTERNS = (
    # userinfo in a URL
    re.compile(r"(?P<keep>[a-z][a-z0-9+.-]*://)[^/\s@'\"]+@", re.IGNORECASE),
    # presigned queries (Amazon S3, Google, Azure) and tokens
    re.compile(
        r"(?P<keep>[?&;](?:x-amz-[a-z-]+|x-goog-[a-z-]+|awsaccesskeyid|signature|sig|se|sp|sv|token|"
        r"access_token|expires|key|password)=)[^&\s'\"]+",
        re.IGNORECASE,
    ),
    # headers and settings
    re.compile(r"(?P<keep>authorization['\"]?\s*[:=]\s*['\"]?(?:\w[\w-]*\s+)?)[^\r\n'\"]+", re.IGNORECASE),
    re.compile(
        r"(?P<keep>(?:secret|password|passwd|token|credential|access[_-]?key(?:[_-]?id)?)[\w-]*['\"]?\s*[:=]\s*['\"]?)"
        r"[^\s'\",;]+",
        re.IGNORECASE,
    ),
    # access key ids of AWS, wherever they stand
    re.compile(r"(?P<keep>)\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
)


def redact(text: str) -> str:
    """The text without credentials, tokens and presigned queries."""
    for pattern in _PATTERNS:
        text = pattern.sub(lambda match: (match["keep"] or "") + _REDACTED, text)
    return text


class OneLine(logging.Formatter):
    """A record on one line, redacted; a traceback's lines are joined."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record)).replace("\n", " | ")


def set_up(level: str) -> None:
    """Log to stderr from `level` (one of LEVELS) on; libraries only from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("agent").setLevel(level.upper())

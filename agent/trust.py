"""Whose certificates are trusted, the same for all that is asked over TLS.

Those of the system (OpenSSL's defaults, which SSL_CERT_FILE and SSL_CERT_DIR change) and of AWS_CA_BUNDLE.
"""

from __future__ import annotations

import os
import ssl

from agent.errors import OriginUnavailable

_BUNDLE = "AWS_CA_BUNDLE"


def context(*, verify: bool) -> ssl.SSLContext:
    """A client's context; without `verify` it takes every certificate. Raises OriginUnavailable."""
    made = ssl.create_default_context()
    if not verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    else:
        _add_bundle(made)
    return made


def check_bundle() -> None:
    """Raises OriginUnavailable where what AWS_CA_BUNDLE names cannot be used."""
    _add_bundle(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


def _add_bundle(context: ssl.SSLContext) -> None:
    bundle = os.environ.get(_BUNDLE)
    if not bundle:
        return
    try:
        context.load_verify_locations(bundle)
    except OSError as error:  # as ssl.SSLError is, where there is no certificate in it
        reason = error.strerror or type(error).__name__
        message = f"{_BUNDLE}: {bundle} cannot be used ({reason}); name a file of certificates"
        raise OriginUnavailable(message) from error


def system_file() -> str | None:
    """The one file of the system's certificates, for a client that takes no context; None without one."""
    return ssl.get_default_verify_paths().cafile


def refusal(whose: str, error: Exception) -> str:
    """What to say of an ssl.SSLCertVerificationError."""
    reason = getattr(error, "verify_message", type(error).__name__)
    return f"the {whose}'s certificate is not trusted ({reason}); set {_BUNDLE} or SSL_CERT_FILE"

"""`headrace-csi manifest`: the PersistentVolume and the claim that mount a dataset in Kubernetes.

The YAML is written by hand, so that the product needs no YAML library: every text that comes from the user
is a double-quoted scalar of printable ASCII (YAML 1.1 and 1.2, "Double-Quoted Style").
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from csi.failures import InvalidArgument
from csi.publication import MAX_VOLUME_ID, mount_request

# A lower-case RFC 1123 subdomain, as Kubernetes asks of the names of volumes and claims.
_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NAMESPACE = re.compile(_LABEL)
_URI = re.compile(r"[a-z][a-z0-9+.-]*://.+", re.DOTALL)

DRIVER = "csi.headrace.io"
# Kubernetes wants a size of every volume and compares it with the claim's; a dataset has no use for it.
NOMINAL_SIZE = "1Ti"

_TEMPLATE = """\
apiVersion: v1
kind: PersistentVolume
metadata:
  name: {name}
spec:
  capacity:
    storage: {size}
  accessModes: [ReadOnlyMany]
  volumeMode: Filesystem
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ""
  claimRef:
    apiVersion: v1
    kind: PersistentVolumeClaim
    namespace: {namespace}
    name: {name}
  csi:
    driver: {driver}
    volumeHandle: {handle}
    readOnly: true
{secret}    volumeAttributes:
{attributes}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {name}
  namespace: {namespace}
spec:
  accessModes: [ReadOnlyMany]
  volumeMode: Filesystem
  storageClassName: ""
  volumeName: {name}
  resources:
    requests:
      storage: {size}
"""


_SECRET = """\
    nodePublishSecretRef:
      name: {secret}
      namespace: {namespace}
"""


class BadManifest(Exception):
    """An argument that no manifest can be made of: one line."""


def manifest(attributes: Mapping[str, str], name: str, namespace: str, secret: str | None = None) -> str:
    """The two documents, for a volume of these attributes (csi/publication.py); `secret` is a Secret's name.

    Raises BadManifest.
    """
    _check_name("--name", name)
    if secret is not None:
        _check_name("--secret", secret)
    if not _NAMESPACE.fullmatch(namespace):
        raise BadManifest(
            f"--namespace: {namespace!r} is no DNS-1123 label: a-z, 0-9 and '-', at most 63 characters"
        )
    uri = attributes["uri"]
    if not _URI.fullmatch(uri) or not _encodable(uri):
        raise BadManifest(f"URI: {uri!r} is no URI such as s3://bucket/path in UTF-8")
    _check_attributes(attributes)
    texts = {"name": name, "namespace": namespace, "handle": _handle(name)}
    quoted = {key: quote(text) for key, text in texts.items()}
    lines = "\n".join(f"      {key}: {quote(text)}" for key, text in attributes.items())
    reference = "" if secret is None else _SECRET.format(secret=quote(secret), namespace=quoted["namespace"])
    return _TEMPLATE.format(**quoted, driver=DRIVER, size=NOMINAL_SIZE, attributes=lines, secret=reference)


def _handle(name: str) -> str:
    """The volume's id: its name, or where that is too long for CSI a digest of it."""
    if len(name) <= MAX_VOLUME_ID:
        return name
    return f"name-{hashlib.sha256(name.encode()).hexdigest()}"


def _check_name(option: str, name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > 253:
        raise BadManifest(
            f"{option}: {name!r} is no DNS-1123 name: a-z, 0-9, '-' and '.', at most 253 characters"
        )


def _check_attributes(attributes: Mapping[str, str]) -> None:
    """What the node would refuse is told before anything is applied."""
    if not all(map(_encodable, attributes.values())):
        raise BadManifest("a value is no UTF-8")
    try:
        mount_request(attributes, {})
    except InvalidArgument as error:
        raise BadManifest(str(error).removeprefix("volume_context.")) from error


def _encodable(text: str) -> bool:
    return not any(0xD800 <= ord(char) < 0xE000 for char in text)


def quote(text: str) -> str:
    """A double-quoted YAML scalar."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    if " " <= char <= "~":
        return char
    return f"\\U{ord(char):08X}"

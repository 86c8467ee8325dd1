"""`headrace-csi manifest`: the PersistentVolume and the claim that mount a dataset in Kubernetes.

The YAML is written by hand, so that the product needs no YAML library: every text that comes from the user
is a double-quoted scalar of printable ASCII (YAML 1.1 and 1.2, "Double-Quoted Style").
"""

from __future__ import annotations

import re

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
    volumeHandle: {name}
    readOnly: true
    volumeAttributes:
      uri: {uri}
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


class BadManifest(Exception):
    """An argument that no manifest can be made of: one line."""


def manifest(uri: str, name: str, namespace: str) -> str:
    """The two documents. Raises BadManifest."""
    if not _NAME.fullmatch(name) or len(name) > 253:
        raise BadManifest(
            f"--name: {name!r} is no DNS-1123 name: a-z, 0-9, '-' and '.', at most 253 characters"
        )
    if not _NAMESPACE.fullmatch(namespace):
        raise BadManifest(
            f"--namespace: {namespace!r} is no DNS-1123 label: a-z, 0-9 and '-', at most 63 characters"
        )
    if not _URI.fullmatch(uri) or any(0xD800 <= ord(char) < 0xE000 for char in uri):
        raise BadManifest(f"URI: {uri!r} is no URI such as s3://bucket/path in UTF-8")
    texts = {"name": name, "namespace": namespace, "uri": uri}
    quoted = {key: quote(text) for key, text in texts.items()}
    return _TEMPLATE.format(**quoted, driver=DRIVER, size=NOMINAL_SIZE)


def quote(text: str) -> str:
    """A double-quoted YAML scalar."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    if " " <= char <= "~":
        return char
    return f"\\U{ord(char):08X}"

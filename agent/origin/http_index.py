"""The JSON index by which an HTTP server describes a tree. Pure: text in, listing out.

    {"version": 1,
     "files": [{"path": "sub/model.safetensors", "size": 90868376, "etag": "\\"5d41402a\\""},
               {"path": "config.json", "size": 612, "last_modified": "Tue, 15 Nov 1994 12:45:26 GMT",
                "url": "https://cdn.example/config-1"}]}

- `version` is 1.
- `path` is relative to the tree's root, '/' between names; no two files have the same.
- `size` is in bytes.
- `etag` is the strong ETag, or `last_modified` the Last-Modified header, that the server sends with the file;
  each read is conditional on it. Quotes around the ETag may be left out.
- `url` is where the file is, relative to the index; without it, the path is.

Unknown fields are errors. An index is recognised by its URL (it ends in `/index.json`) or by its media type,
`application/vnd.headrace.index+json`.
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import quote, urljoin, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.content import ListedObject, ObjectRef
from agent.errors import BadRequest, OriginMisbehaved
from agent.origin.http_version import version_text
from agent.origin.url import canonical, shown_url
from agent.origin.version import http_date_ns

INDEX_NAME = "/index.json"
INDEX_TYPE = "application/vnd.headrace.index+json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class IndexedFile(_Strict):
    """One file of the index."""

    path: Annotated[str, Field(min_length=1)]
    size: Annotated[int, Field(ge=0, lt=2**63)]
    etag: Annotated[str, Field(pattern=r'^(W/)?"?[^"\s]+"?$')] | None = None
    last_modified: str | None = None
    url: str | None = None


class Index(_Strict):
    """The whole index."""

    version: Literal[1]
    files: tuple[IndexedFile, ...]


def is_index(url: str, content_type: str | None) -> bool:
    """Whether a URL with this answer is an index and not a file."""
    media_type = (content_type or "").partition(";")[0].strip().lower()
    return media_type == INDEX_TYPE or urlsplit(url).path.endswith(INDEX_NAME)


def listing(text: bytes, url: str, *, allow_unversioned: bool) -> list[ListedObject]:
    """The objects of the index that was found at `url`. Raises OriginMisbehaved, Unversioned."""
    name = shown_url(url)
    try:
        index = Index.model_validate_json(text)
    except ValidationError as error:
        raise OriginMisbehaved(f"{name} is not an index of version 1: {_first(error)}") from error
    found: dict[str, ListedObject] = {}
    for file in index.files:
        if file.path in found:
            raise OriginMisbehaved(f"{name} is not an index of version 1: {file.path!r} is in it twice")
        found[file.path] = _listed(file, url, name, allow_unversioned)
    return list(found.values())


def _listed(file: IndexedFile, url: str, name: str, allow_unversioned: bool) -> ListedObject:
    version = version_text(
        _quoted(file.etag),
        file.last_modified,
        file.size,
        name=f"{file.path!r} of {name}",
        allow_unversioned=allow_unversioned,
    )
    ref = ObjectRef(_file_url(file, url, name), version, file.size)
    return ListedObject(file.path, ref, http_date_ns(file.last_modified))


def _file_url(file: IndexedFile, url: str, name: str) -> str:
    relative = file.url if file.url is not None else "./" + quote(file.path.encode(), safe="/~")
    try:
        target = canonical(urljoin(url, relative))
    except (BadRequest, ValueError) as error:
        raise OriginMisbehaved(f"{name}: the URL of {file.path!r} is not http or https") from error
    if url.startswith("https:") and target.startswith("http:"):
        raise OriginMisbehaved(f"{name}: the URL of {file.path!r} leads from https to http")
    return target


def _quoted(etag: str | None) -> str | None:
    return etag if etag is None or etag.startswith(('"', "W/")) else f'"{etag}"'


def _first(error: ValidationError) -> str:
    details = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(step) for step in details["loc"])
    return f"{where}: {details['msg']}" if where else details["msg"]

"""The agent's settings: one TOML file, read once.

Each setting is declared once, here, with its default, its unit (by its type) and its help; the README's
table is rendered from the same declarations (`settings_table`). Unknown keys are errors. `load` raises the
first problem only, as one line that names the dotted key and the remedy, and never repeats a value that
could be a credential.

In the file sizes and durations carry units; in code they are plain bytes (int) and seconds (float).
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import socket
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from agent import settings
from agent.errors import ConfigError
from agent.logs import redact
from agent.settings import (
    CREDENTIALS_REMEDY,
    MIB,
    AbsolutePath,
    Duration,
    Flag,
    Listen,
    Name,
    Size,
    SocketPath,
    Unit,
    split_listen,
)
from agent.units import format_duration, format_size

_FROM_FILE = {"from_file": True}  # the validation context in which a plain number is refused


def _shown(default: str) -> dict[str, Any]:
    """What the settings table says where the default is made at run time."""
    return {"shown_default": default}


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class NodeConfig(_Table):
    """[node]: what this machine is called."""

    name: Name = Field(
        default_factory=socket.gethostname,
        description="What this node is called in listings and metrics.",
        json_schema_extra=_shown("the host's name"),
    )
    zone: Annotated[str, Unit("text")] = Field(
        default="", description="The zone or rack that the node is in."
    )


class StoreConfig(_Table):
    """[store]: where chunks are kept."""

    directories: Annotated[
        list[AbsolutePath], AfterValidator(settings.directories), Unit("list of paths")
    ] = Field(
        default=[Path("/var/lib/headrace")],
        description="Directories that hold the store, one per disk.",
    )
    capacity: Size | None = Field(
        default=None,
        description="The most that each directory may take.",
        json_schema_extra=_shown("90 % of its file system"),
    )
    reserve: Size | None = Field(
        default=None,
        description="Free disk that is never used.",
        json_schema_extra=_shown("the smaller of `50GiB` and 10 %"),
    )
    high_watermark: Annotated[float, Field(gt=0.0, le=1.0), Unit("share")] = Field(
        default=0.95, description="Eviction begins where more than this share of what is allowed is held."
    )
    low_watermark: Annotated[float, Field(gt=0.0, le=1.0), Unit("share")] = Field(
        default=0.90, description="Eviction ends at this share; no more than `high_watermark`."
    )
    chunk_size: Annotated[Size, AfterValidator(settings.chunk_size)] = Field(
        default=8 * MIB,
        description="The unit of fill, verification and exchange: a power of two from `1MiB` to `256MiB`.",
    )
    scrub_rate: Size = Field(
        default=20 * MIB,
        description="Bytes per second that are read in the background and compared with their checksum; "
        '`"0B"` reads none.',
    )

    @model_validator(mode="after")
    def _ordered(self) -> StoreConfig:
        if self.low_watermark > self.high_watermark:
            raise ValueError("low_watermark is above high_watermark: lower it")
        return self


class MountConfig(_Table):
    """[mount]: what readers can count on."""

    patience: Duration = Field(
        default=300.0,
        description="How long a read waits for its bytes before EIO; a mapped read dies of it (SIGBUS).",
    )
    promote: Annotated[Literal["auto", "never"], Unit("`auto` or `never`")] = Field(
        default="auto",
        description="Publish a complete dataset as a read-only bind mount of its files, with no FUSE.",
    )


class HolderConfig(_Table):
    """[holder]: the process that keeps the mounts."""

    socket: SocketPath = Field(
        default=Path("/run/headrace/holder.sock"), description="The socket of `headrace-csi hold`."
    )


class AdminConfig(_Table):
    """[admin]: the API for this node's own root."""

    socket: SocketPath = Field(
        default=Path("/run/headrace/admin.sock"),
        description="The socket that the agent's admin API is on.",
    )


class MetricsConfig(_Table):
    """[metrics]: what monitoring reads."""

    listen: Listen = Field(
        default="127.0.0.1:9464",
        description="Where `/metrics`, `/healthz` and `/readyz` are served; port 0 takes a free one.",
    )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of `listen`."""
        return split_listen(self.listen)


class OriginConfig(_Table):
    """[origin."PREFIX"]: how the origins whose URI begins with PREFIX are reached."""

    endpoint_url: Annotated[str, AfterValidator(settings.endpoint_url), Unit("URL")] | None = Field(
        default=None, description="The S3 endpoint.", json_schema_extra=_shown("the SDK's (AWS)")
    )
    region: Name | None = Field(
        default=None,
        description="The region that requests are signed for.",
        json_schema_extra=_shown("the SDK's"),
    )
    path_style: Flag | None = Field(
        default=None,
        description="Put the bucket into the path and not into the host name.",
        json_schema_extra=_shown("`true` where `endpoint_url` is set"),
    )
    deadline: Duration = Field(
        default=30.0,
        description="How long one request to the origin may take, its retries included; a question about"
        " metadata 8 s at most, but where an fsspec driver lists a tree all of it counts as one request.",
    )
    max_connections: Annotated[int, Field(ge=1, le=1024), Unit("number")] = Field(
        default=16,
        description="The most connections that are open to the origin at a time (1 to 1024); each that is "
        "busy takes 512 KiB of memory.",
    )
    max_bytes_in_flight: Annotated[Size, AfterValidator(settings.at_least_mib)] = Field(
        default=256 * MIB,
        description="The most bytes that are asked of the origin at a time (`1MiB` or more).",
    )
    verify_tls: Flag = Field(default=True, description="Check the origin's TLS certificate.")
    anonymous: Flag = Field(default=False, description="Send no credentials.")
    allow_unversioned: Flag = Field(
        default=False,
        description="Read from origins that give nothing to tell versions apart; a change can then mix them.",
    )
    profile: Name | None = Field(
        default=None,
        description="The profile of the SDK's own files that credentials are taken from.",
        json_schema_extra=_shown("the SDK's"),
    )
    cluster_rate: Annotated[Size, AfterValidator(settings.at_least_mib)] | None = Field(
        default=None,
        description="The most bytes a second that all agents together read from the origin (`1MiB` or more); "
        "each live one takes an equal part.",
        json_schema_extra=_shown("none"),
    )


class PeersConfig(_Table):
    """[peers]: the other agents; without this table there are none."""

    listen: Annotated[Listen, AfterValidator(settings.own_address)] = Field(
        description="This agent's own address, at which the others reach it.",
        json_schema_extra=_shown("required"),
    )
    discovery: Annotated[Literal["static", "dns"], Unit("`static` or `dns`")] = Field(
        description="How the others are found: by `addresses`, or by the addresses that `name` has.",
        json_schema_extra=_shown("required"),
    )
    addresses: Annotated[list[Listen], Unit("list of host:port")] = Field(
        default=[],
        description="For `static`: the addresses of the agents; this one's own may be among them.",
    )
    name: Annotated[Name, AfterValidator(settings.host_name)] | None = Field(
        default=None,
        description="For `dns`: a name that has the address of every agent, as a headless Service's has; all "
        "listen on the same port.",
        json_schema_extra=_shown("none"),
    )
    secret_file: AbsolutePath = Field(
        description="The cluster's secret: 32 characters or more, the same for all, and for no other user.",
        json_schema_extra=_shown("required"),
    )

    swarm: Flag = Field(
        default=False,
        description="Take part in the swarm (libtorrent), by which whole datasets are warmed.",
    )
    swarm_port: Annotated[int, Field(ge=0, le=65535), Unit("number")] = Field(
        default=0,
        description="The swarm's port, TCP and UDP, at the address of `listen`; 0 takes any that is free.",
    )

    upload_limit: Annotated[Size, AfterValidator(settings.at_least_mib)] | None = Field(
        default=None,
        description="The most bytes a second that this agent sends to its peers (`1MiB` or more).",
        json_schema_extra=_shown("none"),
    )
    download_limit: Annotated[Size, AfterValidator(settings.at_least_mib)] | None = Field(
        default=None,
        description="The most bytes a second that this agent takes from its peers (`1MiB` or more).",
        json_schema_extra=_shown("none"),
    )

    @model_validator(mode="after")
    def _has_what_discovery_needs(self) -> PeersConfig:
        if self.discovery == "static" and (self.name is not None or not self.addresses):
            raise ValueError('discovery = "static" needs addresses, and no name')
        if self.discovery == "dns" and (self.name is None or self.addresses):
            raise ValueError('discovery = "dns" needs a name, and no addresses')
        return self

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of `listen`."""
        return split_listen(self.listen)

    @property
    def own(self) -> str:
        """`listen` in the one form that peers know it by."""
        host, port = self.address
        return f"[{ipaddress.ip_address(host)}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def targets(self) -> list[tuple[str, int]]:
        """Hosts and ports where agents are."""
        if self.name is not None:
            return [(self.name, self.address[1])]
        return [split_listen(address) for address in self.addresses]


Prefix = Annotated[str, AfterValidator(settings.origin_prefix)]


class Config(_Table):
    """The whole file; every table and every setting may be left out."""

    node: NodeConfig = Field(default_factory=NodeConfig)
    store: StoreConfig = Field(default_factory=StoreConfig)
    mount: MountConfig = Field(default_factory=MountConfig)
    holder: HolderConfig = Field(default_factory=HolderConfig)
    admin: AdminConfig = Field(default_factory=AdminConfig)
    metrics: MetricsConfig = Field(default_factory=MetricsConfig)
    peers: PeersConfig | None = None
    origin: dict[Prefix, OriginConfig] = Field(default_factory=dict)

    def origin_for(self, uri: str) -> OriginConfig:
        """The settings of the longest prefix that `uri` begins with; the defaults where there is none."""
        matching = [prefix for prefix in self.origin if uri.startswith(prefix)]
        return self.origin[max(matching, key=len)] if matching else OriginConfig()


def load(path: Path | str) -> Config:
    """Read and check the file. Raises ConfigError for its first problem; the key is the path itself where
    the file cannot be read or is not TOML."""
    return parse(_read(Path(path)), str(path))


def parse(text: str, source: str = "configuration") -> Config:
    """Check the text of a file; `source` names it in messages. Raises ConfigError."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(source, f"this is not TOML: {error}; mend that line") from None
    for key in _credential_keys(tree):
        raise ConfigError(key, f"this looks like a credential: remove it; {CREDENTIALS_REMEDY}")
    try:
        return Config.model_validate(tree, context=_FROM_FILE)
    except ValidationError as error:
        raise _first_problem(error) from None


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(
            str(path), "there is no such file: write it or name another with --config"
        ) from None
    except IsADirectoryError:
        raise ConfigError(str(path), "this is a directory: name a file with --config") from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), "this is not UTF-8: save it as UTF-8 text") from None
    except PermissionError:
        raise ConfigError(str(path), "no permission: let the agent's user read it") from None
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}") from None


_CREDENTIAL = re.compile(
    r"access.?key|secret|token|passw(or)?d|credential|private.?key|api.?key", re.IGNORECASE
)


def _credential_keys(table: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[str]:
    for key, value in table.items():
        path = (*above, key)
        if isinstance(value, dict):
            yield from _credential_keys(value, path)
        elif _CREDENTIAL.search(key) and not key.endswith("_file"):
            yield redact(dotted(path))


def dotted(path: tuple[str | int, ...]) -> str:
    """A key as TOML writes it: `origin."s3://".deadline`; a list's items by number."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = part if re.fullmatch("[A-Za-z0-9_-]+", part) else '"' + part.replace('"', '\\"') + '"'
            text += f".{bare}" if text else bare
    return text


_MESSAGES = {
    "bool_type": "must be true or false, with no quotes",
    "dict_type": "must be a table",
    "greater_than_equal": "must be {ge} or more",
    "int_type": "must be a whole number, with no quotes",
    "is_instance_of": 'must be a path in quotes, like "/var/lib/headrace"',
    "less_than_equal": "must be {le} or less",
    "literal_error": "must be {expected}",
    "list_type": 'must be a list, like ["/var/lib/headrace"]',
    "missing": "is missing: write it",
    "model_type": "must be a table",
    "string_too_short": "must not be empty",
    "string_type": "must be text in quotes",
}


def _first_problem(error: ValidationError) -> ConfigError:
    problem = error.errors(include_url=False, include_input=False)[0]
    path = tuple(part for part in problem["loc"] if part != "[key]")
    return ConfigError(redact(dotted(path)), _message(problem, path))


def _message(problem: ErrorDetails, path: tuple[str | int, ...]) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(path)
    if kind == "value_error":
        return str(context["error"])
    return _MESSAGES[kind].format(**context) if kind in _MESSAGES else problem["msg"]


def _unknown_key(path: tuple[str | int, ...]) -> str:
    known = list(_table_at(path[:-1]).model_fields)
    near = difflib.get_close_matches(str(path[-1]), known, n=1)
    if near:
        return f"there is no such setting: did you mean {near[0]}?"
    return f"there is no such setting: known here are {', '.join(known)}"


def _table_at(path: tuple[str | int, ...]) -> type[BaseModel]:
    """The model of the table at `path`."""
    if not path:
        return Config
    return OriginConfig if path[0] == "origin" else _tables()[str(path[0])]


def _tables() -> dict[str, type[BaseModel]]:
    """The tables by their name in the file, in its order; the origins' one by its placeholder."""
    named = {name: field.annotation for name, field in Config.model_fields.items() if name != "origin"}
    named["peers"] = PeersConfig  # which may be left out as a whole
    tables = {
        name: table
        for name, table in named.items()
        if isinstance(table, type) and issubclass(table, BaseModel)
    }
    return tables | {'origin."PREFIX"': OriginConfig}


def settings_table(config: type[Config] = Config) -> str:
    """The README's table of all settings, in Markdown, with a last line break."""
    del config  # the tables are the declarations of `Config` itself
    lines = ["| setting | default | written as | what it is |", "|---|---|---|---|"]
    for name, table in _tables().items():
        for key, field in table.model_fields.items():
            lines.append(f"| `{name}.{key}` | {_default(field)} | {_unit(field)} | {field.description} |")
    return "\n".join(lines) + "\n"


def _unit(field: FieldInfo) -> str:
    return next(mark.name for mark in _marks(field) if isinstance(mark, Unit))


def _marks(field: FieldInfo) -> Iterator[object]:
    """The metadata of a field's type, outermost last, through `X | None`."""
    yield from reversed(field.metadata)
    for option in getattr(field.annotation, "__args__", ()):
        yield from reversed(getattr(option, "__metadata__", ()))


def _default(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if isinstance(extra, dict):
        return str(extra["shown_default"])
    return f"`{_as_toml(field.default, _unit(field))}`"


def _as_toml(value: object, unit: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if unit == "size" and isinstance(value, int):
        return f'"{format_size(value)}"'
    if unit == "duration" and isinstance(value, float):
        return f'"{format_duration(value)}"'
    if isinstance(value, list):
        return "[" + ", ".join(_as_toml(item, "path") for item in value) + "]"
    return str(value) if isinstance(value, int) else f'"{value}"'

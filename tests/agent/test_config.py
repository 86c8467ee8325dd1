from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from botocore.utils import is_valid_uri  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from agent.config import Config, OriginConfig, StoreConfig, load, parse, settings_table
from agent.errors import ConfigError

EVERYTHING = """
[node]
name = "gpu-17"
zone = "az-a"
[store]
directories = ["/mnt/a", "/mnt/b"]
capacity = "2TiB"
reserve = "50GiB"
chunk_size = "4MiB"
[mount]
patience = "90s"
[holder]
socket = "/run/h.sock"
[admin]
socket = "/run/a.sock"
[metrics]
listen = "[::1]:9000"
[origin."s3://"]
endpoint_url = "http://127.0.0.1:8333"
region = "us-east-1"
path_style = true
deadline = "500ms"
max_connections = 4
max_bytes_in_flight = "64MiB"
verify_tls = false
anonymous = true
allow_unversioned = true
[origin."s3://models/"]
profile = "models"
"""


PEERS = '[peers]\nlisten = "10.0.0.1:7411"\nsecret_file = "/etc/headrace/peer-secret"\n'


def problem(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


def test_an_empty_file_gives_the_defaults() -> None:
    config = parse("")
    assert config == Config()
    assert config.node.name == socket.gethostname()
    assert config.store.directories == [Path("/var/lib/headrace")]
    assert config.store.capacity is None
    assert config.store.chunk_size == 8 << 20
    assert config.mount.patience == 300.0
    assert config.holder.socket == Path("/run/headrace/holder.sock")
    assert config.metrics.address == ("127.0.0.1", 9464)
    assert config.origin == {}


def test_every_setting_is_read_into_bytes_and_seconds() -> None:
    config = parse(EVERYTHING)
    assert config.node.zone == "az-a"
    assert config.store.directories == [Path("/mnt/a"), Path("/mnt/b")]
    assert (config.store.capacity, config.store.reserve) == (2 << 40, 50 << 30)
    assert config.store.chunk_size == 4 << 20
    assert config.mount.patience == 90.0
    assert config.metrics.address == ("::1", 9000)
    origin = config.origin["s3://"]
    assert (origin.deadline, origin.max_connections, origin.max_bytes_in_flight) == (0.5, 4, 64 << 20)
    assert (origin.path_style, origin.verify_tls, origin.anonymous) == (True, False, True)


def test_without_its_table_there_are_no_peers() -> None:
    assert parse("").peers is None


def test_peers_are_named_by_their_addresses_or_by_one_name() -> None:
    listed = parse(PEERS + 'discovery = "static"\naddresses = ["10.0.0.2:7411", "gpu-3:7412"]').peers
    assert listed is not None
    assert (listed.own, listed.address) == ("10.0.0.1:7411", ("10.0.0.1", 7411))
    assert listed.targets == [("10.0.0.2", 7411), ("gpu-3", 7412)]
    assert listed.secret_file == Path("/etc/headrace/peer-secret")
    named = parse(PEERS.replace("10.0.0.1", "[FD00:0::1]") + 'discovery = "dns"\nname = "agents.svc"').peers
    assert named is not None
    assert named.own == "[fd00::1]:7411"
    assert named.targets == [("agents.svc", 7411)]


def test_the_longest_matching_prefix_has_the_settings_and_inherits_nothing() -> None:
    config = parse(EVERYTHING)
    assert config.origin_for("s3://models/llama").profile == "models"
    assert config.origin_for("s3://models/llama").region is None
    assert config.origin_for("s3://models").region == "us-east-1"
    assert config.origin_for("https://host/x") == OriginConfig()


def test_code_gives_plain_bytes_where_the_file_needs_units() -> None:
    assert StoreConfig(chunk_size=1 << 20).chunk_size == 1 << 20
    assert problem("[store]\nchunk_size = 1048576").key == "store.chunk_size"


@pytest.mark.parametrize(
    ("text", "key", "remedy"),
    [
        ("[stor]\nx = 1", "stor", "did you mean store?"),
        ("peers = 1", "peers", "must be a table"),
        ('[peers]\nlisten = "0.0.0.0:7411"', "peers.listen", "name one address"),
        ('[peers]\nlisten = "[::]:7411"', "peers.listen", "name one address"),
        ('[peers]\nlisten = "10.0.0.1:0"', "peers.listen", "name one address"),
        ('[peers]\nlisten = "gpu-17:7411"', "peers.listen", "by its IP address"),
        ('[peers]\nlisten = "10.0.0.1:7411"', "peers.discovery", "is missing"),
        (PEERS + 'discovery = "kubernetes"', "peers.discovery", "must be 'static' or 'dns'"),
        (PEERS + 'discovery = "static"', "peers", "needs addresses, and no name"),
        (PEERS + 'discovery = "dns"', "peers", "needs a name, and no addresses"),
        (PEERS + 'discovery = "dns"\naddresses = ["h"]', "peers.addresses[0]", 'like "127.0.0.1:9464"'),
        (PEERS + 'secret = "hunter2"', "peers.secret", "looks like a credential"),
        (PEERS + 'discovery = "dns"\nnme = "x"', "peers.nme", "did you mean name?"),
        ('[store]\nchunk_sise = "8MiB"', "store.chunk_sise", "did you mean chunk_size?"),
        ('[origin."s3://"]\nendpoint = "http://h"', 'origin."s3://".endpoint', "did you mean endpoint_url?"),
        ("node = 1", "node", "must be a table"),
        ('[mount]\npromote = "yes"', "mount.promote", "must be 'auto' or 'never'"),
        ("origin = 1", "origin", "must be a table"),
        ("[store]\nchunk_size = 8388608", "store.chunk_size", 'write "8MiB"'),
        ('[store]\nchunk_size = "3MiB"', "store.chunk_size", "a power of two"),
        ('[store]\nchunk_size = "512KiB"', "store.chunk_size", '"1MiB" to "256MiB"'),
        ('[store]\nchunk_size = "512MiB"', "store.chunk_size", '"1MiB" to "256MiB"'),
        ('[store]\nchunk_size = "0B"', "store.chunk_size", '"1MiB" to "256MiB"'),
        ('[store]\ncapacity = "2TB"', "store.capacity", 'write "2TiB"'),
        ('[store]\ncapacity = "90%"', "store.capacity", 'like "8MiB"'),
        ('[store]\ndirectories = "/x"', "store.directories", 'like ["/var/lib/headrace"]'),
        ("[store]\ndirectories = []", "store.directories", "one directory at least"),
        ('[store]\ndirectories = ["/a", "b"]', "store.directories[1]", "begin it with /"),
        ('[store]\ndirectories = ["/a", ""]', "store.directories[1]", "a path in quotes"),
        ("[store]\ndirectories = [1]", "store.directories[0]", "a path in quotes"),
        ('[store]\ndirectories = ["/a/b", "/a"]', "store.directories", "lie in one another"),
        ('[store]\ndirectories = ["/a", "/a/"]', "store.directories", "lie in one another"),
        ('[store]\ndirectories = ["/a\\u0000"]', "store.directories[0]", "NUL"),
        ("[mount]\npatience = 300", "mount.patience", 'write "5min"'),
        ('[mount]\npatience = "0s"', "mount.patience", "longer than nothing"),
        ('[holder]\nsocket = "h.sock"', "holder.socket", "begin it with /"),
        (f'[admin]\nsocket = "/{"a" * 107}"', "admin.socket", "at most 107 bytes"),
        ('[metrics]\nlisten = "9464"', "metrics.listen", 'like "127.0.0.1:9464"'),
        ('[metrics]\nlisten = "host:99999"', "metrics.listen", 'like "127.0.0.1:9464"'),
        ("[metrics]\nlisten = 9464", "metrics.listen", "text in quotes"),
        ('[node]\nname = ""', "node.name", "must not be empty"),
        ('[origin.s3]\nregion = "x"', "origin.s3", '[origin."s3://"]'),
        ('[origin]\nregion = "x"', "origin.region", '[origin."s3://"]'),
        ('[origin."s3://"]\npath_style = "yes"', 'origin."s3://".path_style', "true or false"),
        ('[origin."s3://"]\nmax_connections = "4"', 'origin."s3://".max_connections', "a whole number"),
        ('[origin."s3://"]\nmax_connections = 0', 'origin."s3://".max_connections', "1 or more"),
        ('[origin."s3://"]\nmax_connections = 9999', 'origin."s3://".max_connections', "1024 or less"),
        ('[origin."s3://"]\nmax_bytes_in_flight = "1KiB"', 'origin."s3://".max_bytes_in_flight', '"1MiB"'),
        ('[origin."s3://"]\nendpoint_url = "h:1"', 'origin."s3://".endpoint_url', '"http://127.0.0.1:8333"'),
        ('[origin."s3://"]\nendpoint_url = "http://[:"', 'origin."s3://".endpoint_url', "must be a URL"),
        ('[origin."s3://"]\nendpoint_url = "http://a\\tb"', 'origin."s3://".endpoint_url', "must be a URL"),
        ('[origin."s3://"]\nendpoint_url = "http://a b/"', 'origin."s3://".endpoint_url', "must be a URL"),
        *(
            (
                f'[origin."s3://"]\nendpoint_url = "http://{host}:9000"',
                'origin."s3://".endpoint_url',
                "its IP",
            )
            for host in ("my_minio", "a..b", "-a", "a" * 64, "b\u00fccher", ".".join(["a" * 60] * 5))
        ),
        *(
            (f'[metrics]\nlisten = "{host}:9464"', "metrics.listen", "1 to 63 characters")
            for host in ("a..b", "a" * 64, "a\\u0000b")
        ),
        (PEERS + 'discovery = "static"\naddresses = ["a..b:1"]', "peers.addresses[0]", "1 to 63 characters"),
        (PEERS + 'discovery = "dns"\nname = "a..b"', "peers.name", "1 to 63 characters"),
        ("[store", "configuration", "not TOML"),
        ("[node]\nname = 'a'\nname = 'b'\nx = 1", "configuration", "line 3"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_key_with_the_remedy(text: str, key: str, remedy: str) -> None:
    error = problem(text)
    assert error.key == key
    assert remedy in str(error)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://minio:9000",
            "http://minio.svc.cluster.local.:9000/x",
            "https://s3.example.com",
            "http://[::1]:9",
        ),
        *("http://127.0.0.1:8333", f"http://{'a' * 63}.b"),
        *(
            "http://my_minio:9000",
            "http://a..b",
            "http://-a",
            "http://a-",
            f"http://{'a' * 64}",
            "http://\u00e9",
        ),
    ],
)
def test_an_endpoint_is_refused_where_the_sdk_would_refuse_it(url: str) -> None:
    try:
        parse(f'[origin."s3://"]\nendpoint_url = "{url}"')
    except ConfigError:
        assert not is_valid_uri(url)
    else:
        assert is_valid_uri(url)


@pytest.mark.parametrize(
    "setting",
    ["access_key", "secret_key", "aws_secret_access_key", "token", "password", "session_token", "api_key"],
)
def test_a_credential_is_refused_with_where_it_belongs_and_never_repeated(setting: str) -> None:
    error = problem(f'[origin."s3://"]\n{setting} = "hunter2"')
    assert error.key == f'origin."s3://".{setting}'
    assert "environment" in str(error)
    assert "hunter2" not in str(error)


@pytest.mark.parametrize(
    "text",
    [
        '[origin."s3://"]\nendpoint_url = "http://user:hunter2@host"',
        '[origin."s3://"]\nendpoint_url = "http://host/?X-Amz-Signature=hunter2"',
        '[origin."http://user:hunter2@host/"]\nregion = "x"',
        '[origin."http://user:hunter2@host/"]\nregon = "x"',
        '[origin."s3://"]\nendpoint_url = ["hunter2"]',
        '[origin."s3://"]\nregion = {password = "hunter2"}',
    ],
)
def test_a_credential_in_a_value_or_a_prefix_is_not_repeated(text: str) -> None:
    assert "hunter2" not in str(problem(text))


def test_the_first_problem_alone_is_told() -> None:
    assert problem("[mount]\npatience = 1\n[store]\nchunk_size = 1").key == "store.chunk_size"


@given(
    st.dictionaries(st.sampled_from(["store", "node", "origin", "x"]), st.one_of(st.integers(), st.text()))
)
def test_whatever_stands_at_the_top_is_refused_in_one_line(tree: dict[str, object]) -> None:
    lines = (
        f"{key} = {value if isinstance(value, int) else _quoted(str(value))}" for key, value in tree.items()
    )
    text = "\n".join(lines)
    if tree:
        problem(text)


def _quoted(text: str) -> str:
    return '"' + "".join(f"\\U{ord(char):08x}" for char in text if not 0xD800 <= ord(char) < 0xE000) + '"'


def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config") as caught:
        load(tmp_path / "absent.toml")
    assert caught.value.key == str(tmp_path / "absent.toml")


def test_a_directory_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a directory"):
        load(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(tmp_path / "binary.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load("/" + "a" * 300)


def test_a_file_is_read_and_its_bad_line_named(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(EVERYTHING)
    assert load(path) == parse(EVERYTHING)
    path.write_text("[node]\nname = gpu")
    with pytest.raises(ConfigError, match=r"agent\.toml: this is not TOML: .*line 2"):
        load(path)


def test_a_file_that_the_user_may_not_read_is_named_with_the_remedy(traversable: Path) -> None:
    path = traversable / "agent.toml"
    path.write_text("")
    path.chmod(0o600)
    script = (
        "import os, sys; from agent.config import load; from agent.errors import ConfigError\n"
        "os.setgroups([]); os.setgid(65533); os.setuid(65533)\n"
        "try: load(sys.argv[1])\nexcept ConfigError as error: print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=30, check=True
    )
    assert result.stdout == f"{path}: no permission: let the agent's user read it\n"


def test_a_setting_cannot_be_changed_after_the_start() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().store.chunk_size = 1


def test_the_table_shows_each_setting_with_its_default_as_it_is_written() -> None:
    table = settings_table()
    assert '| `store.chunk_size` | `"8MiB"` | size |' in table
    assert '| `mount.patience` | `"5min"` | duration |' in table
    assert '| `store.directories` | `["/var/lib/headrace"]` | list of paths |' in table
    assert '| `origin."PREFIX".verify_tls` | `true` | true or false |' in table
    assert "None" not in table

"""S3 origins against real servers: SeaweedFS for signatures, moto for keys that SeaweedFS refuses."""

from __future__ import annotations

import gzip
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.config import OriginConfig
from agent.content import ObjectRef
from agent.errors import (
    AccessDenied,
    BadRequest,
    ObjectMissing,
    OriginError,
    OriginUnavailable,
    VersionChanged,
)
from agent.origin.s3 import S3Origin, split_uri
from agent.transfer.request import RangedGet
from tests.harness.moto import MotoS3
from tests.harness.receiver import RecordingEngine
from tests.harness.s3 import SeaweedS3, free_ports
from tests.harness.sink import MemorySink, read_object

AWKWARD = [
    "a b",
    "a+b",
    "a%41",
    "~t",
    "caf\u00e9",
    "cafe\u0301",
    "n\nl",
    "q?x=1#f",
    "x",
    "x/y",
    "d&e=f;g",
    "\u20ac'\"<>",
]
REFUSED_BY_SEAWEED = ["..", "a/../../b", "/abs", "a//b", "s" * 300, "plain"]


def use(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Let the SDK find these credentials and none of the machine's."""
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(home / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket() -> str:
    return f"bucket-{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def receiver() -> AsyncIterator[RecordingEngine]:
    receiver = RecordingEngine()
    yield receiver
    await receiver.close()


@pytest.fixture
async def origin(
    seaweed: SeaweedS3, receiver: RecordingEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[S3Origin]:
    use(seaweed.environment(), monkeypatch, tmp_path)
    origin = S3Origin(OriginConfig(endpoint_url=seaweed.endpoint, deadline=10.0), receiver)
    yield origin
    await origin.close()


@pytest.mark.parametrize("data", [gzip.compress(bytes(3_000_000), mtime=0), b"no gzip at all"])
async def test_an_object_with_a_content_encoding_is_its_stored_bytes(
    seaweed: SeaweedS3, origin: S3Origin, bucket: str, data: bytes
) -> None:
    seaweed.make_bucket(bucket)
    seaweed.client().put_object(Bucket=bucket, Key="t/f", Body=data, ContentEncoding="gzip")
    for uri in (f"s3://{bucket}/t", f"s3://{bucket}/t/f"):
        (entry,) = (await origin.resolve(uri)).entries
        assert entry.ref.size == len(data)
        assert await read_object(origin, entry.ref) == data


async def test_awkward_keys_are_listed_as_stored_and_read(
    seaweed: SeaweedS3, origin: S3Origin, bucket: str
) -> None:
    for key in AWKWARD:
        seaweed.put(bucket, f"t/{key}", key.encode() * 1000)
    dataset = await origin.resolve(f"s3://{bucket}/t")
    assert [entry.path for entry in dataset.entries] == sorted(set(AWKWARD) - {"x"})
    assert [item.key for item in dataset.unmapped] == ["x"]
    for entry in dataset.entries:
        assert await read_object(origin, entry.ref) == entry.path.encode() * 1000
        assert entry.mtime_ns > 0


async def test_keys_that_no_path_can_stand_for_are_kept_exactly(
    moto: MotoS3, receiver: RecordingEngine, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(moto.environment(), monkeypatch, tmp_path)
    etags = {key: moto.put(bucket, key, key.encode()) for key in REFUSED_BY_SEAWEED}
    origin = S3Origin(OriginConfig(endpoint_url=moto.endpoint), receiver)
    try:
        dataset = await origin.resolve(f"s3://{bucket}")
        assert [entry.path for entry in dataset.entries] == ["plain"]
        assert sorted(item.key for item in dataset.unmapped) == sorted(set(REFUSED_BY_SEAWEED) - {"plain"})
        for key, etag in etags.items():
            ref = ObjectRef(f"s3://{bucket}/{key}", etag.strip('"'), len(key))
            assert await read_object(origin, ref) == key.encode()
    finally:
        await origin.close()


async def test_an_object_named_directly_is_a_dataset_of_one_file(
    seaweed: SeaweedS3, origin: S3Origin, bucket: str
) -> None:
    etag = seaweed.put(bucket, "models/weights.bin", b"w" * 5000)
    dataset = await origin.resolve(f"s3://{bucket}/models/weights.bin")
    (entry,) = dataset.entries
    assert (entry.path, entry.ref.size, f'"{entry.ref.version}"') == ("weights.bin", 5000, etag)
    listed = await origin.resolve(f"s3://{bucket}/models/")
    assert listed.entries[0].ref == entry.ref


async def test_a_tree_wins_over_an_object_of_the_same_name(
    seaweed: SeaweedS3, origin: S3Origin, bucket: str
) -> None:
    seaweed.put(bucket, "x", b"file")
    seaweed.put(bucket, "x/y", b"below")
    seaweed.put(bucket, "xz", b"neighbour")
    dataset = await origin.resolve(f"s3://{bucket}/x")
    assert [entry.path for entry in dataset.entries] == ["y"]


async def test_markers_of_empty_directories_become_directories(
    seaweed: SeaweedS3, origin: S3Origin, bucket: str
) -> None:
    seaweed.put(bucket, "t/", b"")
    seaweed.put(bucket, "t/empty/", b"")
    seaweed.put(bucket, "t/f", b"1")
    dataset = await origin.resolve(f"s3://{bucket}/t")
    assert dataset.directories == ("empty",)
    assert [entry.path for entry in dataset.entries] == ["f"]
    assert not dataset.unmapped


async def test_more_keys_than_one_page_are_all_listed(
    seaweed: SeaweedS3, origin: S3Origin, bucket: str
) -> None:
    seaweed.make_bucket(bucket)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: seaweed.put(bucket, f"t/{number:04}", b""), range(1005)))
    dataset = await origin.resolve(f"s3://{bucket}/t")
    assert [entry.path for entry in dataset.entries] == [f"{number:04}" for number in range(1005)]


async def test_what_is_not_there_is_missing_with_a_remedy(
    seaweed: SeaweedS3, origin: S3Origin, bucket: str
) -> None:
    seaweed.make_bucket(bucket)
    with pytest.raises(ObjectMissing, match=r"s3://bucket-\w+/models/llama.*check"):
        await origin.resolve(f"s3://{bucket}/models/llama")
    with pytest.raises(ObjectMissing, match="models/llama"):
        await origin.resolve(f"s3://{bucket}/models/llama/")
    with pytest.raises(ObjectMissing, match="no such bucket"):
        await origin.resolve(f"s3://{bucket}-other/models")


async def test_an_overwritten_object_is_a_changed_version(
    seaweed: SeaweedS3, origin: S3Origin, bucket: str
) -> None:
    seaweed.put(bucket, "f", b"1" * 100)
    ref = (await origin.resolve(f"s3://{bucket}/f")).entries[0].ref
    seaweed.put(bucket, "f", b"2" * 100)
    with pytest.raises(VersionChanged):
        await read_object(origin, ref)
    seaweed.delete(bucket, "f")
    with pytest.raises((ObjectMissing, VersionChanged)):
        await read_object(origin, ref)


async def test_an_answer_of_another_version_is_refused_although_the_server_ignored_if_match(
    seaweed: SeaweedS3, origin: S3Origin, receiver: RecordingEngine, bucket: str
) -> None:
    seaweed.put(bucket, "f", b"1" * 100)
    ref = (await origin.resolve(f"s3://{bucket}/f")).entries[0].ref
    await read_object(origin, ref)
    check = receiver.sent[0].check
    check({"etag": f'"{ref.version}"'})
    with pytest.raises(VersionChanged):
        check({"etag": '"other"'})
    with pytest.raises(VersionChanged):
        check({"etag": f'W/"{ref.version}"'})


async def test_a_range_goes_on_from_the_sink_s_position(
    seaweed: SeaweedS3, origin: S3Origin, bucket: str
) -> None:
    data = bytes(range(256)) * 40
    seaweed.put(bucket, "f", data)
    ref = (await origin.resolve(f"s3://{bucket}/f")).entries[0].ref
    sink = MemorySink(1000, 5000)
    sink.write(memoryview(data[1000:1100]))
    await origin.fetch(ref, sink)
    assert bytes(sink.data) == data[1000:5000]


async def test_wrong_or_missing_credentials_are_told_with_what_to_do(
    seaweed: SeaweedS3,
    receiver: RecordingEngine,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    seaweed.put(bucket, "f", b"1")
    use(seaweed.environment() | {"AWS_SECRET_ACCESS_KEY": "wrong"}, monkeypatch, tmp_path)
    wrong = S3Origin(OriginConfig(endpoint_url=seaweed.endpoint), receiver)
    with pytest.raises(AccessDenied, match="SignatureDoesNotMatch"):
        await wrong.resolve(f"s3://{bucket}/f")
    await wrong.close()
    use({}, monkeypatch, tmp_path)
    none = S3Origin(OriginConfig(endpoint_url=seaweed.endpoint), receiver)
    with pytest.raises(AccessDenied, match="AWS_ACCESS_KEY_ID"):
        await none.resolve(f"s3://{bucket}/f")
    await none.close()


async def test_an_unknown_profile_is_named(
    seaweed: SeaweedS3, receiver: RecordingEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use({}, monkeypatch, tmp_path)
    origin = S3Origin(OriginConfig(endpoint_url=seaweed.endpoint, profile="nowhere"), receiver)
    with pytest.raises(AccessDenied, match="nowhere"):
        await origin.resolve("s3://bucket/f")
    await origin.close()


async def test_credentials_that_were_replaced_in_the_files_are_read_anew(
    seaweed: SeaweedS3,
    receiver: RecordingEngine,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    seaweed.put(bucket, "f", b"1" * 100)
    use({"AWS_DEFAULT_REGION": "us-east-1"}, monkeypatch, tmp_path)
    origin = S3Origin(OriginConfig(endpoint_url=seaweed.endpoint), receiver)
    _credentials_file(tmp_path, seaweed.access_key, seaweed.secret_key)
    ref = (await origin.resolve(f"s3://{bucket}/f")).entries[0].ref
    await origin.close()
    _credentials_file(tmp_path, seaweed.access_key, "old")
    with pytest.raises(AccessDenied):
        await read_object(origin, ref)
    assert len(receiver.sent) == 1
    _credentials_file(tmp_path, seaweed.access_key, seaweed.secret_key)
    assert await read_object(origin, ref) == b"1" * 100
    await origin.close()


async def test_a_web_identity_becomes_credentials_that_sign(
    moto: MotoS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("header.payload.signature")
    identity = {
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/headrace",
        "AWS_ENDPOINT_URL_STS": moto.endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    use(identity, monkeypatch, tmp_path)
    sent = await _what_is_sent(OriginConfig(endpoint_url=moto.endpoint), "s3://models/f")
    assert sent.headers["X-Amz-Security-Token"]
    assert "Credential=ASIA" in sent.headers["Authorization"]


async def test_an_endpoint_that_is_down_is_unavailable(origin: S3Origin, receiver: RecordingEngine) -> None:
    down = S3Origin(OriginConfig(endpoint_url=f"http://127.0.0.1:{free_ports(1)[0]}", deadline=5.0), receiver)
    with pytest.raises(OriginUnavailable, match="does not answer"):
        await down.resolve("s3://bucket/f")
    with pytest.raises(OriginUnavailable):
        await down.fetch(ObjectRef("s3://bucket/f", "v", 10), MemorySink(0, 10))
    await down.close()


async def test_an_endpoint_of_the_environment_that_the_sdk_refuses_is_named(
    receiver: RecordingEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}, monkeypatch, tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://my_minio:9000")
    origin = S3Origin(OriginConfig(region="us-east-1", deadline=5.0), receiver)
    with pytest.raises(OriginError, match=r"cannot be asked .* check .* AWS_ENDPOINT_URL"):
        await origin.resolve("s3://bucket/x")
    await origin.close()


async def test_uris_that_name_no_bucket_are_refused(origin: S3Origin) -> None:
    for uri in ("s3://", "s3:///key", "s4://bucket"):
        with pytest.raises(BadRequest):
            split_uri(uri)
    with pytest.raises(BadRequest):
        await origin.resolve("s3://Bad Bucket!/f")


@pytest.mark.parametrize(
    ("settings", "bucket_name", "host", "target"),
    [
        ({"region": "eu-west-1"}, "models", "models.s3.eu-west-1.amazonaws.com", "/a%20b/c%2Bd"),
        (
            {"region": "eu-west-1"},
            "dotted.models",
            "s3.eu-west-1.amazonaws.com",
            "/dotted.models/a%20b/c%2Bd",
        ),
        (
            {"region": "eu-west-1", "path_style": True},
            "models",
            "s3.eu-west-1.amazonaws.com",
            "/models/a%20b/c%2Bd",
        ),
        (
            {"endpoint_url": "https://s3.example.test:8443"},
            "models",
            "s3.example.test:8443",
            "/models/a%20b/c%2Bd",
        ),
        (
            {"endpoint_url": "https://s3.example.test", "path_style": False},
            "models",
            "models.s3.example.test",
            "/a%20b/c%2Bd",
        ),
    ],
)
async def test_addresses_are_those_of_the_sdk(
    settings: dict[str, object],
    bucket_name: str,
    host: str,
    target: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    use(
        {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "token"},
        monkeypatch,
        tmp_path,
    )
    sent = await _what_is_sent(OriginConfig.model_validate(settings), f"s3://{bucket_name}/a b/c+d")
    assert (sent.headers["Host"], sent.target) == (host, target)
    assert sent.endpoint.scheme == "https"
    assert sent.headers["X-Amz-Security-Token"] == "token"
    assert sent.headers["If-Match"] == '"v"'
    assert sent.headers["Range"] == "bytes=0-9"
    region = settings.get("region", "us-east-1")
    assert f"/{region}/s3/aws4_request" in sent.headers["Authorization"]
    assert "secret" not in repr(sent)


async def test_anonymous_requests_are_not_signed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use({"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}, monkeypatch, tmp_path)
    sent = await _what_is_sent(OriginConfig(anonymous=True, region="us-east-1"), "s3://models/f")
    assert not any(name.lower() in ("authorization", "x-amz-date") for name in sent.headers)
    assert sent.headers["Host"] == "models.s3.amazonaws.com"


class _Recorder:
    """A receiver that keeps what it is asked for and brings nothing."""

    def __init__(self) -> None:
        self.asked: list[RangedGet] = []

    async def receive(self, get: RangedGet, sink: object) -> None:
        self.asked.append(get)


async def _what_is_sent(settings: OriginConfig, uri: str) -> RangedGet:
    recorder = _Recorder()
    origin = S3Origin(settings, recorder)
    await origin.fetch(ObjectRef(uri, "v", 10), MemorySink(0, 10))
    await origin.close()
    return recorder.asked[0]


def _credentials_file(home: Path, key: str, secret: str) -> None:
    lines = ["[default]", f"aws_access_key_id = {key}", f"aws_secret_access_key = {secret}"]
    (home / "credentials").write_text("\n".join(lines))

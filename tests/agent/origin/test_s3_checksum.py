"""What S3 servers state of whole objects, asked of real ones."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import pytest

from agent.config import OriginConfig
from agent.content import ObjectRef
from agent.errors import ObjectMissing, VersionChanged
from agent.origin.s3 import S3Origin, stated
from agent.source import Checksum
from tests.agent.origin.test_s3 import bucket, origin, receiver, use
from tests.harness.moto import MotoS3
from tests.harness.receiver import RecordingEngine
from tests.harness.s3 import SeaweedS3

__all__ = ["bucket", "origin", "receiver"]  # fixtures

DATA = b"hello world" * 1000
EXPECTED = {
    "SHA256": Checksum("sha256", hashlib.sha256(DATA).digest()),
    "SHA1": Checksum("sha1", hashlib.sha1(DATA).digest()),
    "CRC32": Checksum("crc32", zlib.crc32(DATA).to_bytes(4, "big")),
}


def put(server: SeaweedS3 | MotoS3, bucket: str, key: str, algorithm: str) -> ObjectRef:
    server.put(bucket, "first", b"x")  # makes the bucket
    answer = server.client().put_object(Bucket=bucket, Key=key, Body=DATA, ChecksumAlgorithm=algorithm)
    return ObjectRef(f"s3://{bucket}/{key}", answer["ETag"].strip('"'), len(DATA))


@pytest.mark.parametrize("algorithm", EXPECTED)
async def test_seaweed_states_the_checksum_that_an_object_was_put_with(
    seaweed: SeaweedS3, origin: S3Origin, bucket: str, algorithm: str
) -> None:
    assert await origin.checksum(put(seaweed, bucket, "a", algorithm)) == EXPECTED[algorithm]


@pytest.mark.parametrize("algorithm", EXPECTED)
async def test_moto_states_it_too(
    moto: MotoS3,
    receiver: RecordingEngine,
    bucket: str,
    algorithm: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    use(moto.environment(), monkeypatch, tmp_path)
    origin = S3Origin(OriginConfig(endpoint_url=moto.endpoint, deadline=10.0), receiver)
    assert await origin.checksum(put(moto, bucket, "a", algorithm)) == EXPECTED[algorithm]
    await origin.close()


async def test_a_checksum_of_parts_is_none_of_the_whole(
    seaweed: SeaweedS3, origin: S3Origin, bucket: str
) -> None:
    seaweed.make_bucket(bucket)
    client, where = seaweed.client(), {"Bucket": bucket, "Key": "parts"}
    upload = client.create_multipart_upload(**where, ChecksumAlgorithm="SHA256")["UploadId"]
    part = client.upload_part(**where, UploadId=upload, PartNumber=1, Body=DATA, ChecksumAlgorithm="SHA256")
    parts = [{"PartNumber": 1, "ETag": part["ETag"], "ChecksumSHA256": part["ChecksumSHA256"]}]
    done = client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})
    ref = ObjectRef(f"s3://{bucket}/parts", done["ETag"].strip('"'), len(DATA))
    assert await origin.checksum(ref) is None


async def test_the_checksum_is_of_the_version_or_there_is_none(
    seaweed: SeaweedS3, origin: S3Origin, bucket: str
) -> None:
    ref = put(seaweed, bucket, "a", "SHA256")
    seaweed.put(bucket, "a", b"other")
    with pytest.raises(VersionChanged):
        await origin.checksum(ref)
    seaweed.delete(bucket, "a")
    with pytest.raises(ObjectMissing):
        await origin.checksum(ref)


@pytest.mark.parametrize(
    ("head", "found"),
    [
        ({}, None),
        ({"ChecksumCRC32": "AAAAAQ==", "ChecksumType": "FULL_OBJECT"}, Checksum("crc32", b"\0\0\0\1")),
        ({"ChecksumCRC32": "AAAAAQ==", "ChecksumType": "COMPOSITE"}, None),
        ({"ChecksumSHA256": "AAAAAQ==-3"}, None),
        ({"ChecksumCRC64NVME": "AAAAAAAAAAE=", "ChecksumType": "FULL_OBJECT"}, None),
        ({"ChecksumSHA1": "AA==", "ChecksumSHA256": "AQ=="}, Checksum("sha256", b"\1")),
    ],
)
def test_only_what_can_be_made_from_the_bytes_counts(head: dict[str, str], found: Checksum | None) -> None:
    assert stated(head) == found

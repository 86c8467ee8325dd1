"""The S3 server of deploy/local, under the name by which tests know it."""

from __future__ import annotations

from deploy.local.s3 import REGION, SeaweedS3, answers, free_ports, sdk_client, sdk_environment, weed

__all__ = ["REGION", "SeaweedS3", "answers", "free_ports", "sdk_client", "sdk_environment", "weed"]

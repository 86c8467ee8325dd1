"""csi-sanity of kubernetes-csi/csi-test, unmodified, against the real serve, holder, agent and S3 server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from deploy.local.layout import AgentSettings
from deploy.local.mounts import mounts_below
from deploy.local.stack import LocalStack
from tests.csi.controller import Controller, Front, serving
from tests.harness.s3 import SeaweedS3

PROGRAM = Path(sys.executable).parent / "csi-sanity"
WITHIN = 50.0  # seconds; about 3 for each run
CONTROLLER_SPECS = r"\[Controller Server\]|\[GroupController"
URI = "s3://sanity/tree"


@pytest.fixture(scope="module")
def stack(seaweed: SeaweedS3) -> Iterator[LocalStack]:
    seaweed.put("sanity", "tree/a", b"a" * 1000)
    seaweed.put("sanity", "tree/b/c", b"c" * 24)
    with LocalStack(AgentSettings(patience="30s"), s3=seaweed) as running:
        yield running


def sanity(stack: LocalStack, endpoint: str, controller: str, *arguments: str) -> dict[str, str]:
    """Run it; the state of each spec by its name."""
    report = stack.layout.root / "report.json"
    command = [
        *(str(PROGRAM), f"--csi.endpoint={endpoint}", f"--csi.controllerendpoint={controller}"),
        f"--csi.mountdir={stack.layout.targets}/sanity",
        f"--csi.stagingdir={stack.layout.targets}/staging",
        *(f"--ginkgo.json-report={report}", f"--ginkgo.skip={CONTROLLER_SPECS}", *arguments),
    ]
    assert PROGRAM.exists(), "csi-sanity is not installed: run deploy/local/csi_sanity.sh"
    done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    specs = json.loads(report.read_text())[0]["SpecReports"]
    return {
        " ".join([*spec["ContainerHierarchyTexts"], spec["LeafNodeText"]]): spec["State"]
        for spec in specs
        if spec["LeafNodeType"] == "It"
    }


def with_state(specs: dict[str, str], state: str) -> list[str]:
    """Their names, without the Controller specs, which are skipped by name."""
    return sorted(name for name in specs if specs[name] == state and "Controller" not in name)


def test_every_identity_and_node_spec_of_csi_sanity_passes(stack: LocalStack) -> None:
    controller = Controller({"uri": URI})
    with serving(controller, stack.layout.run / "controller.sock") as address:
        specs = sanity(stack, f"unix:{stack.layout.csi_socket}", address)
    passed = with_state(specs, "passed")
    assert len([name for name in passed if name.startswith("Identity Service")]) == 3
    assert "Node Service NodeUnpublishVolume should remove target path" in passed
    assert (
        "Node Service NodeGetVolumeStats should fail when volume does not exist on the specified path"
        in passed
    )
    # What is not served (staging, expansion, health, several writers) csi-sanity leaves out by itself.
    others = ("NodeStage", "NodeUnstage", "NodeExpand", "Health", "multi writer", "should work", "idempotent")
    left_out = with_state(specs, "skipped")
    assert [name for name in left_out if not any(other in name for other in others)] == []
    assert controller.created
    assert list(mounts_below(stack.layout.targets)) == []


def test_the_node_specs_for_drivers_with_a_controller_pass_too(stack: LocalStack) -> None:
    options = [("grpc.default_authority", "localhost")]
    with (
        serving(Controller({"uri": URI}), stack.layout.run / "controller.sock") as controller,
        grpc.insecure_channel(f"unix:{stack.layout.csi_socket}", options=options) as channel,
        serving(Front(channel), stack.layout.run / "front.sock") as front,
    ):
        specs = sanity(stack, front, controller, "--ginkgo.focus=Node Service should (work|be idempotent)")
    assert len(with_state(specs, "passed")) == 2
    assert list(mounts_below(stack.layout.targets)) == []

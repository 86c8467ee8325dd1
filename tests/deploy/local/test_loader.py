"""The demonstration's reader: it knows directories and nothing of Headrace."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy
from safetensors.numpy import save_file

from deploy.local.loader import hashes, load


def test_a_load_counts_every_file_once_and_every_tensor(tmp_path: Path) -> None:
    save_file({"a": numpy.zeros(4), "b": numpy.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/config.json").write_text("{}")
    loaded = load(tmp_path)
    assert (loaded.files, loaded.tensors) == (2, 2)
    assert loaded.bytes == (tmp_path / "model.safetensors").stat().st_size + 2
    assert loaded.seconds > 0


def test_hashes_are_of_every_file_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/file").write_bytes(b"bytes")
    assert hashes(tmp_path) == {"sub/file": hashlib.sha256(b"bytes").hexdigest()}

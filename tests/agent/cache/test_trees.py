"""Trees of hard links on a real directory, made and removed by an ordinary user."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.cache.trees import TreeDirectory, TreeFile, Trees
from agent.errors import StoreFailed

YEAR_2001 = 1_000_000_000_000_000_000  # ns
DIRECTORIES = [TreeDirectory(b"", YEAR_2001 + 5), TreeDirectory(b"d\xff", YEAR_2001 + 4)]


def stored(store: Path, key: str, data: bytes) -> Path:
    path = store / "objects" / key[:2] / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    stored(tmp_path, "aa1", b"one")
    stored(tmp_path, "ab2", b"twotwo")
    return Trees(tmp_path)


FILES = [
    TreeFile(b"one", "aa1", 3, YEAR_2001 + 1),
    TreeFile(b"d\xff/two\n", "ab2", 6, YEAR_2001 + 2),
    TreeFile(b"d\xff/empty", "none", 0, YEAR_2001 + 3),
]


def test_a_tree_has_the_names_modes_times_and_bytes_and_no_copies(trees: Trees, tmp_path: Path) -> None:
    trees.build("t-1", DIRECTORIES, FILES)
    assert trees.names() == ["t-1"]
    root = os.fsencode(tmp_path / "trees" / "t-1" / "root")
    found = {
        os.path.relpath(path, root): (stat.filemode(os.lstat(path).st_mode), os.lstat(path).st_mtime_ns)
        for directory, names, files in os.walk(root)
        for path in (directory, *(os.path.join(directory, name) for name in (*names, *files)))
    }
    assert found == {
        b".": ("dr-xr-xr-x", YEAR_2001 + 5),
        b"one": ("-r--r--r--", YEAR_2001 + 1),
        b"d\xff": ("dr-xr-xr-x", YEAR_2001 + 4),
        b"d\xff/two\n": ("-r--r--r--", YEAR_2001 + 2),
        b"d\xff/empty": ("-r--r--r--", YEAR_2001 + 3),
    }
    assert os.stat(root + b"/one").st_ino == os.stat(tmp_path / "objects/aa/aa1").st_ino
    for above in ("trees", "trees/t-1"):
        assert stat.S_IMODE(os.stat(tmp_path / above).st_mode) == 0o700


def test_a_removed_tree_leaves_the_objects(trees: Trees, tmp_path: Path) -> None:
    trees.build("t-1", DIRECTORIES, FILES)
    trees.remove("t-1")
    trees.remove("t-1")
    assert os.listdir(tmp_path / "trees") == []
    assert (tmp_path / "objects/aa/aa1").read_bytes() == b"one"
    assert os.stat(tmp_path / "objects/aa/aa1").st_nlink == 1


def test_a_tree_is_made_in_place_of_one_of_its_name(trees: Trees, tmp_path: Path) -> None:
    trees.build("t-1", DIRECTORIES, FILES)
    trees.build("t-1", DIRECTORIES[:1], FILES[:1])
    assert os.listdir(tmp_path / "trees" / "t-1" / "root") == ["one"]


@pytest.mark.parametrize(
    "wrong", [TreeFile(b"x", "ff", 1, 0), TreeFile(b"x", "aa1", 4, 0), TreeFile(b"one", "aa1", 3, 0)]
)
def test_what_cannot_be_made_whole_is_not_there(trees: Trees, tmp_path: Path, wrong: TreeFile) -> None:
    with pytest.raises(StoreFailed):
        trees.build("t-1", DIRECTORIES, [*FILES, wrong])
    assert os.listdir(tmp_path / "trees") == []


def test_what_a_crash_left_half_made_is_removed_and_the_rest_stays(trees: Trees, tmp_path: Path) -> None:
    trees.clean()
    trees.build("t-1", DIRECTORIES, FILES)
    trees.build("t-2", DIRECTORIES, FILES)
    (tmp_path / "trees" / "t-2").rename(tmp_path / "trees" / ".t-1")
    trees.clean()
    assert trees.names() == os.listdir(tmp_path / "trees") == ["t-1"]
    assert (tmp_path / "trees" / "t-1" / "root" / "one").read_bytes() == b"one"


def test_an_open_root_is_a_path_only(trees: Trees) -> None:
    trees.build("t-1", DIRECTORIES, FILES)
    root = trees.open_root("t-1")
    assert sorted(os.listdir(f"/proc/self/fd/{root}")) == sorted(["one", os.fsdecode(b"d\xff")])
    os.close(root)
    with pytest.raises(StoreFailed, match="No such file"):
        trees.open_root("t-2")


def test_ten_thousand_files_take_seconds(tmp_path: Path) -> None:
    files = []
    for number in range(10_000):
        key = f"{number % 256:02x}{number}"
        stored(tmp_path, key, b"x")
        files.append(TreeFile(b"f%d" % number, key, 1, YEAR_2001))
    trees = Trees(tmp_path)
    began = time.monotonic()
    trees.build("t-1", DIRECTORIES[:1], files)
    assert time.monotonic() - began < 5
    trees.remove("t-1")


def test_an_ordinary_user_can_make_and_remove_one(traversable: Path) -> None:
    store = traversable / "store"
    store.mkdir()
    os.chown(store, 65534, 65534)
    script = (
        "import pathlib, sys; sys.path.insert(0, sys.argv[2])\n"
        "from agent.cache.trees import *\n"
        "store = pathlib.Path(sys.argv[1]); (store / 'objects/aa').mkdir(parents=True)\n"
        "(store / 'objects/aa/aa1').write_bytes(b'one'); trees = Trees(store)\n"
        "spec = [TreeDirectory(b'', 0), TreeDirectory(b'd', 0)], [TreeFile(b'd/f', 'aa1', 3, 0)]\n"
        "trees.build('t', *spec); trees.build('t', *spec); trees.remove('t')\n"
        "assert trees.names() == []\n"
    )
    reached = "import os, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    # The checkout may be closed to that user: what is needed is imported before.
    preload = "import sys; sys.path.insert(0, sys.argv[2]); import agent.cache.trees\n"
    result = subprocess.run(
        [sys.executable, "-c", preload + reached + script, str(store), str(Path(__file__).parents[3])],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")


def test_trees_that_share_an_object_show_the_time_of_the_one_made_last(trees: Trees, tmp_path: Path) -> None:
    for name, second in (("t-1", 1), ("t-2", 2)):
        trees.build(name, DIRECTORIES[:1], [TreeFile(b"one", "aa1", 3, YEAR_2001 + second)])
    times = {os.stat(tmp_path / "trees" / name / "root" / "one").st_mtime_ns for name in ("t-1", "t-2")}
    assert times == {YEAR_2001 + 2}

from __future__ import annotations

import dataclasses
import random
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.content import (
    NAME_MAX,
    Dataset,
    Entry,
    Extent,
    ListedObject,
    ObjectRef,
    View,
    build_dataset,
    chunk_count,
    chunk_extent,
    chunks_of,
    key_fault,
    listing_revision,
    narrow,
    pattern_fault,
    sub_path_fault,
)

SIZES = st.integers(min_value=0, max_value=1 << 50)
SMALL = st.integers(min_value=0, max_value=2000)
CHUNK_SIZES = st.integers(min_value=1, max_value=300)

# Keys made to collide: few names, odd segments, bytes that are no UTF-8 (as lone surrogates).
SEGMENTS = st.sampled_from(
    ["a", "b", "é", "e\u0301", "", ".", "..", "a\0b", "n\n", "\udcff", "x" * 255, "x" * 256, "ü" * 128]
)
KEYS = st.builds(
    lambda segments, slash: "/".join(segments) + slash,
    st.lists(SEGMENTS, min_size=1, max_size=4),
    st.sampled_from(["", "", "/"]),
)


def listed(key: str, size: int = 1, version: str = "v") -> ListedObject:
    return ListedObject(key, ObjectRef(f"s3://bucket/{key}", version, size))


@given(SMALL, CHUNK_SIZES)
def test_chunks_cover_an_object_once_and_in_order(size: int, chunk_size: int) -> None:
    extents = [chunk_extent(number, size, chunk_size) for number in range(chunk_count(size, chunk_size))]
    assert [extent.offset for extent in extents] == [number * chunk_size for number in range(len(extents))]
    assert all(extent.length == chunk_size for extent in extents[:-1])
    assert sum(extent.length for extent in extents) == size
    assert all(extent.length > 0 for extent in extents)


@given(SIZES, st.integers(min_value=1, max_value=1 << 30), st.integers(min_value=-10, max_value=1 << 51))
def test_a_chunk_that_is_not_there_is_refused(size: int, chunk_size: int, number: int) -> None:
    if 0 <= number < chunk_count(size, chunk_size):
        assert chunk_extent(number, size, chunk_size).end <= size
    else:
        with pytest.raises(IndexError):
            chunk_extent(number, size, chunk_size)


@given(SMALL, SMALL, SMALL, CHUNK_SIZES)
@example(offset=0, length=0, size=100, chunk_size=10)
@example(offset=5, length=0, size=100, chunk_size=10)
@example(offset=10, length=10, size=100, chunk_size=10)
@example(offset=95, length=50, size=100, chunk_size=10)
@example(offset=100, length=1, size=100, chunk_size=10)
def test_the_chunks_of_an_extent_are_those_that_share_a_byte_with_it(
    offset: int, length: int, size: int, chunk_size: int
) -> None:
    chunks = chunks_of(Extent(offset, length), size, chunk_size)
    sharing = {position // chunk_size for position in range(offset, min(offset + length, size))}
    assert set(chunks) == sharing
    assert len(chunks) == len(sharing)


@pytest.mark.parametrize(("offset", "length"), [(-1, 0), (0, -1)])
def test_an_extent_has_no_negative_side(offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="bad extent"):
        Extent(offset, length)


@pytest.mark.parametrize(("version", "size"), [("", 0), ("v", -1)])
def test_an_object_has_a_version_and_a_size(version: str, size: int) -> None:
    with pytest.raises(ValueError, match="s3://b/k"):
        ObjectRef("s3://b/k", version, size)


TEXTS = st.text(alphabet=st.characters(codec=None), max_size=6)


@given(TEXTS, st.text(min_size=1, max_size=6), SIZES, TEXTS, st.text(min_size=1, max_size=6), SIZES)
def test_two_objects_have_one_key_only_where_all_is_the_same(
    uri: str, version: str, size: int, other_uri: str, other_version: str, other_size: int
) -> None:
    if "\0" in uri + version + other_uri + other_version:
        return  # no URI and no version of an origin has a NUL
    one, other = _ref(uri, version, size), _ref(other_uri, other_version, other_size)
    assert (one.key == other.key) == (one == other)
    assert len(one.key) == 32
    assert int(one.key, 16) >= 0


def _ref(uri: str, version: str, size: int) -> ObjectRef:
    """Lone surrogates stand for bytes only in their low half; the rest is no text that an origin can give."""
    return ObjectRef(
        uri.encode("utf-8", "replace").decode(), version.encode("utf-8", "replace").decode(), size
    )


ROWS = st.lists(st.tuples(st.text(max_size=5), SIZES, st.text(max_size=5)), max_size=8)


@given(ROWS, st.randoms(use_true_random=False))
def test_a_revision_is_of_what_is_listed_and_not_of_its_order(
    rows: list[tuple[str, int, str]], shuffler: random.Random
) -> None:
    rows = [(path, size, version) for path, size, version in rows if _encodes(path + version)]
    shuffled = list(rows)
    shuffler.shuffle(shuffled)
    assert listing_revision(shuffled) == listing_revision(rows)


@given(ROWS, ROWS)
def test_two_listings_have_one_revision_only_where_they_are_the_same(
    one: list[tuple[str, int, str]], other: list[tuple[str, int, str]]
) -> None:
    if all(_encodes(path + version) for path, _, version in one + other):
        assert (listing_revision(one) == listing_revision(other)) == (sorted(one) == sorted(other))


def _encodes(text: str) -> bool:
    return not any(0xD800 <= ord(char) < 0xE000 for char in text)


def test_fields_of_a_listing_do_not_run_into_each_other() -> None:
    assert listing_revision([("a", 11, "b")]) != listing_revision([("a1", 1, "b")])
    assert listing_revision([("a", 1, "bc"), ("d", 1, "e")]) != listing_revision(
        [("a", 1, "b"), ("cd", 1, "e")]
    )


def test_a_time_is_shown_and_no_part_of_the_revision() -> None:
    entry = Entry("a", ObjectRef("s3://b/a", "v", 1), mtime_ns=1)
    later = dataclasses.replace(entry, mtime_ns=2)
    assert Dataset("s3://b", (entry,)).revision == Dataset("s3://b", (later,)).revision
    assert Dataset("s3://b", (entry,)).size == 1


@pytest.mark.parametrize("key", ["a", "a/b", "a/", "a b", "é", "\n", "...", "-", "\udcff", "x" * NAME_MAX])
def test_an_ordinary_key_is_a_path(key: str) -> None:
    assert key_fault(key) is None


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("", "empty name"),
        ("/", "empty name"),
        ("//", "absolute"),
        ("/abs", "absolute"),
        ("a//b", "empty segment"),
        ("a//", "empty segment"),
        ("..", "'..'"),
        ("a/../../b", "'..'"),
        ("./a", "'.'"),
        ("a\0b", "NUL"),
        ("a/" + "x" * 256, "more than 255 bytes"),
        ("é" * 128, "more than 255 bytes"),
        ("a/../", "'..'"),
        ("a\ud800", "lone surrogate"),
        ("\udc7f", "lone surrogate"),
    ],
)
def test_a_key_that_can_be_no_path_is_told_why(key: str, fault: str) -> None:
    assert fault in (key_fault(key) or "")


@given(st.text(alphabet=st.characters(codec=None, exclude_categories=[])))
def test_a_key_that_is_a_path_has_bytes_and_any_other_a_reason(key: str) -> None:
    if not key_fault(key):
        assert key.encode("utf-8", "surrogateescape")


@given(st.lists(KEYS, unique=True, max_size=20))
def test_no_path_of_a_dataset_escapes_or_hides_another(keys: list[str]) -> None:
    dataset = build_dataset("s3://bucket", [listed(key, size=0 if key.endswith("/") else 1) for key in keys])
    paths = [entry.path for entry in dataset.entries]
    directories = _directories(dataset)
    assert not directories & set(paths)
    for path in [*paths, *directories]:
        assert not path.startswith("/")
        for name in path.split("/"):
            assert name not in ("", ".", "..")
            assert "\0" not in name
            assert len(name.encode("utf-8", "surrogateescape")) <= NAME_MAX


def _directories(dataset: Dataset) -> set[str]:
    paths = [*dataset.directories, *(entry.path.rpartition("/")[0] for entry in dataset.entries)]
    return {
        "/".join(path.split("/")[:depth]) for path in paths if path for depth in range(1, path.count("/") + 2)
    }


@given(st.lists(KEYS, unique=True, max_size=20))
def test_every_key_is_a_file_a_directory_or_told_with_its_reason(keys: list[str]) -> None:
    dataset = build_dataset("s3://bucket", [listed(key) for key in keys])
    files = {entry.path for entry in dataset.entries}
    told = {item.key for item in dataset.unmapped}
    markers = {key for key in keys if key.endswith("/") and key_fault(key) is None}
    assert files | told | markers == set(keys)
    assert not files & told
    assert all(item.reason for item in dataset.unmapped)
    assert markers <= told  # each of them has bytes here, which nobody can read
    assert {key[:-1] for key in markers} == set(dataset.directories)


@given(st.lists(KEYS, unique=True, max_size=12), st.randoms(use_true_random=False))
def test_a_dataset_does_not_depend_on_the_order_of_the_listing(
    keys: list[str], shuffler: random.Random
) -> None:
    listing = [listed(key) for key in keys]
    dataset = build_dataset("s3://bucket", listing)
    shuffler.shuffle(listing)
    again = build_dataset("s3://bucket", listing)
    assert again == dataset
    assert again.revision == dataset.revision


@given(st.lists(KEYS, unique=True, max_size=12))
def test_odd_keys_take_nothing_from_their_neighbours(keys: list[str]) -> None:
    alone = {key for key in keys if key_fault(key) is None and not key.endswith("/")}
    hidden = {
        key for key in alone if any(other.startswith(f"{key}/") and not key_fault(other) for other in keys)
    }
    dataset = build_dataset("s3://bucket", [listed(key, size=0 if key.endswith("/") else 1) for key in keys])
    assert {entry.path for entry in dataset.entries} == alone - hidden


def test_a_file_beside_its_own_directory_is_left_out_and_told() -> None:
    dataset = build_dataset("s3://bucket", [listed("x"), listed("x/y"), listed("z")])
    assert [entry.path for entry in dataset.entries] == ["x/y", "z"]
    assert [(item.key, "directory" in item.reason) for item in dataset.unmapped] == [("x", True)]


def test_an_empty_directory_is_kept_and_one_with_bytes_is_told() -> None:
    dataset = build_dataset(
        "s3://bucket", [listed("empty/", size=0), listed("full/", size=3), listed("full/a")]
    )
    assert dataset.directories == ("empty", "full")
    assert [item.key for item in dataset.unmapped] == ["full/"]


def test_twins_by_unicode_normalisation_are_two_files() -> None:
    twins = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    dataset = build_dataset("s3://bucket", [listed(key) for key in twins])
    assert {entry.path for entry in dataset.entries} == set(twins)


class TestViews:
    """The part of a dataset that a mount shows."""

    @staticmethod
    def tree(*paths: str) -> Dataset:
        refs = [ListedObject(path, ObjectRef(f"s3://b/{path}", "v", 1)) for path in paths]
        return build_dataset("s3://b", refs)

    def test_the_whole_view_is_the_dataset_itself(self) -> None:
        dataset = self.tree("a", "b/c")
        assert narrow(dataset, View()) is dataset

    def test_a_sub_path_is_the_root_and_matches_whole_names_only(self) -> None:
        dataset = self.tree("a/x", "a/b/y", "ab/z", "a.txt")
        assert [e.path for e in narrow(dataset, View("a")).entries] == ["b/y", "x"]
        assert narrow(dataset, View("a/x")).entries == ()

    @pytest.mark.parametrize(
        ("include", "exclude", "shown"),
        [
            (("*.bin",), (), ["a.bin", "d/b.bin"]),
            (("d/*",), (), ["d/b.bin", "d/c.txt"]),
            (("d/",), (), ["d/b.bin", "d/c.txt"]),
            ((), ("*.bin",), ["A.BIN", "d/c.txt"]),
            (("*.bin",), ("d/",), ["a.bin"]),
            (("?.bin", "[A-Z]*"), (), ["A.BIN", "a.bin"]),
        ],
    )
    def test_patterns_choose_files_at_any_depth(
        self, include: tuple[str, ...], exclude: tuple[str, ...], shown: list[str]
    ) -> None:
        dataset = self.tree("a.bin", "A.BIN", "d/b.bin", "d/c.txt")
        assert [e.path for e in narrow(dataset, View("", include, exclude)).entries] == shown

    def test_empty_directories_follow_the_same_rules(self) -> None:
        dataset = self.tree("d/e/", "d/f/", "g/")
        assert narrow(dataset, View("d")).directories == ("e", "f")
        assert narrow(dataset, View("", (), ("d/f/",))).directories == ("d/e", "g")

    @given(
        st.lists(st.from_regex(r"[abc]{1,2}(/[abc]{1,2}){0,2}", fullmatch=True), max_size=12),
        st.sampled_from(["", "a", "b", "a/b"]),
        st.lists(st.text("abc*?[]!/", min_size=1, max_size=4).filter(lambda p: p[0] != "/"), max_size=3),
        st.lists(st.text("abc*?[]!/", min_size=1, max_size=4).filter(lambda p: p[0] != "/"), max_size=3),
    )
    def test_a_part_has_the_objects_and_the_revision_of_the_whole(
        self, paths: list[str], sub_path: str, include: list[str], exclude: list[str]
    ) -> None:
        dataset = self.tree(*paths)
        part = narrow(dataset, View(sub_path, tuple(include), tuple(exclude)))
        prefix = f"{sub_path}/" if sub_path else ""
        whole = {entry.path: entry for entry in dataset.entries}
        assert part.revision == dataset.revision
        assert all(whole[prefix + entry.path].ref is entry.ref for entry in part.entries)
        assert [entry.path for entry in part.entries] == sorted(entry.path for entry in part.entries)
        complement = narrow(dataset, View(sub_path, (), tuple(include)))
        only = narrow(dataset, View(sub_path, tuple(include)))
        if include:
            everything = {entry.path for entry in narrow(dataset, View(sub_path)).entries}
            assert {e.path for e in only.entries} | {e.path for e in complement.entries} == everything

    @pytest.mark.parametrize("path", ["../x", "/a", "a/", "a//b", "a/./b", "a\0b", "a/" + "x" * 256])
    def test_a_sub_path_that_cannot_be_is_told(self, path: str) -> None:
        assert sub_path_fault(path) is not None

    def test_good_sub_paths_and_patterns_have_no_fault(self) -> None:
        assert [sub_path_fault(path) for path in ("", "a", "a/b")] == [None] * 3
        assert [pattern_fault(one) for one in ("*", "a/", "**/x")] == [None] * 3
        assert [bool(pattern_fault(one)) for one in ("", "/a", "a\0", "x" * 257)] == [True] * 4

"""Mounts are named by what they show, and a record brings everything back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.content import View
from agent.errors import HolderError
from agent.identity import OWN, Credentials, credentials_of
from agent.mount.order import EAGERNESS, MountRecord, Shown

SECRETS = credentials_of("s3://b", {"access_key_id": "key", "secret_access_key": "hush"})
TEXTS = st.text(max_size=8)
VIEWS = st.builds(View, TEXTS, st.lists(TEXTS, max_size=2).map(tuple), st.lists(TEXTS, max_size=2).map(tuple))
SHOWN = st.builds(Shown, TEXTS, TEXTS, VIEWS, st.sampled_from(["", SECRETS.identity]))


@given(SHOWN, SHOWN)
def test_two_mounts_have_one_name_where_they_show_the_same(first: Shown, second: Shown) -> None:
    if "\0" not in first.uri + second.uri:
        assert (first.name == second.name) == (first == second)
    assert len(first.name) <= 64


@given(SHOWN, st.sampled_from(EAGERNESS), st.sampled_from([OWN, SECRETS]))
def test_a_record_comes_back_from_json_as_it_was(
    shown: Shown, prefetch: str, credentials: Credentials
) -> None:
    chosen = next(one for one in EAGERNESS if one == prefetch)
    record = MountRecord(shown, chosen, credentials, None, "fuse", {"later": 1})
    assert MountRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_a_record_of_an_older_release_is_read() -> None:
    record = MountRecord.from_dict({"uri": "s3://b", "revision": "r", "init": None})
    assert record == MountRecord(Shown("s3://b", "r"))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"uri": "s3://b", "revision": "r", "view": [1]},
        {"uri": "s3://b", "revision": "r", "credentials": ["s3", "hush"]},
        {"uri": "s3://b", "revision": "r", "init": {"hush": 1}},
    ],
)
def test_a_record_that_is_not_readable_is_not_shown(wrong: dict[str, object]) -> None:
    with pytest.raises(HolderError) as raised:
        MountRecord.from_dict(wrong)
    assert "hush" not in str(raised.value)
    assert "not readable" in str(raised.value)


def test_no_representation_shows_a_secret() -> None:
    record = MountRecord(Shown("s3://b", "r"), "file", SECRETS, None, "fuse", {"credentials-2": "hush"})
    assert "hush" not in repr(record)
    assert "key" not in repr(record).replace("keys", "")

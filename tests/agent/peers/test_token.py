"""Tokens: good ones, and every way in which one is not."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.peers.secrets import KEEP, LOOK_EVERY, Secrets
from agent.peers.token import LIFETIME, Bound, TokenRefused, Tokens, body_digest
from tests.fakes.clock import ManualClock

SECRET, OTHER = "a-secret-of-the-cluster-" + "1" * 32, "another-secret-" + "2" * 32
HERE = "10.1.0.17:7411"
GET = Bound("GET", "/peer/v1/chunks/0123/7")


def members(directory: Path, clock: ManualClock, name: str, secret: str = SECRET) -> Tokens:
    path = directory / f"secret-of-{name.replace('/', '')}"
    path.write_text(secret + "\n")
    path.chmod(0o600)
    return Tokens(Secrets(path, clock), clock, name)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def sender(tmp_path: Path, clock: ManualClock) -> Tokens:
    return members(tmp_path, clock, "10.1.0.18:7411")


@pytest.fixture
def receiver(tmp_path: Path, clock: ManualClock) -> Tokens:
    return members(tmp_path, clock, HERE)


def refusal(receiver: Tokens, value: str | None, request: Bound = GET, audience: str = HERE) -> str:
    with pytest.raises(TokenRefused) as caught:
        receiver.check(value, audience, request)
    return str(caught.value)


def test_a_good_token_names_its_sender(sender: Tokens, receiver: Tokens) -> None:
    assert receiver.check(sender.issue(HERE, GET), HERE, GET) == "10.1.0.18:7411"


def test_a_name_of_any_characters_goes_through(tmp_path: Path, clock: ManualClock, receiver: Tokens) -> None:
    name = "gpu 17.\u00e9"
    assert receiver.check(members(tmp_path, clock, name).issue(HERE, GET), HERE, GET) == name


def test_no_two_tokens_are_the_same(sender: Tokens) -> None:
    assert sender.issue(HERE, GET) != sender.issue(HERE, GET)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "Headrace",
        "Headrace 1",
        "Headrace 2.a.1.000000000000000000000000." + "A" * 43,
        "Headrace 1.a.1.000000000000000000000000." + "A" * 44,
        "Headrace 1.a.-1.000000000000000000000000." + "A" * 43,
        "Headrace 1.a.\u0661.000000000000000000000000." + "A" * 43,
        "Bearer 1.a.1.000000000000000000000000." + "A" * 43,
        "Headrace 1." + "a" * 5000 + ".1.000000000000000000000000." + "A" * 43,
    ],
)
def test_what_is_no_token_is_refused(receiver: Tokens, value: str | None) -> None:
    assert refusal(receiver, value)


def test_a_token_of_another_secret_is_refused(tmp_path: Path, clock: ManualClock, receiver: Tokens) -> None:
    assert "forged" in refusal(receiver, members(tmp_path, clock, "x", OTHER).issue(HERE, GET))


@given(position=st.integers(0, 200), replacement=st.sampled_from("A1b-_0."))
def test_a_token_of_which_anything_is_changed_is_refused(position: int, replacement: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        clock = ManualClock()
        tokens = members(Path(directory), clock, HERE)
        value = tokens.issue(HERE, GET)
        position %= len(value)
        changed = value[:position] + replacement + value[position + 1 :]
        # The last character of base64 of 32 bytes has two bits that mean nothing.
        if changed != value and position < len(value) - 1:
            refusal(tokens, changed)


def test_a_token_for_another_agent_is_refused(sender: Tokens, receiver: Tokens) -> None:
    assert refusal(receiver, sender.issue("10.1.0.19:7411", GET))


@pytest.mark.parametrize(
    "request_made",
    [
        Bound("POST", GET.target),
        Bound("GET", GET.target + "8"),
        Bound("GET", GET.target + "?x"),
        Bound.of("GET", GET.target, b"body"),
    ],
)
def test_a_token_for_another_request_is_refused(
    sender: Tokens, receiver: Tokens, request_made: Bound
) -> None:
    assert refusal(receiver, sender.issue(HERE, GET), request_made)


def test_a_body_is_bound_by_its_digest(sender: Tokens, receiver: Tokens) -> None:
    asked = Bound.of("POST", "/peer/v1/ask", b"[1]")
    assert asked.body == body_digest(b"[1]")
    value = sender.issue(HERE, asked)
    assert receiver.check(value, HERE, asked)
    assert refusal(receiver, value, Bound.of("POST", "/peer/v1/ask", b"[2]"))


def test_a_token_is_good_for_its_lifetime_and_then_refused_as_old(
    sender: Tokens, receiver: Tokens, clock: ManualClock
) -> None:
    value = sender.issue(HERE, GET)
    clock.advance(LIFETIME)
    receiver.check(value, HERE, GET)
    clock.advance(1)
    assert "61 s old" in refusal(receiver, value)


def test_a_token_from_the_future_is_refused_beyond_what_clocks_differ_by(
    tmp_path: Path, receiver: Tokens, clock: ManualClock
) -> None:
    ahead = ManualClock()
    sender = members(tmp_path, ahead, "ahead")
    ahead.advance(LIFETIME)
    receiver.check(sender.issue(HERE, GET), HERE, GET)
    ahead.advance(1)
    assert "61 s ahead" in refusal(receiver, sender.issue(HERE, GET))


def test_agents_understand_each_other_at_every_moment_of_a_rotation(
    tmp_path: Path, clock: ManualClock
) -> None:
    early, late = members(tmp_path, clock, "early"), members(tmp_path, clock, "late")

    def both_understand() -> None:
        for one, other in ((early, late), (late, early)):
            assert other.check(one.issue(HERE, GET), HERE, GET)

    (tmp_path / "secret-of-early").write_text(OTHER)
    clock.advance(LOOK_EVERY)
    both_understand()
    clock.advance(KEEP / 2)
    both_understand()
    early_again = members(tmp_path, clock, "early", OTHER)
    assert late.check(early.issue(HERE, GET), HERE, GET)
    assert early_again.check(early.issue(HERE, GET), HERE, GET)
    (tmp_path / "secret-of-late").write_text(OTHER)
    clock.advance(LOOK_EVERY)
    both_understand()
    clock.advance(KEEP / 2 - 3 * LOOK_EVERY)
    both_understand()
    clock.advance(KEEP)
    both_understand()
    left_behind = members(tmp_path, clock, "left behind")
    assert refusal(early, left_behind.issue(HERE, GET))


def test_no_message_shows_a_secret_or_a_token(sender: Tokens, receiver: Tokens) -> None:
    value = sender.issue("elsewhere", GET)
    message = refusal(receiver, value)
    assert SECRET not in message
    assert value not in message
    assert SECRET not in repr(sender)

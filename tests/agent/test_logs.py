from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.logs import LEVELS, REDACTED, OneLine, redact, redact_url, set_up

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
QUERY_SECRET = "wJalrXUtnFEMI%2FK7MDENG"

FORMS_WITH_A_SECRET = [
    "http://user:{s}@host/path",
    "https://{q}@host:8333/bucket",
    "s3://AKIAIOSFODNN7EXAMPLE:{s}@bucket/key",
    "redis+tls://:{s}@[::1]:6379/0",
    "GET https://b.s3.amazonaws.com/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={q} failed",
    "https://b/k?x-amz-credential={q}%2Fus-east-1%2Fs3&x=1",
    "https://b/k?X-Amz-Security-Token={q}",
    "https://b/k?AWSAccessKeyId=AKIA&Expires=1&Signature={q}",
    "https://storage/o?X-Goog-Signature={q}&alt=media",
    "https://blob/c?sv=2024&sig={q}&se=2026",
    "https://cdn/o?Policy={q}&Key-Pair-Id=K1",
    "https://hub/o?a=1&token={q}#part",
    "https://hub/o?access_token={q}",
    "https://proxy/?url=https%3A%2F%2Fb%2Fk%3FX-Amz-Signature%3D{q}%26x%3D1",
    "Authorization: Bearer {s}",
    "authorization: AWS4-HMAC-SHA256 Credential={s}/20260101/us-east-1/s3/aws4_request, SignedHeaders=host",
    "Authorization: AWS4-HMAC-SHA256 Credential=x/s3/aws4_request, SignedHeaders=host, Signature={s}",
    "Authorization: Basic {s}",
    "Proxy-Authorization: Basic {s}",
    "headers={{'Authorization': 'Bearer {s}', 'Range': 'bytes=0-1'}}",
    "headers=[(b'Authorization', b'Bearer {s}')]",
    '{{"authorization": "AWS {s}"}}',
    "b'GET / HTTP/1.1\\r\\nAuthorization: AWS {s}\\r\\n'",
    "X-Amz-Security-Token: {s}",
    "x-amz-server-side-encryption-customer-key: {s}",
    "Cookie: session={s}",
    "Set-Cookie: session={s}; Path=/",
    "AWS_SECRET_ACCESS_KEY={s}",
    "aws_secret_access_key = {s}",
    "aws_session_token={s} region=x",
    "{{'aws_secret_access_key': '{s}'}}",
    '{{"SecretAccessKey": "{s}", "Token": "x"}}',
    '{{"Token" : "{s}"}}',
    "Credentials(access_key='x', secret_key='{s}', token=None)",
    "password: {s}",
    "password='{s} with words'",
    'passphrase="{s}"',
    "api_key={s}",
    "api-key: {s}",
    "private_key={s}",
    "sent bearer {s} to the server",
    "-----BEGIN RSA PRIVATE KEY-----\n{s}\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\n{s}",
]


@pytest.mark.parametrize("form", FORMS_WITH_A_SECRET)
def test_a_secret_is_taken_out_of_this_form(form: str) -> None:
    said = redact(form.format(s=SECRET, q=QUERY_SECRET))
    for fragment in ("wJalrXUtnFEMI", "K7MDENG", "bPxRfiCY"):
        assert fragment not in said
    assert REDACTED in said


@pytest.mark.parametrize(
    "secret",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "ASIAIOSFODNN7EXAMPLE",
        "hf_abcdefghijklmnopqrstuvwxyz",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    ],
)
def test_what_only_a_secret_looks_like_is_taken_out_anywhere(secret: str) -> None:
    assert secret not in redact(f"the server said ({secret}) no")


@pytest.mark.parametrize(
    "harmless",
    [
        "s3://models/llama-70b/model-00001-of-00030.safetensors: 503 Slow Down, retry 2 of 5",
        "http://127.0.0.1:8333/bucket/key@v1?list-type=2&prefix=a%2Fb&delimiter=%2F",
        "opened http://[::1]:9464/metrics in 12 ms",
        "key 'tokenizer.json' of 466247 bytes",
        'If-Match: "9b2cf535f27731c974343645a3985328", Range: bytes=0-8388607',
        'Basic read of 1 chunk; store.capacity: write "1GiB"',
        "write to a@b.example",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(harmless: str) -> None:
    assert redact(harmless) == harmless


def test_the_names_around_a_secret_stay() -> None:
    said = redact("GET https://u:p@host/k?X-Amz-Signature=abc&part=2 with token=x failed")
    assert said == (
        f"GET https://{REDACTED}host/k?X-Amz-Signature={REDACTED}&part=2 with token={REDACTED} failed"
    )


def test_a_url_for_people_has_no_user_and_no_value_in_its_query() -> None:
    said = redact_url("https://user:pass@host/a/b?versionId=7&weird=s3cr3t&flag#frag")
    assert said == f"https://{REDACTED}host/a/b?versionId={REDACTED}&weird={REDACTED}&flag={REDACTED}"
    assert redact_url("s3://models/a") == "s3://models/a"


@given(st.text(alphabet=st.characters(categories=["L", "N"]), min_size=8, max_size=40))
def test_any_password_is_taken_out_of_a_setting_and_of_a_url(password: str) -> None:
    secret = "zQ9" + password
    for form in ("password={}", "{{'token': '{}'}}", "http://u:{}@host/", "http://h/?X-Amz-Signature={}&a=b"):
        assert secret not in redact(form.format(secret))


@given(st.text())
def test_redaction_takes_any_text_and_doing_it_twice_changes_nothing(text: str) -> None:
    assert redact(redact(text)) == redact(text)


@pytest.fixture
def logging_restored() -> Iterator[None]:
    root, level = list(logging.root.handlers), logging.root.level
    agent = logging.getLogger("agent").level
    yield
    logging.root.handlers[:] = root
    logging.root.setLevel(level)
    logging.getLogger("agent").setLevel(agent)
    logging.raiseExceptions = True


@pytest.mark.usefixtures("logging_restored")
def test_a_record_is_one_line_with_its_arguments_and_its_traceback_redacted() -> None:
    stream = io.StringIO()
    set_up("debug", stream)
    try:
        raise ValueError(f"no\nhttp://u:{SECRET}@host/")
    except ValueError:
        logging.getLogger("agent.test").exception("asked %s\nwith %s", "http://u:pw@h/", {"token": SECRET})
    assert stream.getvalue().count("\n") == 1
    assert "ERROR agent.test: asked" in stream.getvalue()
    assert "Traceback" in stream.getvalue()
    assert "wJalr" not in stream.getvalue()


@pytest.mark.usefixtures("logging_restored")
@pytest.mark.parametrize("level", LEVELS)
def test_the_level_counts_for_the_agent_and_libraries_speak_from_warnings_on(level: str) -> None:
    stream = io.StringIO()
    set_up(level, stream)
    for said in LEVELS:
        logging.getLogger("agent.x").log(logging.getLevelName(said.upper()), "agent %s", said)
        logging.getLogger("botocore").log(logging.getLevelName(said.upper()), "library %s", said)
    assert stream.getvalue().count("agent.x: ") == len(LEVELS) - LEVELS.index(level)
    assert stream.getvalue().count("botocore: ") == 2


@pytest.mark.usefixtures("logging_restored")
def test_a_record_that_cannot_be_formatted_shows_its_arguments_nowhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stream = io.StringIO()
    set_up("info", stream)
    logging.getLogger("agent").info("%d bytes", SECRET)
    captured = capsys.readouterr()
    assert SECRET not in captured.err + captured.out + stream.getvalue()


def test_other_line_separators_do_not_break_a_record_either() -> None:
    record = logging.LogRecord("agent", logging.INFO, "", 0, "key 'a\u2028b\rc\x0bd'", None, None)
    assert len(OneLine().format(record).splitlines()) == 1

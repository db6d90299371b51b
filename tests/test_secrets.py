"""No secret leaves this process in a journal, message or command line."""

import base64
import re
from urllib.parse import quote

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lightning_loggers.notices import Notices
from lightning_loggers.secrets import has_secret, mask, secrets_of_uri, strip_uri

# Marked so that a piece of the secret is told from the rest of the URI, with any character between the marks.
SECRET = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20).map(
    lambda inner: f"Qz7{inner}Zq9"
)
QUOTED = SECRET.map(lambda secret: quote(secret, safe=""))
SCHEMES = st.sampled_from(["http", "https", "postgresql", "mysql+pymysql", "s3", "HTTPS"])
PATHS = st.sampled_from(["", "/", "/a/b", ":5000", ":5000/a", ":5000/a?x=1", "/a?x=1&y=2#frag"])


def leaks(text: str) -> bool:
    """Whether either end of the secret is in the text."""
    return "Qz7" in text or "Zq9" in text


@settings(max_examples=400)
@given(SCHEMES, st.one_of(st.just(""), QUOTED), QUOTED, PATHS)
def test_user_and_password_never_remain(scheme: str, user: str, password: str, path: str) -> None:
    """Whatever a user name and password are, a URI loses both and keeps everything else."""
    for userinfo in (f"{user}:{password}", password):
        uri = f"{scheme}://{userinfo}@host{path}"
        assert strip_uri(uri) == f"{scheme}://host{path}"
        assert has_secret(uri)
        assert not leaks(mask(f"cannot reach {uri}, giving up"))


@settings(max_examples=400)
@given(st.sampled_from(["http", "https", "postgresql"]), SECRET, PATHS)
def test_unquoted_password_never_remains(scheme: str, password: str, path: str) -> None:
    """A password with characters that should have been quoted is removed, too."""
    # With an "@" before a "/", what follows is another URI's path to every parser.
    assume(not re.search(r"@.*[/?#]", password, re.DOTALL))
    uri = f"{scheme}://ann:{password}@host{path}"
    assert not leaks(strip_uri(uri))
    assert not leaks(mask(uri, secrets_of_uri(uri)))


@settings(max_examples=200)
@given(SECRET, st.sampled_from(["token", "access_token", "api_key", "password", "X-Amz-Signature", "to%6ben", "PWD"]))
def test_secret_query_values_never_remain(secret: str, name: str) -> None:
    """A query value of a secret's name is removed from the query or fragment, the other values stay as spelt."""
    value = quote(secret, safe="")
    for uri in (f"https://host/p?x=a%20b&{name}={value}&y=c+d", f"https://host/p?x=a%20b&y=c+d#{name}={value}"):
        assert strip_uri(uri) == "https://host/p?x=a%20b&y=c+d"
        assert not leaks(mask(f"{value} or {secret} is wrong", secrets_of_uri(uri)))


@pytest.mark.parametrize(
    ("uri", "stripped"),
    [
        ("postgresql://ann:12/Qz7@host/db", "postgresql://host/db"),
        ("http://ann:Qz7/w@host/x", "http://host/x"),
        ("http://ann:[Qz7@host/?token=Qz7", "http://host/"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3DQz7%3B", "mssql+pyodbc:///"),
        ("https://host/?callback=http%3A%2F%2Fann%3AQz7%40other&x=1", "https://host/?x=1"),
    ],
)
def test_odd_spellings_lose_their_secret(uri: str, stripped: str) -> None:
    """Spellings that some driver takes, or that no parser does, do not carry their secret through."""
    assert strip_uri(uri) == stripped
    assert not leaks(mask(uri, secrets_of_uri(uri)))


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///runs/mlflow.db", "sqlite:////a/b@c.db", "http://h:5000/a@b", "http://h/epoch@3", "databricks",
        "http://[::1]:5000/a@b", "file:///a/b", "s3://bucket/epoch@3", "http://h:5000?x=a:b@c", "/a/b@c:d", "a?b#c",
        "https://h/?author=ann&x=",
    ],
)  # fmt: skip
def test_what_holds_no_secret_is_unchanged(uri: str) -> None:
    """A URI or path without a secret comes out letter by letter as it went in."""
    assert strip_uri(uri) == uri
    assert not has_secret(uri)
    assert mask(uri) == uri


def test_a_secret_is_masked_in_every_spelling() -> None:
    """A library that repeats a password unquoted, quoted, or as HTTP's basic authentication shows none of it."""
    known = secrets_of_uri("https://ann:p%40ss%2Fword@host/")
    basic = base64.b64encode(b"ann:p@ss/word").decode()
    text = mask(f"p@ss/word, p%40ss%2Fword, Authorization: Basic {basic}", known)
    assert text == "***, ***, Authorization: Basic ***"


def test_environment_secrets_are_masked_and_paths_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of secret-looking variables are masked, the working directory in ``PWD`` is not."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "tok-123456")
    monkeypatch.setenv("SOME_URI", "https://ann:hunter2-long@host/")
    monkeypatch.setenv("SERVICE_AUTH", "https://x/abc")
    monkeypatch.setenv("PWD", "/work/run-folder")
    text = mask("tok-123456 hunter2-long https://x/abc: lightning-loggers sync /work/run-folder/1", {""})
    assert text == "*** *** ***: lightning-loggers sync /work/run-folder/1"


@settings(max_examples=200)
@given(st.text(), st.sets(st.text(max_size=5), max_size=3))
def test_mask_and_strip_take_any_text(text: str, known: set[str]) -> None:
    """No text makes masking or stripping raise, and stripping twice is stripping once."""
    mask(text, known)
    secrets_of_uri(text)
    assert strip_uri(strip_uri(text)) == strip_uri(text)


def test_a_cause_is_told_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """The first report of a cause is logged, later ones are only counted."""
    notices = Notices()
    assert notices.tell_once("cause", "100 % told")
    assert not notices.tell_once("cause", "told again")
    assert caplog.messages == ["100 % told"]
    assert notices.count("cause") == 2


def test_causes_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Past a few thousand different causes nothing more is logged or remembered one by one, all are still counted."""
    notices = Notices()
    told = sum(notices.tell_once(number, "something") for number in range(10_000))
    assert told == len(caplog.messages) == 4096
    others = [cause for cause in notices._counts if isinstance(cause, str) and re.search("past the first", cause)]
    assert notices.count(others[0]) == 10_000 - 4096


def test_a_broken_handler_does_not_raise() -> None:
    """A logging handler that raises does not reach the one who tells."""
    import logging

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("broken handler")

    handler = Broken()
    logging.getLogger("lightning_loggers").addHandler(handler)
    try:
        assert not Notices().tell_once("cause", "message")
    finally:
        logging.getLogger("lightning_loggers").removeHandler(handler)

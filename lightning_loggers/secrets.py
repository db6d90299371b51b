"""Keeping secrets out of journals, messages and command lines."""

import base64
import os
import re
from typing import NamedTuple
from urllib.parse import unquote, unquote_plus

_SECRET_NAME = re.compile(
    r"(token|passw|passwd|pwd|secret|api_?key|access_?key|private_?key|credential|auth(?!or)|signature|^sig$)",
    re.IGNORECASE,
)
_NO_SECRET_NAME = re.compile(r"^(OLD)?PWD$|_(FILE|PATH|DIR|SOCK)$")
_SCHEME = r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.\-]*://)"
_URI = re.compile(_SCHEME + r"(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<query>\?[^#]*)?(?P<fragment>#.*)?", re.DOTALL)
_HTTP = frozenset({"http://", "https://"})
# User and password as libraries take them although they should have been quoted: with a slash, or anything else.
_UNQUOTED = re.compile(_SCHEME + r"(?P<user>[^:/@\s\[]*:(?!\d+(?:[/?#]|$)).*)@(?P<rest>[^@]*)", re.DOTALL)
_UNQUOTED_DATABASE = re.compile(_SCHEME + r"(?P<user>[^:/@\[]*:.*)@(?P<rest>[^@]*)", re.DOTALL)
_USERINFO_IN_TEXT = re.compile(_SCHEME + r"[^/\s'\"?#]*@")
_UNQUOTED_IN_TEXT = re.compile(_SCHEME + r"[^:/@\s\[]*:(?!\d+(?:[/?#\s'\"]|$))[^\s]*@")
_MASK = "***"
_MIN_SECRET_LENGTH = 6


class _Parts(NamedTuple):
    scheme: str
    user: str | None
    host: str
    path: str
    query: str
    fragment: str


def _split(uri: str) -> _Parts | None:
    """The parts of a URI, everything kept as it is spelt; ``None`` if it has no authority."""
    match = _URI.fullmatch(uri)
    if match is None:
        return None
    scheme, user = match["scheme"], None
    if "@" not in match["authority"]:
        unquoted = (_UNQUOTED if scheme.lower() in _HTTP else _UNQUOTED_DATABASE).fullmatch(uri)
        if unquoted is not None:
            user = unquoted["user"]
            match = _URI.fullmatch(scheme + unquoted["rest"])
            assert match is not None
    authority = match["authority"]
    if "@" in authority:
        user, _, authority = authority.rpartition("@")
    return _Parts(scheme, user, authority, match["path"], match["query"] or "", match["fragment"] or "")


def _is_secret(item: str) -> bool:
    """Whether ``name=value`` of a query is a secret, or carries one inside (an ODBC connection string)."""
    name, _, value = item.partition("=")
    inner = unquote_plus(value)
    return bool(
        _SECRET_NAME.search(unquote_plus(name))
        or any(_SECRET_NAME.search(part.partition("=")[0].strip()) for part in inner.split(";") if "=" in part)
        or _USERINFO_IN_TEXT.search(inner)
        or _UNQUOTED_IN_TEXT.search(inner)
    )


def _open_items(query: str) -> str:
    """A query or fragment, with its ``?`` or ``#``, less the secret items."""
    if not query:
        return ""
    if "=" not in query:
        return query
    kept = [item for item in query[1:].split("&") if not _is_secret(item)]
    return query[0] + "&".join(kept) if kept else ""


def strip_uri(uri: str) -> str:
    """A URI without user, password and secret query values; everything else as it was.

    >>> strip_uri("https://ann:pw@host:5000/path?token=abc&x=1")
    'https://host:5000/path?x=1'
    >>> strip_uri("sqlite:///runs/mlflow.db")
    'sqlite:///runs/mlflow.db'
    """
    parts = _split(uri)
    if parts is None:
        return uri
    return parts.scheme + parts.host + parts.path + _open_items(parts.query) + _open_items(parts.fragment)


def has_secret(uri: str) -> bool:
    """Whether :func:`strip_uri` would remove something."""
    return strip_uri(uri) != uri


def secrets_of_uri(uri: str) -> set[str]:
    """The secret parts of a URI, to be masked wherever a library repeats them.

    Each as it is spelt, unquoted, and as the header of HTTP's basic authentication has it.

    >>> sorted(secrets_of_uri("https://ann:p%40w@host/?token=abc"))
    ['YW5uOnBAdw==', 'abc', 'ann:p%40w', 'ann:p@w', 'p%40w', 'p@w']
    """
    parts = _split(uri)
    if parts is None:
        return set()
    found = set()
    if parts.user is not None:
        found |= {parts.user, parts.user.partition(":")[2]}
        found.add(base64.b64encode(unquote(parts.user).encode(errors="replace")).decode())
    for item in [*parts.query[1:].split("&"), *parts.fragment[1:].split("&")]:
        if _is_secret(item):
            found.add(item.partition("=")[2])
    found |= {unquote(item) for item in found}
    return {item for item in found if item}


def mask(text: str, known: frozenset[str] | set[str] = frozenset()) -> str:
    """Mask in ``text`` the user part of any URI, values of secret-looking environment variables, and ``known`` ones.

    >>> mask("cannot reach http://ann:pw@host/ with s3cr3t", {"s3cr3t"})
    'cannot reach http://***@host/ with ***'
    """
    hidden = {item for item in known if item}
    for name, value in os.environ.items():
        if "://" in value:
            hidden |= {item for item in secrets_of_uri(value) if len(item) >= _MIN_SECRET_LENGTH}
        if len(value) >= _MIN_SECRET_LENGTH and _SECRET_NAME.search(name) and not _NO_SECRET_NAME.search(name):
            hidden.add(value)
    for secret in sorted(hidden, key=len, reverse=True):
        text = text.replace(secret, _MASK)
    text = _USERINFO_IN_TEXT.sub(rf"\g<scheme>{_MASK}@", text)
    return _UNQUOTED_IN_TEXT.sub(rf"\g<scheme>{_MASK}@", text)

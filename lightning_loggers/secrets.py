"""Keeping secrets out of journals, messages and command lines."""

import os
import re
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

_SECRET_NAME = re.compile(r"(token|passw|passwd|pwd|secret|api_?key|access_?key|credential|auth)", re.IGNORECASE)
_USERINFO = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.\-]*://)[^/@\s'\"]+@")
_MASK = "***"
_MIN_SECRET_LENGTH = 6


def strip_uri(uri: str) -> str:
    """A URI without user, password and secret query values.

    >>> strip_uri("https://ann:pw@host:5000/path?token=abc&x=1")
    'https://host:5000/path?x=1'
    >>> strip_uri("sqlite:///runs/mlflow.db")
    'sqlite:///runs/mlflow.db'
    """
    if "@" not in uri and "?" not in uri:
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError:
        return _USERINFO.sub(r"\g<scheme>", uri)
    query = urlencode([(k, v) for k, v in parse_qsl(parts.query, keep_blank_values=True) if not _SECRET_NAME.search(k)])
    stripped = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, parts.fragment))
    if not parts.netloc and "://" in uri and "://" not in stripped:  # urlunsplit drops the empty authority
        stripped = stripped.replace(":", "://", 1)
    return stripped


def has_secret(uri: str) -> bool:
    """Whether :func:`strip_uri` would remove something."""
    return strip_uri(uri) != uri


def secrets_of_uri(uri: str) -> set[str]:
    """The secret parts of a URI, to be masked wherever a library repeats them."""
    try:
        parts = urlsplit(uri)
        found = {parts.password or "", parts.netloc.rpartition("@")[0]}
        found |= {value for key, value in parse_qsl(parts.query) if _SECRET_NAME.search(key)}
    except ValueError:
        return set()
    return {item for item in found if item}


def mask(text: str, known: frozenset[str] | set[str] = frozenset()) -> str:
    """Mask in ``text`` the user part of any URI, values of secret-looking environment variables, and ``known`` ones.

    >>> mask("cannot reach http://ann:pw@host/ with s3cr3t", {"s3cr3t"})
    'cannot reach http://***@host/ with ***'
    """
    text = _USERINFO.sub(rf"\g<scheme>{_MASK}@", text)
    hidden = {v for k, v in os.environ.items() if _SECRET_NAME.search(k) and len(v) >= _MIN_SECRET_LENGTH} | set(known)
    for secret in sorted(hidden, key=len, reverse=True):
        text = text.replace(secret, _MASK)
    return text

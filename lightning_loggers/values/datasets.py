"""Datasets: what a run was trained on, described. The data itself is not copied; log a file as an artifact for that."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from lightning_loggers.errors import UnsuitableValueError
from lightning_loggers.values import arrays
from lightning_loggers.values.plain import plain_json
from lightning_loggers.values.snapshots import Encoded, Ready, Snapshot, as_path, unsuitable

ACCEPTED = (
    "an mlflow.data dataset, a torch or Hugging Face dataset, a data loader, a data frame, an array, a mapping that "
    "describes it, or the path or URI of its source"
)
_SAMPLED = 1_000
"""Rows of an array that its digest is made of, spread over all of it, beside shape and type."""


def snapshot(
    value: Any, identifier: str, *, context: str = "training", source: str | None = None, digest: str | None = None
) -> Snapshot:
    """Describe a dataset: name, digest, source, schema, profile (MLflow's words for them).

    Args:
        value: See :data:`ACCEPTED`.
        identifier: Its name.
        context: What it is used for.
        source: Where it came from, a path or URI.
        digest: Tells it from others of its name; by default made of what is known of it.

    Raises:
        UnsuitableValueError: If it is none of what is accepted.
    """
    described = _described(value, identifier)
    described["name"] = identifier
    if source is not None:
        described["source"] = str(source)
    if digest is not None:
        described["digest"] = str(digest)
    if not described.get("digest"):
        known = json.dumps(described, sort_keys=True).encode()
        described["digest"] = hashlib.sha256(known).hexdigest()[:8]
    return Ready(Encoded(value={**described, "context": str(context)}))


def _described(value: Any, identifier: str) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    path = as_path(value)
    if path is not None:
        described: dict[str, Any] = {"source": str(value)}
        if path.is_file():
            status = path.stat()
            described["profile"] = {"size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        return described
    if callable(getattr(value, "to_dict", None)) and hasattr(value, "digest") and hasattr(value, "source"):  # MLflow's
        return {str(key): _parsed(item) for key, item in value.to_dict().items()}
    kind = {"class": f"{type(value).__module__}.{type(value).__qualname__}"}
    if hasattr(value, "dataset") and hasattr(value, "batch_size"):
        return {**_described(value.dataset, identifier), "batch_size": plain_json(value.batch_size)}
    if hasattr(value, "dtypes") and hasattr(value, "columns"):
        columns = value.columns
        types = [str(item) for item in (value.dtypes.values() if isinstance(value.dtypes, Mapping) else value.dtypes)]
        schema = dict(zip(map(str, columns), types, strict=False))
        return {**kind, "schema": schema, "profile": {"num_rows": len(value)}}
    if hasattr(value, "features") and hasattr(value, "num_rows"):  # Hugging Face
        schema = {str(name): str(feature) for name, feature in value.features.items()}
        made = {**kind, "schema": schema, "profile": {"num_rows": int(value.num_rows)}}
        return {**made, "digest": str(value._fingerprint)[:36]} if hasattr(value, "_fingerprint") else made
    if arrays.shape_of(value) is not None:
        return {**kind, **_of_array(value, identifier)}
    if hasattr(value, "__getitem__") or hasattr(value, "__iter__"):
        try:
            length: int | None = len(value)
        except TypeError:
            length = None
        return {**kind, "profile": {"num_rows": length}}
    raise unsuitable("dataset", identifier, f"a {kind['class']}", ACCEPTED)


def _of_array(value: Any, identifier: str) -> dict[str, Any]:
    try:
        array, _ = arrays.view(value)
    except UnsuitableValueError as error:
        raise unsuitable("dataset", identifier, str(error), ACCEPTED) from None
    rows = np.atleast_1d(array)
    sampled = rows[:: max(1, len(rows) // _SAMPLED)]
    digest = hashlib.sha256(f"{rows.shape} {rows.dtype}".encode() + np.ascontiguousarray(sampled).tobytes())
    schema = {"shape": list(array.shape), "dtype": str(array.dtype)}
    return {"schema": schema, "profile": {"num_rows": len(rows)}, "digest": digest.hexdigest()[:8]}


def _parsed(item: Any) -> Any:
    try:
        return json.loads(item) if isinstance(item, str) and item[:1] in "{[" else plain_json(item)
    except ValueError:
        return str(item)

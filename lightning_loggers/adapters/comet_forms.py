"""Values in the words of Comet's SDK: what its calls make of boxes, histograms, tables, data sets and models."""

import csv
import io
import itertools
import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from lightning_loggers.adapters.comet_sdk import MAX_VALUE
from lightning_loggers.adapters.image_details import rectangles


def annotations(boxes: Mapping[str, Any], size: tuple[int, int]) -> list[dict[str, Any]]:
    """Boxes as Comet's annotations of an image, a layer each.

    Args:
        boxes: As W&B has them.
        size: Width and height of the image, pixels.

    >>> corners = {"minX": 0, "maxX": 0.5, "minY": 0, "maxY": 1}
    >>> annotations({"truth": {"box_data": [{"position": corners, "box_caption": "cat"}]}}, (8, 4))
    [{'name': 'truth', 'data': [{'label': 'cat', 'boxes': [[0.0, 0.0, 4.0, 4.0]]}]}]
    """
    return [
        {
            "name": layer or "boxes",
            "data": [
                {
                    "label": box.label,
                    **({} if box.score is None else {"score": box.score}),
                    **({"metadata": box.more} if set(box.more) - {"box_caption"} else {}),
                    "boxes": [[box.x, box.y, box.width, box.height]],
                }
                for box in found
            ],
        }
        for layer, found in rectangles(boxes, size).items()
    ]


def histograms(value: Any, sdk: SimpleNamespace) -> dict[str, bytes]:
    """The histograms of a record as Comet draws them: the middle of each bin counts as often as the bin.

    Args:
        value: Of the record: ``counts`` and ``bins`` by name.
        sdk: comet_ml's parts.
    """
    made = {}
    for name, bins in (value or {}).items():
        edges, counts = bins.get("bins") or [], bins.get("counts") or []
        middles = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
        pairs = [(middle, count) for middle, count in zip(middles, counts, strict=False) if count]
        if pairs:
            histogram = sdk.Histogram()
            histogram.add([middle for middle, _ in pairs], counts=[count for _, count in pairs])
            made[name] = json.dumps(histogram.to_json()).encode()
    return made


def csv_of(table: Mapping[str, Any]) -> bytes:
    r"""A table as Comet's own panels read it; without a value a cell is empty.

    >>> csv_of({"columns": ["a", "b"], "data": [[1, None], ["x,y", 0.5]]})
    b'a,b\n1,\n"x,y",0.5\n'
    """
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(table["columns"])
    writer.writerows(table["data"])
    return written.getvalue().encode(errors="backslashreplace")


def dataset_info(described: Any) -> str:
    """A data set in the one line that the SDK's ``log_dataset_info`` makes of name, version and path.

    >>> dataset_info({"name": "photos", "digest": "1f", "source": "s3://bucket/photos"})
    'photos-1f, s3://bucket/photos'
    """
    known = described if isinstance(described, Mapping) else {}
    name = "-".join(str(known[part]) for part in ("name", "digest") if known.get(part))
    source = known.get("source")
    info = ", ".join(part for part in (name, source if isinstance(source, str) else "") if part)
    return info if len(info) <= MAX_VALUE else f"{info[: MAX_VALUE - 3]}..."


def graph_text(described: Any) -> str:
    """The modules of a model as torch prints it, which is the graph that the SDK makes of a model.

    Args:
        described: ``modules``, with ``name``, ``type`` and, for those without modules inside, ``settings``.

    >>> modules = [{"name": "", "type": "Net"}, {"name": "fc", "type": "Linear", "settings": "in_features=4"}]
    >>> print(graph_text({"modules": modules}))
    Net(
      (fc): Linear(in_features=4)
    )
    """
    modules = described.get("modules") if isinstance(described, Mapping) else None
    if not isinstance(modules, list):
        return ""
    inside: dict[str, list[Mapping[str, Any]]] = {}
    for module in modules:
        if module["name"]:
            inside.setdefault(module["name"].rpartition(".")[0], []).append(module)

    def lines_of(module: Mapping[str, Any]) -> list[str]:
        children = inside.get(module["name"], ())
        if not children:
            return [f"{module['type']}({module.get('settings') or ''})"]
        lines = [f"{module['type']}("]
        for child in children:
            first, *rest = lines_of(child)
            lines += [f"  ({child['name'].rpartition('.')[2]}): {first}", *(f"  {line}" for line in rest)]
        return [*lines, ")"]

    return "\n".join(line for module in modules if not module["name"] for line in lines_of(module))

"""(h) ``merge_dicts`` beside Lightning's, both with ``numpy.mean``, and as Lightning's is called without a function."""

import numpy as np
from lightning.pytorch.loggers.logger import merge_dicts as lightning_merge_dicts

from benchmarks.measure import interleaved
from lightning_loggers import merge_dicts


def table(repeats: int, number: int) -> list[str]:
    """Times faster than Lightning's, for flat dictionaries of plain floats."""
    counts = (1, 2, 5, 10, 50)
    rows = ["| keys | " + " | ".join(f"{count} dicts" for count in counts) + " |", "| --- " * (len(counts) + 1) + "|"]
    rng = np.random.default_rng(0)
    for width in (5, 20, 100):
        cells, by_default = [], []
        for count in counts:
            # Names that a program writes down are the same strings in every dictionary.
            names = [f"metric/{index}" for index in range(width)]
            dicts = [dict(zip(names, map(float, rng.random(width)), strict=True)) for _ in range(count)]
            found = interleaved(
                {
                    "ours": lambda dicts=dicts: merge_dicts(dicts),  # type: ignore[misc]
                    "theirs": lambda dicts=dicts: lightning_merge_dicts(dicts, None, np.mean),  # type: ignore[misc]
                    "by default": lambda dicts=dicts: lightning_merge_dicts(dicts),  # type: ignore[misc]
                },
                repeats,
                number,
            )
            cells.append(f"{found['theirs'].median / found['ours'].median:.1f}")
            by_default.append(f"{found['by default'].median / found['ours'].median:.1f}")
        rows.append(f"| {width} | " + " | ".join(cells) + " |")
        rows.append(f"| {width}, theirs with its default, `statistics.mean` | " + " | ".join(by_default) + " |")
    return rows

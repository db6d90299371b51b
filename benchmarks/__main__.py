"""``python -m benchmarks [--quick]``: print what logging costs on this machine, as Markdown."""

import argparse
import os
import platform

from benchmarks import log_path, merging, outage


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only see that everything runs")
    quick = parser.parse_args().quick
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("\n".join(log_path.cost(3, 500) if quick else log_path.cost(15, 20_000)), "\n")
    print("\n".join(merging.table(3, 5) if quick else merging.table(15, 200)), "\n")
    if quick:
        return
    print("\n".join(log_path.growth(1_000_000)), "\n")
    print("\n".join(outage.table(60, 20)))


if __name__ == "__main__":
    main()

"""``python -m lightning_loggers`` is ``lightning-loggers``."""

import sys

from lightning_loggers.cli import main

if __name__ == "__main__":
    sys.exit(main())

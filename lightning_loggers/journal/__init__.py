"""The journal: every record of a run on disk before its log call returns.

:func:`read` is the way in for a person's own analysis; the rest is for the writing and delivering halves.
"""

from lightning_loggers.journal.reader import Damage, read

__all__ = ["Damage", "read"]

"""What this package raises, and never into a training step.

Everything here is raised in a constructor, on the command line or from a reader; a log call counts and tells instead.
The exceptions to that are asked for by the user: :class:`NonFiniteError`, and ``log(..., strict=True)``.

::

    LightningLoggersError
    ├── ConfigurationError          a constructor argument or command line option that cannot work
    │   └── MissingDependencyError  an SDK or library that was asked for is not installed
    ├── JournalError                a journal that cannot be read or written at all
    │   ├── JournalFormatError      written by a newer version of this package, or no journal
    │   └── JournalLockedError      another live process is its writer (or is delivering it)
    ├── TrackerUnavailableError     the tracker did not answer within the bounded time of a call that needs it
    ├── UnsuitableValueError        a value of the wrong shape, rate or type, logged with ``strict=True``
    └── NonFiniteError              a metric was NaN or infinite, which ``LogPolicy(nonfinite="raise")`` refuses
"""


class LightningLoggersError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigurationError(LightningLoggersError, ValueError):
    """A constructor argument or command line option cannot work; the message says which, why and what would."""


class MissingDependencyError(ConfigurationError, ModuleNotFoundError):
    """A library that was asked for is not installed; the message holds the command that installs it."""


class JournalError(LightningLoggersError):
    """A journal cannot be read or written at all (single damaged lines are skipped and reported, not raised)."""


class JournalFormatError(JournalError):
    """The file is no journal, or was written by a newer version of this package."""


class JournalLockedError(JournalError):
    """Another live process writes this journal, or delivers it to the same tracker."""


class TrackerUnavailableError(LightningLoggersError):
    """The tracker did not answer within the bounded time of a call that cannot do without it."""


class UnsuitableValueError(LightningLoggersError, ValueError):
    """A value has the wrong shape, rate or type for its kind; raised by a log call only with ``strict=True``."""


class NonFiniteError(LightningLoggersError, ArithmeticError):
    """A metric was NaN or infinite and ``LogPolicy(nonfinite="raise")`` asks to stop; the value was recorded before."""

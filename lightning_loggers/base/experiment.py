"""The ``experiment`` of a logger where nothing may be logged."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Self

from lightning_loggers.ranks import current_rank


class DummyExperiment:
    """An experiment that takes everything and does nothing.

    Every attribute, item and chain of them can be used: called it returns None, iterated it is empty, entered with
    ``with`` it does nothing. Assignments are forgotten. It is true, and its copies and pickles are dummies again.

    Examples:
        >>> experiment = DummyExperiment()
        >>> experiment.add_image("sample", None)
        >>> experiment["train/loss"].append(0.5)
        >>> experiment.config.lr = 0.1
        >>> with experiment.train:
        ...     list(experiment)
        []
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Self:
        if name.startswith("__"):
            # Protocols that are probed by attribute (copying, pickling, numpy) must not find that we speak them.
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self

    def __setattr__(self, name: str, value: object) -> None:
        pass

    def __delattr__(self, name: str) -> None:
        pass

    def __getitem__(self, key: object) -> Self:
        return self

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def __delitem__(self, key: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> None:
        """Does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def rank_zero_experiment(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make an ``experiment`` getter answer with a dummy wherever nothing may be logged.

    The rank is asked at every call, so loggers that were made before the processes were launched do the right thing.

    Args:
        fn: The getter; it runs on rank 0 only.

    Returns:
        The getter to put under ``@property``. It gives what ``fn`` returns on rank 0, even if that is falsy, and a
        :class:`DummyExperiment` on other ranks or where ``fn`` returns None.

    Examples:
        >>> class Recorder:
        ...     @property
        ...     @rank_zero_experiment
        ...     def experiment(self):
        ...         return ["the real one"]
        >>> Recorder().experiment
        ['the real one']
    """

    @functools.wraps(fn)
    def experiment(self: Any) -> Any:
        if current_rank() > 0:
            return DummyExperiment()
        real = fn(self)
        return DummyExperiment() if real is None else real

    return experiment

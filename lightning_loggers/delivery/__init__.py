"""From journal to tracker: the loop (:mod:`.worker`), and where it runs (:mod:`.hosts`, :mod:`.sync`)."""

from typing import Literal

Delivery = Literal["auto", "thread", "process", "offline"]
"""Where delivery runs while training does; see :mod:`lightning_loggers.delivery.moving`."""

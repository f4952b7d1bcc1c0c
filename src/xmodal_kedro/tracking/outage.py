"""A store that goes away in the middle of a run costs a warning and some seconds a minute, never the run.

The first write that fails for want of the store closes it to further ones for a while; a write that the store refuses
for what it says concerns nothing but itself.
"""

import logging
import time
from collections.abc import Callable

from xmodal_kedro.tracking.store import failures

HOLD = 60.0  # seconds without writes after one that failed

_AWAY = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE"}

logger = logging.getLogger(__name__)


class Outage:
    """Lets writes through as long as the store answers."""

    def __init__(self) -> None:
        """The store is taken to be there."""
        self._until = 0.0

    @property
    def holds(self) -> bool:
        """Whether writes are held back at the moment."""
        return time.monotonic() < self._until

    def forget(self) -> None:
        """Try again with the next write, for what cannot wait."""
        self._until = 0.0

    def attempt(self, what: str, write: Callable[[], object]) -> bool:
        """Write, unless writes are held back; a failure is a warning.

        Args:
            what: Named by the warning.
            write: Does it.

        Returns:
            Whether it was written.
        """
        if self.holds:
            return False
        try:
            write()
        except failures() as error:
            reason = str(error).splitlines()[0]
            if getattr(error, "error_code", None) in _AWAY:
                self._until = time.monotonic() + HOLD
                logger.warning("MLflow is away, and misses what it is told for %.0f s: %s", HOLD, reason)
            else:
                logger.warning("MLflow did not take %s: %s", what, reason)
            return False
        return True


store_outage = Outage()

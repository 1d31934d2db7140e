"""When a training will end, as soon as its first iterations show it."""

from __future__ import annotations

import logging
import time
from datetime import datetime, timedelta

from detectron2.engine import HookBase

__all__ = ["TimeLeftHook"]

logger = logging.getLogger(__name__)

NUM_MEASURED = 10  # iterations


class TimeLeftHook(HookBase):
    """Logs that the first iteration is done, and a few iterations later, when the last one will be."""

    def before_train(self) -> None:
        self._start = self._first = time.monotonic()

    def after_step(self) -> None:
        number = self.trainer.iter - self.trainer.start_iter
        if number == 0:
            self._first = time.monotonic()
            logger.info("The first iteration took %.1f s", self._first - self._start)
        elif number == NUM_MEASURED:
            seconds = (time.monotonic() - self._first) / NUM_MEASURED
            left = timedelta(seconds=round(seconds * (self.trainer.max_iter - self.trainer.iter - 1)))
            end = datetime.now() + left
            when = end.strftime("%H:%M" if end.date() == datetime.now().date() else "%Y-%m-%d %H:%M")
            logger.info(
                "%.2f s an iteration: the last one ends in %s, at about %s; evaluations take longer",
                seconds,
                left,
                when,
            )

"""What the server does with an image: the network, kept results, and other thresholds."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

from psf.data.images import ImageTooLarge, limit_pixels
from psf.errors import UserError
from psf.prediction import PanopticResult, Predictor
from psf.tools.serving.answers import Answer, ModelDescription, Options, describe_model, encode
from psf.tools.serving.limits import Limits, Refusal
from psf.tools.serving.metrics import Metrics
from psf.tools.serving.results import KeptResults
from psf.tools.serving.work_queue import WorkQueue, busy

__all__ = ["Service"]

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Service:
    """A predictor for many clients.

    One thread reads images and runs the network, a second one merges kept results with other thresholds. The limit on
    pixels holds for the whole process, as Pillow's own limit does.

    Args:
        predictor: of the model.
        name: of the model, for clients.
        limits: of the server.
    """

    def __init__(self, predictor: Predictor, name: str, limits: Limits) -> None:
        self.limits, self.metrics = limits, Metrics()
        self.is_closing = False
        self.num_active = 0  # requests that are being answered
        self.num_segmented = 0
        self.model: ModelDescription = describe_model(predictor, name, limits)
        self._predictor, self._kept = predictor, KeptResults(limits.max_kept_bytes)
        self._network, self._merging = (
            WorkQueue(name, limits, self.metrics.queue_length) for name in ("network", "merging")
        )
        self._num_images = 0
        limit_pixels(limits.max_pixels)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place for one image, from its first byte to the answer; a Refusal 429 if all are taken."""
        if self._num_images > self.limits.max_queue:
            raise busy(self.limits)
        self._count(+1)
        try:
            yield
        finally:
            self._count(-1)

    async def segment(self, data: bytes, options: Options, client_gone: Callable[[], Awaitable[None]]) -> Answer:
        """Run the network on the bytes of an image file.

        Raises:
            Refusal: 413, 422 or 503, or as `WorkQueue.run`.
        """

        def job() -> Answer:
            with self.metrics.network_seconds.time():
                result = self._predictor(data, tasks=())
            self.num_segmented += 1
            result_id = self._kept.add(result)
            self.metrics.kept_results.set(len(self._kept))
            self.metrics.kept_bytes.set(self._kept.num_bytes)
            return self._merge(result, result_id, options)

        return await self._network.run(lambda: _guarded(job, self.limits), client_gone)

    async def merge(self, result_id: str, options: Options, client_gone: Callable[[], Awaitable[None]]) -> Answer:
        """A kept result with other thresholds, without the network.

        Raises:
            Refusal: 404 if the result is not kept; as `segment`.
        """
        result = self._kept.get(result_id)
        if result is None:
            raise Refusal(404, "no result has this id (any more): send the image again")
        job = partial(self._merge, result, result_id, options)
        return await self._merging.run(lambda: _guarded(job, self.limits), client_gone)

    def close(self) -> None:
        """Drop all requests that wait."""
        self._network.close()
        self._merging.close()

    def _merge(self, result: PanopticResult, result_id: str | None, options: Options) -> Answer:
        with self.metrics.merging_seconds.time():
            if options.confidence is not None or options.keep is not None:
                result = result.merge_again(confidence=options.confidence, keep=options.keep)
            return encode(result, options.format, result_id, self._predictor.metadata)

    def _count(self, change: int) -> None:
        self._num_images += change
        self.metrics.images_in_flight.set(self._num_images)


def _guarded(job: Callable[[], T], limits: Limits) -> T:
    """The result of a job, with a Refusal for what the image causes."""
    try:
        return job()
    except ImageTooLarge as error:
        limit = f"{limits.max_pixels / 1e6:g} megapixels"
        raise Refusal(413, f"the image has more than {limit}, the limit: send a smaller one") from error
    except UserError as error:
        raise Refusal(422, error) from error
    except (MemoryError, torch.cuda.OutOfMemoryError) as error:
        logger.error("not enough memory for an image: %s", str(error).partition("\n")[0])
        raise Refusal(503, "not enough memory for this image: send a smaller one") from error

"""The public way to segment images from Python."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Any, TypeVar, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn

from psf.engine import Predictor as EnginePredictor
from psf.errors import UserError
from psf.meta_arch import PanopticSegFormer
from psf.output import TASKS
from psf.prediction.images import ImageSource, LoadedImage, is_single, load_image, name_of
from psf.prediction.model_file import ModelFile, choose_device, read_model_file
from psf.prediction.outputs import CandidateOutput, DetectronOutput, ImageOutput
from psf.prediction.result import PanopticResult
from psf.structures import ClassEntry, list_classes

__all__ = ["Predictor", "load"]

T = TypeVar("T")
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


class Predictor:
    """A trained model as a function of images.

        predictor = psf.Predictor("model.pth")
        result = predictor("photo.jpg")

    One image gives a PanopticResult, a list gives a list, and an iterator gives an iterator. An image is a path, the
    bytes of a file, an image of Pillow, an array or a tensor (`psf.prediction.images.load_image`); no address. Threads
    may share a predictor: the network runs for one of them at a time.

    Args:
        model: a model file that psf has written; its config, classes and weights are in it.
        config_file: a config in place of the one in the file, for checkpoints that have none.
        options: KEY VALUE pairs, such as ["MODEL.PSF.TEST.TILES.SIZE", "800"] for large images.
        imports: modules with your own classes, if the model has any. A model file never has them imported itself.
        register: panoptic sets as for `--register`, for `config_file`.
        device: "cpu", "cuda", "cuda:1", ...; None: a GPU if there is one.
        dtype: "float32", or "bfloat16" for mixed precision in the network.
        batch_size: images of one size (after the resize) that run together, in lists and iterators.

    Raises:
        UserError: if the file cannot be used (`psf.prediction.read_model_file`), or torch has no such device.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        config_file: str | os.PathLike[str] | None = None,
        options: Sequence[str] = (),
        imports: Sequence[str] = (),
        register: Sequence[str] = (),
        device: str | torch.device | None = None,
        dtype: str = "float32",
        batch_size: int = 1,
    ) -> None:
        _check_settings(dtype, batch_size)
        file = read_model_file(
            model,
            config_file=config_file,
            options=options,
            imports=imports,
            register=register,
            device=None if device is None else str(device),
        )
        self._set_up(file, dtype, batch_size)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, *, device: str | None = None, dtype: str = "float32", batch_size: int = 1
    ) -> Predictor:
        """A predictor for a config with MODEL.WEIGHTS, as `psf.engine.build_config` gives it; it is not changed."""
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = choose_device(device or cfg.MODEL.DEVICE)
        return cls.of_model_file(ModelFile(cfg.MODEL.WEIGHTS, cfg, {}), dtype=dtype, batch_size=batch_size)

    @classmethod
    def of_model_file(cls, file: ModelFile, *, dtype: str = "float32", batch_size: int = 1) -> Predictor:
        """A predictor for what `read_model_file` has read."""
        _check_settings(dtype, batch_size)
        predictor = cls.__new__(cls)
        predictor._set_up(file, dtype, batch_size)
        return predictor

    def _set_up(self, file: ModelFile, dtype: str, batch_size: int) -> None:
        self.path, self.cfg = file.path, file.cfg
        self._predictor = EnginePredictor(file.cfg, file.content or None)
        self.dtype, self.batch_size = dtype, batch_size
        self._lock = threading.Lock()

    @property
    def model(self) -> nn.Module:
        """The network, in evaluation mode."""
        return self._predictor.model

    @property
    def metadata(self) -> Any:
        """Detectron2's metadata of the classes."""
        return self._predictor.metadata

    @property
    def classes(self) -> list[ClassEntry]:
        """The classes of the model, things first."""
        return list_classes(self.metadata)

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return torch.device(self.cfg.MODEL.DEVICE)

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str and bytes are sequences, too
        self, images: ImageSource, *, channel_order: str = ..., tasks: Collection[str] = ...
    ) -> PanopticResult: ...

    @overload
    def __call__(
        self, images: Sequence[ImageSource], *, channel_order: str = ..., tasks: Collection[str] = ...
    ) -> list[PanopticResult]: ...

    @overload
    def __call__(
        self, images: Iterator[ImageSource], *, channel_order: str = ..., tasks: Collection[str] = ...
    ) -> Iterator[PanopticResult]: ...

    def __call__(
        self, images: Any, *, channel_order: str = "RGB", tasks: Collection[str] = ("panoptic",)
    ) -> PanopticResult | list[PanopticResult] | Iterator[PanopticResult]:
        """Segment one image, or several.

        The result of one image keeps what the network has found, so that its instances, its semantic map and `explain`
        cost little. The results of several images do not, as this would take gigabytes: they run the network again
        for each part that `tasks` does not name.

        Args:
            images: an image, a sequence of images, or another iterable of them. Iterables are read as far as needed.
            channel_order: "RGB" or "BGR" (as cv2.imread gives it), of arrays and tensors.
            tasks: "panoptic", "instance", "semantic": what is computed at once.

        Raises:
            UserError: that names the image, if it cannot be used.
        """
        if unknown := sorted(set(tasks) - TASKS.keys()):
            raise UserError(f"tasks has {unknown[0]!r}: expected some of {', '.join(TASKS)}")
        if is_single(images):
            [result] = self._predict([images], channel_order, tasks, keeps=True)
            return result
        if not isinstance(images, Iterable):
            load_image(images, self._predictor, channel_order)  # raises: no image
        results = self._stream(iter(images), channel_order, tasks)
        return list(results) if isinstance(images, Sequence) else results

    def warm_up(self, height: int = 480, width: int = 640) -> None:
        """Run the network once on a gray image of this size: the first image then takes no longer than the others."""
        num_channels = len(self.cfg.MODEL.PIXEL_MEAN)
        is_picture = self._predictor.input_format != "BANDS"
        image = np.full((height, width, 3 if is_picture else num_channels), 128, dtype=np.uint8)
        self(image)

    def _stream(self, images: Iterator[Any], channel_order: str, tasks: Collection[str]) -> Iterator[PanopticResult]:
        while batch := list(islice(images, self.batch_size)):
            yield from self._predict(batch, channel_order, tasks, keeps=False)

    def _predict(
        self, sources: list[Any], channel_order: str, tasks: Collection[str], *, keeps: bool
    ) -> list[PanopticResult]:
        loaded = [self.load_image(source, channel_order) for source in sources]
        outputs = self._run([one.model_input for one in loaded])
        results = []
        for source, image, output in zip(sources, loaded, outputs, strict=True):
            kept, again = _kept(output), _Again(self, source, channel_order)
            result = PanopticResult(
                self.metadata,
                output=kept,
                picture=_kept(image.picture),
                size=(image.picture.shape[0], image.picture.shape[1]),
                source=os.fspath(source) if isinstance(source, (str, os.PathLike)) else None,
            )
            result._finish(tasks, kept if keeps else again, _kept(image.picture) if keeps else again.picture)
            results.append(result)
        return results

    def load_image(self, source: ImageSource, channel_order: str = "RGB") -> LoadedImage:
        """An image as the network gets it, and as a picture; a UserError that names it, if it cannot be used."""
        try:
            return load_image(source, self._predictor, channel_order)
        except UserError as error:
            name = name_of(source)
            raise error if name in str(error) else UserError(f"{name}: {error}") from error

    def _run(self, inputs: list[dict[str, Any]]) -> list[ImageOutput]:
        """Run the network on images, those of one size together."""
        outputs: list[ImageOutput | None] = [None] * len(inputs)
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, one in enumerate(inputs):
            groups.setdefault(tuple(one["image"].shape), []).append(i)
        for positions in groups.values():
            found = self._outputs_of([inputs[i] for i in positions])
            for i, output in zip(positions, found, strict=True):
                outputs[i] = output
        return [one for one in outputs if one is not None]

    def _outputs_of(self, inputs: list[dict[str, Any]]) -> list[ImageOutput]:
        dtype, model = DTYPES[self.dtype], self.model
        network: Any = self._predictor.network
        mixed = nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)
        with self._lock, torch.no_grad(), mixed:
            if isinstance(model, PanopticSegFormer):
                found = list(network.candidates_by_image(inputs))
                return [CandidateOutput.of_model(model, *one) for one in found]
            return [DetectronOutput(one) for one in network(inputs)]


def _kept(value: T) -> Callable[[], T]:
    return lambda: value


class _Again:
    """Reads one image again, and runs the network again, at each call: kept outputs of many images take gigabytes."""

    def __init__(self, predictor: Predictor, source: Any, channel_order: str) -> None:
        self._predictor, self._source, self._channel_order = predictor, source, channel_order

    def __call__(self) -> ImageOutput:
        image = self._predictor.load_image(self._source, self._channel_order)
        [output] = self._predictor._run([image.model_input])
        return output

    def picture(self) -> np.ndarray:
        return self._predictor.load_image(self._source, self._channel_order).picture


def _check_settings(dtype: str, batch_size: int) -> None:
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}: expected one of {', '.join(DTYPES)}")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size is {batch_size!r}: expected a number from 1")


def load(model: str | os.PathLike[str], **settings: Any) -> Predictor:
    """`Predictor(model, **settings)`, for a model file."""
    return Predictor(model, **settings)

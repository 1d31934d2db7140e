"""Requirements for every part of the network: padding, batches, gradients, autocast, saving and checkpointing."""

from __future__ import annotations

import abc
import copy
import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from torch import Tensor, nn

from psf.config import add_psf_config
from psf.modeling.activation_checkpointing import checkpoint_activations
from psf.modeling.position_encoding import resize_padding_mask, valid_ratio
from psf.structures import FeatureTokens

__all__ = ["PartCheck", "level_shapes", "small_config"]

PADDED_SIZE = (64, 96)  # height and width in pixels
IMAGE_SIZES = ((64, 96), (40, 64))  # the second image is padded
FINEST_STRIDE = 8


def small_config() -> CfgNode:
    """psf's defaults (the paper recipe) with 32 channels and two layers everywhere: quick to build and to run."""
    cfg = get_cfg()
    add_psf_config(cfg)
    node = cfg.MODEL.PSF
    node.HIDDEN_DIM, node.NUM_HEADS, node.NUM_THING_QUERIES = 32, 4, 5
    for part in (node.PIXEL_ENCODER, node.LOCATION_DECODER):
        part.NUM_LAYERS = 2
    for part in (node.PIXEL_ENCODER, node.LOCATION_DECODER, node.MASK_DECODER):
        part.FEEDFORWARD_DIM = 64
    node.MASK_DECODER.NUM_THING_LAYERS = node.MASK_DECODER.NUM_STUFF_LAYERS = 2
    return cfg


class PartCheck(abc.ABC):
    """The checks for all parts of the network.

    Args:
        build: returns a new, initialized instance.
        cfg: the config of the instance.
    """

    attribute: str  # name of the part in the model
    checkpointing_name: str  # name of the part in MODEL.PSF.ACTIVATION_CHECKPOINTING

    def __init__(self, build: Callable[[], Any], cfg: CfgNode):
        self.build, self.cfg, self.node = build, cfg, cfg.MODEL.PSF
        self.name = "the part"

    @abc.abstractmethod
    def call(self, part: nn.Module, images: Sequence[int], *, is_padded: bool = True, noise: int = 0) -> Any:
        """Run the part on some of the two images; `noise` is the seed of the values in padding."""

    @abc.abstractmethod
    def check_output(self, output: Any, batch: int, *, is_padded: bool, is_training: bool = False) -> None:
        """Check types, shapes and ranges."""

    @abc.abstractmethod
    def tensors(self, output: Any, images: Sequence[int]) -> dict[str, Tensor]:
        """The tensors (B, ...) by name, with zeros where `images` are padded."""

    def run(self) -> None:
        """Build the part and run all checks."""
        part = self.make(seed=0)
        self.name = type(part).__name__
        with torch.no_grad():
            self.check_shapes(part)
            self.check_repeatable(part)
            self.check_padding(part)
            self.check_batch(part)
        self.check_gradients(part)
        self.check_autocast(part)
        with torch.no_grad():
            self.check_state_dict(part)
            self.check_saved(part)
        self.check_activation_checkpointing(part)

    def make(self, seed: int) -> nn.Module:
        """A new instance in evaluation mode, with slightly changed parameters, so that none is 0."""
        torch.manual_seed(seed)
        part = self.build()
        self.require(isinstance(part, nn.Module), f"it is a {type(part).__name__}; expected an nn.Module")
        with torch.no_grad():
            for parameter in part.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        return part.eval()

    def require(self, holds: bool, message: str) -> None:
        if not holds:
            raise AssertionError(f"{self.name}: {message}")

    def require_equal(self, found: dict[str, Tensor], expected: dict[str, Tensor], message: str) -> None:
        self.require(found.keys() == expected.keys(), f"{message}: {sorted(found)} instead of {sorted(expected)}")
        for name, value in expected.items():
            tolerance = 1e-4 * max(1.0, float(value.detach().abs().max())) if value.numel() else 0.0
            difference = (found[name] - value).detach().abs()
            largest = float(difference.max()) if difference.numel() else 0.0
            self.require(largest <= tolerance, f"{message}: {name} differs by up to {largest:.2g}")

    def require_shape(self, name: str, value: Any, shape: Sequence[int]) -> None:
        self.require(isinstance(value, Tensor), f"{name} is a {type(value).__name__}; expected a tensor")
        self.require(
            tuple(value.shape) == tuple(shape), f"{name} has shape {tuple(value.shape)}; expected {tuple(shape)}"
        )
        if value.is_floating_point():
            self.require(bool(torch.isfinite(value).all()), f"{name} has NaN or infinite values")

    def check_shapes(self, part: nn.Module) -> None:
        self.check_output(self.call(part, [0], is_padded=False), 1, is_padded=False)
        self.check_output(self.call(part, [0, 1]), 2, is_padded=True)

    def check_repeatable(self, part: nn.Module) -> None:
        first, second = (self.tensors(self.call(part, [0, 1]), [0, 1]) for _ in range(2))
        self.require_equal(second, first, "the result of a second call in evaluation mode differs")

    def check_padding(self, part: nn.Module) -> None:
        first, second = (self.tensors(self.call(part, [0, 1], noise=noise), [0, 1]) for noise in range(2))
        self.require_equal(second, first, "values in padding change the result (padding_mask is True there)")

    def check_batch(self, part: nn.Module) -> None:
        together = self.tensors(self.call(part, [0, 1]), [0, 1])
        for image in (0, 1):
            alone = self.tensors(self.call(part, [image]), [image])
            own = {name: value[image : image + 1] for name, value in together.items()}
            self.require_equal(own, alone, f"the result of image {image} in a batch differs from its result alone")

    def check_gradients(self, part: nn.Module) -> None:
        part.train()
        output = self.call(part, [0, 1])
        self.check_output(output, 2, is_padded=True, is_training=True)
        self.backward(part, output)
        without = [name for name, p in part.named_parameters() if p.requires_grad and p.grad is None]
        self.require(
            not without,
            f"parameters without a gradient: {', '.join(without)}; every output in training must depend on them, or "
            "requires_grad must be False",
        )
        wrong = [name for name, p in part.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        self.require(not wrong, f"gradients with NaN or infinite values: {', '.join(wrong)}")
        part.eval()

    def backward(self, part: nn.Module, output: Any) -> None:
        """Gradients of a random linear function of all outputs."""
        part.zero_grad(set_to_none=True)
        generator = torch.Generator().manual_seed(0)
        tensors = [x for x in _all_tensors(output) if x.requires_grad]
        self.require(bool(tensors), "no output has a gradient in training")
        torch.stack([(x * torch.randn(x.shape, generator=generator)).sum() for x in tensors]).sum().backward()

    def check_autocast(self, part: nn.Module) -> None:
        for dtype in (torch.bfloat16, torch.float16):
            try:
                with torch.no_grad(), torch.autocast("cpu", dtype):
                    self.check_output(self.call(part, [0, 1]), 2, is_padded=True)
            except (RuntimeError, AssertionError) as error:
                raise AssertionError(f"{self.name}: under autocast with {dtype}: {error}") from error

    def check_state_dict(self, part: nn.Module) -> None:
        other = self.make(seed=1)
        try:
            other.load_state_dict(part.state_dict())
        except RuntimeError as error:
            raise AssertionError(f"{self.name}: a second instance does not load its state_dict: {error}") from error
        expected = self.tensors(self.call(part, [0, 1]), [0, 1])
        message = "the result of a second instance with the same state_dict differs; store all state in parameters"
        self.require_equal(self.tensors(self.call(other, [0, 1]), [0, 1]), expected, f"{message} or buffers")

    def check_saved(self, part: nn.Module) -> None:
        file = io.BytesIO()
        try:
            torch.save(part, file)
            file.seek(0)
            loaded = torch.load(file, weights_only=False)
        except Exception as error:  # from pickle, or the part's own methods
            raise AssertionError(f"{self.name}: torch.save and torch.load of the module fail: {error}") from error
        expected = self.tensors(self.call(part, [0, 1]), [0, 1])
        self.require_equal(self.tensors(self.call(loaded, [0, 1]), [0, 1]), expected, "after torch.save")

    def check_activation_checkpointing(self, part: nn.Module) -> None:
        if not hasattr(part, "layers"):
            return
        gradients = []
        for is_checkpointed in (False, True):
            model = nn.Module()
            twin = copy.deepcopy(part).train()
            for attribute in ("thing_decoder", "stuff_decoder", self.attribute):
                setattr(model, attribute, twin if attribute == self.attribute else None)
            if is_checkpointed:
                checkpoint_activations(model, [self.checkpointing_name])
            torch.manual_seed(0)  # for dropout
            self.backward(twin, self.call(twin, [0, 1]))
            gradients.append({name: p.grad for name, p in twin.named_parameters() if p.grad is not None})
        self.require_equal(gradients[1], gradients[0], "activation checkpointing of its `layers` changes gradients")

    def padding_mask(self, images: Sequence[int]) -> Tensor:
        """(B, H, W) of the image batch."""
        mask = torch.ones(len(images), *PADDED_SIZE, dtype=torch.bool)
        for image, one in zip(images, mask, strict=True):
            height, width = IMAGE_SIZES[image]
            one[:height, :width] = False
        return mask

    def level_masks(self, images: Sequence[int], shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """(B, h, w) of each level."""
        mask = self.padding_mask(images)
        return [resize_padding_mask(mask, torch.empty(len(images), 0, *shape)) for shape in shapes]

    def maps(self, images: Sequence[int], shapes: Sequence[tuple[int, int]], noise: int, seed: int = 0) -> list[Tensor]:
        """Random maps (B, D, h, w); `noise` seeds the values in padding."""
        dim, maps = self.node.HIDDEN_DIM, []
        for shape, mask in zip(shapes, self.level_masks(images, shapes), strict=True):
            own, padding = (
                torch.randn(2, dim, *shape, generator=torch.Generator().manual_seed(s))[list(images)]
                for s in (seed, 100 + noise)
            )
            maps.append(torch.where(mask[:, None], 5 * padding, own))
        return maps

    def features(
        self, images: Sequence[int], shapes: Sequence[tuple[int, int]], is_padded: bool, noise: int
    ) -> FeatureTokens:
        masks = self.level_masks(images, shapes)
        tokens, pos_embed = (
            torch.cat([x.flatten(2).transpose(1, 2) for x in self.maps(images, shapes, noise, seed)], dim=1)
            for seed in (1, 2)
        )
        padding_mask = torch.cat([mask.flatten(1) for mask in masks], dim=1) if is_padded else None
        ratios = torch.stack([valid_ratio(mask) for mask in masks], dim=1)
        return FeatureTokens(tokens, pos_embed, list(shapes), padding_mask, ratios)


def level_shapes(num_levels: int, stride: int = FINEST_STRIDE) -> list[tuple[int, int]]:
    """(h, w) of each level for images of PADDED_SIZE; each stride is twice the previous stride."""
    strides = [stride * 2**level for level in range(num_levels)]
    return [(-(-PADDED_SIZE[0] // s), -(-PADDED_SIZE[1] // s)) for s in strides]


def _all_tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, (tuple, list)):
        return [x for one in value for x in _all_tensors(one)]
    return []

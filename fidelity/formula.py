"""Weights, images and ground truth made by formula, so that two implementations get the same numbers.

All numbers come from `numpy.random.RandomState`, whose streams are stable across numpy versions. They are computed in
float64 and rounded to float32 once. The name of a weight in the released model determines its values.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

__all__ = ["FormulaGroundTruth", "formula_gt", "formula_image", "formula_weights"]


class Rule(NamedTuple):
    """How to make the weights whose names match `pattern`."""

    pattern: str
    kind: str  # "normal" | "uniform" | "fan" | "zero_sum" | "positive" | "zeros" | "swin_index", see `_values`
    scale: float = 1.0
    offset: float = 0.0


# The first matching rule applies. The scales keep the outputs of the untrained model distinct: residual branches are
# small, rows with mostly positive inputs sum to zero, and mask scores lie on both sides of 0.5.
RULES = (
    Rule(r"num_batches_tracked$", "zeros"),
    Rule(r"relative_position_index$", "swin_index"),
    Rule(r"relative_position_bias_table$", "normal", 0.2),
    Rule(r"running_mean$", "normal", 0.05),
    Rule(r"running_var$", "uniform", 1.0, 0.5),
    Rule(r"^neck\..*conv\.weight$", "zero_sum"),
    Rule(r"^backbone\.layer\d\..*conv3\.weight$", "zero_sum", 0.5),
    Rule(r"^backbone\.(layer\d.*\.)?(conv\d|downsample\.0)\.weight$", "zero_sum", 1.4),
    Rule(r"^backbone\..*(mlp\.fc2|attn\.proj)\.weight$", "zero_sum", 0.4),
    Rule(r"^backbone\.patch_embed\d?\.proj\.weight$", "zero_sum"),
    Rule(r"(query_embedding|stuff_query)\.weight$", "normal"),
    Rule(r"level_embeds$", "normal"),
    Rule(r"sampling_offsets\.weight$", "normal", 0.02),
    Rule(r"sampling_offsets\.bias$", "normal"),
    Rule(r"output_proj\.weight$|out_proj\.weight$", "fan", 0.4),
    Rule(r"ffns\.0\.layers\.1\.weight$", "fan", 0.4),
    Rule(r"_mask_head\..*\b(proj|fc2)\.weight$", "fan", 0.4),
    Rule(r"transformer\.reference_points\.weight$", "fan", 1.5),
    Rule(r"\bcls_branches\.\d+\.weight$", "fan", 2.0),
    Rule(r"\bcls_branches\.\d+\.bias$", "normal", 0.5, -4.5),
    Rule(r"\bcls_thing_branches\.\d+\.bias$", "normal", 0.5, -2.0),
    Rule(r"\bcls_stuff_branches\.\d+\.weight$", "fan", 2.0),
    Rule(r"\bcls_stuff_branches\.\d+\.bias$", "normal", 0.1, -0.3),
    Rule(r"_mask_head\..*\battn(en)?\.(q|k)\.weight$", "fan", 1.5),
    Rule(r"_mask_head\..*\blinear_l[123]\.0\.weight$", "fan", 1.5),
    Rule(r"_mask_head\..*\blinear_l[123]\.0\.bias$", "normal", 0.1),
    Rule(r"_mask_head\.blocks\..*\blinear\.0\.weight$", "positive", 0.08),
    Rule(r"_mask_head\.blocks\..*\blinear\.0\.bias$", "normal", 0.02, -0.2),
    Rule(r"things_mask_head\.attnen\.linear\.0\.weight$", "positive", 0.12),
    Rule(r"things_mask_head\.attnen\.linear\.0\.bias$", "normal", 0.02, -0.5),
    Rule(r"stuff_mask_head\.attnen\.linear\.0\.weight$", "positive", 0.065),
    Rule(r"stuff_mask_head\.attnen\.linear\.0\.bias$", "normal", 0.02, -0.5),
    Rule(r"\bbias$|_bias$", "normal", 0.02),
)
VECTOR = Rule("", "normal", 0.05, 1.0)  # the remaining vectors are weights of norms
MATRIX = Rule("", "fan")


def formula_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Make weights: shapes by name -> float32 arrays by name; int64 for counters and indices."""
    return {name: _weight(name, tuple(shape)) for name, shape in shapes.items()}


def _weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    fallback = VECTOR if len(shape) == 1 else MATRIX
    rule = next((rule for rule in RULES if re.search(rule.pattern, name)), fallback)
    if rule.kind == "zeros":
        return np.zeros(shape, np.int64)
    if rule.kind == "swin_index":
        return _relative_positions(round(shape[0] ** 0.5))
    return _values(rule, shape, np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)).astype(np.float32)


def _values(rule: Rule, shape: tuple[int, ...], random: np.random.RandomState) -> np.ndarray:
    """`offset` plus `scale` times random values.

    The values are N(0, 1) ("normal"), U(0, 1) ("uniform"), or N(0, 1) over the root of the number of inputs of a row:
    unchanged ("fan"), minus the mean of the row ("zero_sum"), or absolute ("positive").
    """
    if rule.kind == "uniform":
        return rule.offset + rule.scale * random.random_sample(shape)
    values = random.standard_normal(shape)
    if rule.kind == "normal":
        return rule.offset + rule.scale * values
    if rule.kind == "zero_sum":
        values = values - values.mean(axis=tuple(range(1, len(shape))), keepdims=True)
    elif rule.kind == "positive":
        values = np.abs(values)
    return rule.offset + (rule.scale / np.sqrt(float(np.prod(shape[1:])))) * values


def _relative_positions(window: int) -> np.ndarray:
    """(window^2, window^2) indices into Swin's table of relative position biases."""
    place = np.indices((window, window)).reshape(2, -1)
    dy, dx = place[:, :, None] - place[:, None, :] + window - 1
    return (dy * (2 * window - 1) + dx).astype(np.int64)


def formula_image(height: int, width: int, seed: int) -> np.ndarray:
    """(height, width, 3) uint8 RGB: eight striped ellipses with soft edges on a gradient, and noise."""
    random = np.random.RandomState(seed)
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    image = np.stack((60 + 120 * x, 200 - 130 * y, 90 + 60 * (x + y)), axis=-1)
    for _ in range(8):
        centre_y, centre_x = random.random_sample(2)
        radius_y, radius_x = 0.06 + 0.22 * random.random_sample(2)
        color = 255 * random.random_sample(3)
        distance = ((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2
        opacity = (1.0 / (1.0 + np.exp(np.clip(12 * (distance - 1), -50, 50))))[..., None]
        frequency = 6 + 10 * random.random_sample()
        stripes = 1 + 0.25 * np.sin(2 * np.pi * frequency * (x + y))[..., None]
        image = image * (1 - opacity) + opacity * color * stripes
    image = image + 8 * random.standard_normal(image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


class FormulaGroundTruth(NamedTuple):
    """The ground truth of one image: things, then stuff."""

    labels: np.ndarray  # (G,) classes; stuff classes follow the thing classes
    masks: np.ndarray  # (G, H, W) bool, disjoint


def formula_gt(
    height: int,
    width: int,
    seed: int,
    num_things: int,
    num_stuff: int,
    *,
    num_thing_classes: int,
    num_stuff_classes: int,
) -> FormulaGroundTruth:
    """Ellipses for things, each in front of the later ones; vertical bands for stuff in the remaining pixels.

    A fully hidden thing is dropped.
    """
    random = np.random.RandomState(seed)
    y, x = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    free = np.ones((height, width), bool)
    labels, masks = [], []
    for _ in range(num_things):
        centre_y, centre_x = height * (0.2 + 0.6 * random.random_sample()), width * (0.2 + 0.6 * random.random_sample())
        radius_y, radius_x = (
            height * (0.08 + 0.15 * random.random_sample()),
            width * (0.08 + 0.15 * random.random_sample()),
        )
        mask = (((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 <= 1) & free
        label = int(random.randint(0, num_thing_classes))
        if mask.any():
            free &= ~mask
            labels.append(label)
            masks.append(mask)
    for band, label in enumerate(random.permutation(num_stuff_classes)[:num_stuff]):
        labels.append(num_thing_classes + int(label))
        masks.append((x >= width * band / num_stuff) & (x < width * (band + 1) / num_stuff) & free)
    return FormulaGroundTruth(np.array(labels, np.int64), np.array(masks, bool).reshape(-1, height, width))

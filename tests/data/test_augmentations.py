"""The mappers on images of other channels than three: image and ground truth fit each other, and bands do not mix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from psf.data import PanopticMapper, augmentations, build_mapper, in_format
from psf.data.shapes import make_scene
from psf.data.shapes.dataset import training_dicts
from tests.data.test_mappers import MAPPERS, info, make_cfg

MEANS = [40.0, 10.0, 20.0, 30.0, 50.0]  # of bands, and what a square is padded with


def config(channels: int, format: str = "BANDS", **keys: Any) -> CfgNode:
    cfg = make_cfg(FORMAT=format, **keys)
    cfg.MODEL.PIXEL_MEAN = MEANS[:channels]
    return cfg


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bands_follow_the_ground_truth(
    data: Any, make_sample: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each band is painted with numbers of its own for the segments: where a class is flat, the numbers are its own."""
    monkeypatch.setattr(augmentations, "_SHORT_SIDES_BEFORE_CROP", (60, 100))
    channels = data.draw(st.sampled_from([1, 2, 4, 5]))
    dtype = data.draw(st.sampled_from([np.uint8, np.int16, np.float32]))
    blocks = data.draw(st.lists(st.lists(st.integers(0, 6), min_size=4, max_size=4), min_size=2, max_size=4))
    ids = np.kron(np.array(blocks), np.ones((40, 30), int))
    cfg = config(
        channels,
        DATASET_MAPPER_NAME=data.draw(st.sampled_from(MAPPERS)),
        RANDOM_FLIP=data.draw(st.sampled_from(["none", "horizontal", "vertical"])),
        MIN_SIZE_TRAIN=data.draw(st.sampled_from([(60,), (100,)])),
        IMAGE_SIZE=data.draw(st.sampled_from([60, 130])),
        CROP__ENABLED=data.draw(st.booleans()),
        CROP__TYPE="absolute_range",
        CROP__SIZE=[40, 90],
        CROP__SINGLE_CATEGORY_MAX_AREA=0.5,
    )
    # Of ids 0 (void, which looks like padding) to 6.
    paints = np.array([MEANS] + [[13 * k + 5 * band for band in range(5)] for k in range(1, 7)])[:, :channels]
    sample = make_sample(ids, [info(k, k) for k in range(1, 7)])
    sample["file_name"] = str(tmp_path / "image.npy")
    np.save(sample["file_name"], paints[ids].astype(dtype))
    np.random.seed(data.draw(st.integers(0, 2**31)))
    output = build_mapper(cfg, is_train=True)(sample)

    labels, image = output["panoptic_labels"].numpy(), output["image"].numpy()
    assert image.shape == (channels, *labels.shape)
    assert image.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    category = np.array([0] + [segment["category_id"] for segment in output["segments_info"]])[labels]
    flat = ndimage.maximum_filter(category, 15) == ndimage.minimum_filter(category, 15, mode="constant", cval=-1)
    np.testing.assert_allclose(image[:, flat], paints[category[flat]].T, rtol=1e-6)


@pytest.mark.parametrize("channels", [2, 4, 5])
@pytest.mark.parametrize("method", [Image.Resampling.BILINEAR, Image.Resampling.NEAREST])
@pytest.mark.parametrize("size", [(20, 77), (7, 9)])
def test_a_band_is_resized_as_if_alone(channels: int, method: int, size: tuple[int, int]):
    """Also where a last channel is 0, as of transparency; floats as bytes are, but for the rounding."""
    image = np.random.default_rng(0).integers(0, 256, (31, 45, channels), dtype=np.uint8)
    image[:, ::2, -1] = 0
    resize = augmentations._Resize(31, 45, *size)
    resized = resize.apply_image(image, method)
    for band in range(channels):
        alone = Image.fromarray(image[..., band]).resize(size[::-1], method)
        assert np.array_equal(resized[..., band], np.asarray(alone))
    floats = resize.apply_image(image[:, ::-1].astype(np.float32)[:, ::-1], method)  # not contiguous
    assert floats.dtype == np.float32 and np.abs(floats - resized).max() < 1.01


def test_pictures_and_label_maps_are_resized_by_detectron2():
    image = np.random.default_rng(0).integers(0, 256, (31, 45, 3), dtype=np.uint8)
    ours, theirs = (kind(31, 45, 20, 77) for kind in (augmentations._Resize, T.ResizeTransform))
    for pixels in (image, image[..., :1], image[..., 0]):
        assert np.array_equal(ours.apply_image(pixels), theirs.apply_image(pixels))
    assert np.array_equal(ours.apply_segmentation(image[..., 0]), theirs.apply_segmentation(image[..., 0]))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_squares_are_padded_with_the_means(make_sample: Callable, tmp_path: Path, dtype: type):
    sample = make_sample(np.full((40, 60), 5), [info(5)])
    sample["file_name"] = str(tmp_path / "image.npy")
    np.save(sample["file_name"], np.full((40, 60, 4), 200, dtype))
    cfg = config(4, DATASET_MAPPER_NAME="psf_panoptic_lsj", IMAGE_SIZE=60, MIN_SCALE=0.5, MAX_SCALE=0.5)
    cfg.MODEL.PIXEL_MEAN = [0.4, 10.0, 20.6, 30.0]
    output = build_mapper(cfg, is_train=True)(sample)
    padding = output["image"][:, output["panoptic_labels"] == 0].unique(dim=1)[:, 0]
    assert padding.tolist() == pytest.approx([0, 10, 21, 30] if dtype == np.uint8 else [0.4, 10.0, 20.6, 30.0])


@pytest.mark.parametrize("name", MAPPERS[1:])
def test_colours_of_what_has_none(name: str):
    with pytest.raises(ValueError, match=r"INPUT\.COLOR_AUG_SSD is True, but images have 4 channels"):
        build_mapper(config(4, DATASET_MAPPER_NAME=name, COLOR_AUG_SSD=True), is_train=True)


def test_a_file_of_other_channels_is_named(make_sample: Callable):
    sample = make_sample([[5]], [info(5)])
    for is_train in (True, False):
        with pytest.raises(ValueError, match=r"image\.png: has 3 channels, the model takes 4"):
            build_mapper(config(4), is_train)(sample)


def test_gray_of_files_and_scenes(make_sample: Callable):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sample = make_sample(np.full((64, 64), 5), [info(5)], image=pixels)
    output = build_mapper(config(1, "L", RANDOM_FLIP="none"), is_train=True)(sample)
    assert np.array_equal(output["image"].numpy()[0], np.asarray(Image.fromarray(pixels).convert("L")))
    scene = make_scene(2, split="train")
    output = PanopticMapper(True, augmentations=[], image_format="L")(training_dicts()[2])
    assert output["image"].dtype == torch.uint8
    assert np.array_equal(output["image"].permute(1, 2, 0).numpy(), in_format(scene.image, "L"))
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT is 'BANDS'.*3 channels"):
        PanopticMapper(True, augmentations=[], image_format="BANDS")(training_dicts()[2])

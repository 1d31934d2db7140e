from __future__ import annotations

import copy
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json
from detectron2.structures import BitMasks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from psf.config import add_psf_config
from psf.data import DATASET_MAPPER_REGISTRY, PanopticMapper, augmentations, build_augmentations, build_mapper, mappers
from psf.data.shapes import make_scene
from psf.data.shapes.dataset import training_dicts


def make_cfg(**keys):
    cfg = get_cfg()
    add_psf_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (64,), 96
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 96
    for key, value in keys.items():
        cfg.merge_from_list([f"INPUT.{key.replace('__', '.')}", value])
    if cfg.INPUT.DATASET_MAPPER_NAME == "psf_panoptic_lsj":  # which crops by IMAGE_SIZE
        cfg.INPUT.CROP.ENABLED = False
    return cfg


def info(id: int, category: int = 0, isthing: bool = True, **rest) -> dict:
    return {"id": id, "category_id": category, "isthing": isthing, **rest}


def plain(*augmentations) -> PanopticMapper:
    return PanopticMapper(True, augmentations=augmentations, image_format="RGB")


# ------------------------------------------------------------------ the ground truth follows the image

# One gray per id; void has the gray that padding has.
COLORS = np.append(128, np.random.default_rng(0).permutation(128))[:, None].repeat(3, axis=1).astype(np.uint8)
MAPPERS = ("psf_panoptic", "psf_panoptic_lsj", "psf_panoptic_cityscapes")


@settings(max_examples=90, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_labels_and_boxes_follow_the_image(data, make_sample, monkeypatch):
    """The image is painted with a colour per segment: wherever a segment is flat, the colour must be its own."""
    monkeypatch.setattr(augmentations, "_SHORT_SIDES_BEFORE_CROP", (60, 100))
    blocks = data.draw(st.lists(st.lists(st.integers(0, 6), min_size=4, max_size=4), min_size=2, max_size=5))
    ids = np.kron(np.array(blocks), np.ones((40, 30), int))
    crop = data.draw(st.sampled_from([None, ("absolute_range", [40, 90]), ("relative_range", [0.4, 0.6])]))
    cfg = make_cfg(
        DATASET_MAPPER_NAME=data.draw(st.sampled_from(MAPPERS)),
        RANDOM_FLIP=data.draw(st.sampled_from(["none", "horizontal", "vertical"])),
        MIN_SIZE_TRAIN=data.draw(st.sampled_from([(60,), (64, 80), (100,)])),
        IMAGE_SIZE=data.draw(st.sampled_from([60, 130])),
        **({"CROP__ENABLED": True, "CROP__TYPE": crop[0], "CROP__SIZE": crop[1]} if crop else {}),
        CROP__SINGLE_CATEGORY_MAX_AREA=data.draw(st.sampled_from([0.5, 1.0])),
    )
    sample = make_sample(ids, [info(k, k) for k in range(1, 7)], image=COLORS[ids])
    np.random.seed(data.draw(st.integers(0, 2**31)))
    output = build_mapper(cfg, is_train=True)(sample)

    labels, image = output["panoptic_labels"].numpy(), output["image"].numpy()
    assert image.shape == (3, *labels.shape)
    assert [segment["id"] for segment in output["segments_info"]] == list(range(1, labels.max() + 1))
    masks = torch.from_numpy(labels)[None] == torch.arange(1, int(labels.max()) + 1)[:, None, None]
    assert (BitMasks(masks).get_bounding_boxes().tensor == output["panoptic_boxes_xyxy_px"]).all()
    category = np.array([0] + [segment["category_id"] for segment in output["segments_info"]])[labels]
    # Up to seven pixels from a border its colours may mix: two resizes, the second to at most 2.5 times the size.
    # What lies beyond the edge of a crop is not known.
    flat = ndimage.maximum_filter(category, 15) == ndimage.minimum_filter(category, 15, mode="constant", cval=-1)
    assert (image[:, flat] == COLORS[category[flat]].T).all()


def test_jitter_gives_squares_of_every_scale(make_sample):
    """A 40 x 60 image, of one segment: where the image ends, void and gray begin."""
    sample = make_sample(np.full((40, 60), 5), [info(5)], image=np.full((40, 60, 3), 200, np.uint8))
    mapper = build_mapper(make_cfg(DATASET_MAPPER_NAME="psf_panoptic_lsj", IMAGE_SIZE=60), is_train=True)
    widths = []
    for seed in range(60):
        np.random.seed(seed)
        output = mapper(sample)
        assert output["image"].shape == (3, 60, 60)
        inside = output["panoptic_labels"].numpy() == 1
        assert (output["image"].numpy() == np.where(inside, 200, 128)).all()
        [box] = output["panoptic_boxes_xyxy_px"].tolist()
        assert inside.sum() == box[2] * box[3] and box[:2] == [0, 0]
        widths.append(box[2])
    assert min(widths) < 15 and widths.count(60) > 20  # scales 0.1 to 2.0 of 60 pixels: 6 to 120, cut at 60


def test_crop_where_no_class_takes_too_much(make_sample):
    """Nine tenths are class 1 and void is not counted: a crop with both classes in balance is at the border alone."""
    ids = np.ones((40, 200), int)
    ids[:, 180:] = 2
    sample = make_sample(ids, [info(1, 1), info(2, 2)])
    shares = {}
    for limit in (0.75, 1.0):
        cfg = make_cfg(
            DATASET_MAPPER_NAME="psf_panoptic_cityscapes",
            MIN_SIZE_TRAIN=(40,),
            MAX_SIZE_TRAIN=200,
            CROP__ENABLED=True,
            CROP__TYPE="absolute",
            CROP__SIZE=[40, 40],
            CROP__SINGLE_CATEGORY_MAX_AREA=limit,
        )
        mapper = build_mapper(cfg, is_train=True)
        np.random.seed(0)
        outputs = [mapper(sample) for _ in range(40)]
        assert all(output["image"].shape == (3, 40, 40) for output in outputs)
        shares[limit] = np.mean([len(output["segments_info"]) == 2 for output in outputs])
    # Of 161 places 20 show both classes, 10 of them no more than 30 of 40 columns of one: ten draws find one with
    # p = 1 - (151 / 161)^10 = 0.47, and end elsewhere with both with (1 - 0.47) / 16 = 0.03.
    assert shares[1.0] < 0.25 and shares[0.75] > 0.35


def test_void_does_not_count_as_a_class_that_takes_too_much(make_sample):
    """Four fifths of every crop are void; in the rest two classes are in balance on the left, on the right is one."""
    ids = np.zeros((40, 120), int)
    ids[:4], ids[4:8] = 1, np.where(np.arange(120) < 60, 2, 1)
    sample = make_sample(ids, [info(1, 1), info(2, 2)])
    cfg = make_cfg(
        DATASET_MAPPER_NAME="psf_panoptic_cityscapes",
        RANDOM_FLIP="none",
        MIN_SIZE_TRAIN=(40,),
        MAX_SIZE_TRAIN=120,
        CROP__ENABLED=True,
        CROP__TYPE="absolute",
        CROP__SIZE=[40, 40],
        CROP__SINGLE_CATEGORY_MAX_AREA=0.75,
    )
    mapper = build_mapper(cfg, is_train=True)
    np.random.seed(0)
    for _ in range(20):
        labels = mapper(sample)["panoptic_labels"]
        # Of 81 places 41 are accepted: one of ten draws is with p = 1 - (40 / 81)^10 = 0.999.
        assert (labels == 1).sum() <= 0.75 * (labels > 0).sum()


def test_a_range_of_sizes_has_both_of_its_ends(make_sample):
    sample = make_sample(np.full((40, 60), 5), [info(5)])
    mapper = build_mapper(make_cfg(MIN_SIZE_TRAIN=(20, 22), MIN_SIZE_TRAIN_SAMPLING="range"), is_train=True)
    np.random.seed(0)
    assert {mapper(sample)["image"].shape[1] for _ in range(40)} == {20, 21, 22}


def test_crops_of_cityscapes_have_their_size(make_sample):
    """The crop comes after the resize, so it has CROP.SIZE at any scale: twice and half the size of the image."""
    sample = make_sample(np.full((60, 120), 5), [info(5)])
    for short_side, expected in ((120, (40, 50)), (30, (30, 50))):
        crop = {"CROP__ENABLED": True, "CROP__TYPE": "absolute", "CROP__SIZE": [40, 50]}
        cfg = make_cfg(**crop, DATASET_MAPPER_NAME="psf_panoptic_cityscapes", MIN_SIZE_TRAIN=(short_side,))
        cfg.INPUT.MAX_SIZE_TRAIN = 999
        assert build_mapper(cfg, is_train=True)(sample)["image"].shape[1:] == expected


class SeenClasses(T.Augmentation):
    """Records the class map that augmentations with a limit on a class get."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = None

    def get_transform(self, image, sem_seg):
        self.seen = sem_seg
        return T.NoOpTransform()


def test_class_0_is_not_void(make_sample):
    """Void is VOID_CLASS, 0; class k is k + 1. The flip before is applied, too."""
    sample = make_sample([[0, 9, 5, 5]], [info(5, 0), info(9, 3)])
    record = SeenClasses()
    plain(T.HFlipTransform(4), record)(sample)
    assert record.seen.tolist() == [[1, 1, 4, 0]]


@pytest.mark.parametrize("name", MAPPERS[1:])
def test_colors_change_the_image_alone(make_sample, name):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    sample = make_sample(np.full((64, 64), 5), [info(5)], image=pixels)
    keys = {"DATASET_MAPPER_NAME": name, "RANDOM_FLIP": "none", "IMAGE_SIZE": 64, "MIN_SCALE": 1.0, "MAX_SCALE": 1.0}
    np.random.seed(1)
    colored = build_mapper(make_cfg(**keys, COLOR_AUG_SSD=True), is_train=True)(sample)
    plain_one = build_mapper(make_cfg(**keys), is_train=True)(sample)
    assert colored["image"].dtype == torch.uint8 and not torch.equal(colored["image"], plain_one["image"])
    assert torch.equal(colored["panoptic_labels"], plain_one["panoptic_labels"])


def test_large_ids_are_resized_as_small_ones_are():
    """Pillow's nearest neighbour for all: what torch does with other types lies half a pixel off."""
    labels = np.random.default_rng(1).integers(0, 200, (31, 45))
    resize = T.TransformList([T.ResizeTransform(31, 45, 20, 77), T.HFlipTransform(77)])
    small = mappers._apply_to_labels(resize, labels.astype(np.uint8))
    large = mappers._apply_to_labels(resize, (labels + 60_000).astype(np.int32))
    assert large.dtype == np.int32 and (large == small.astype(int) + 60_000).all()


def test_segments_that_a_crop_leaves_out_vanish(make_sample):
    ids = np.repeat([[10, 20, 30]], 4, axis=0).repeat(5, axis=1)  # three columns of 5 pixels
    sample = make_sample(ids, [info(10, 1), info(20, 2), info(30, 3, iscrowd=1)])
    output = plain(T.CropTransform(5, 0, 10, 4))(sample)
    assert output["segments_info"] == [
        {"id": 1, "category_id": 2, "isthing": True, "iscrowd": False},
        {"id": 2, "category_id": 3, "isthing": True, "iscrowd": True},
    ]
    assert output["panoptic_labels"].tolist() == [[1] * 5 + [2] * 5] * 4
    assert (output["height"], output["width"]) == (4, 15)  # of the file


def test_image_without_any_segment_left_is_fine(make_sample):
    ids = np.zeros((4, 10), int)
    ids[:, 8:] = 3
    output = plain(T.CropTransform(0, 0, 5, 4))(make_sample(ids, [info(3)]))
    assert output["segments_info"] == [] and not output["panoptic_labels"].any()


# ------------------------------------------------------------------ the contract with the model


def test_training_output_is_the_contract_and_the_dict_stays(make_sample):
    sample = make_sample([[5, 0], [5, 9]], [info(5, 1, isthing=False), info(9, 3)])
    before = copy.deepcopy(sample)
    output = build_mapper(make_cfg(RANDOM_FLIP="none"), is_train=True)(sample)
    assert sample == before
    assert output.keys() == {
        "image", "height", "width", "file_name", "image_id",
        "panoptic_labels", "panoptic_boxes_xyxy_px", "segments_info",
    }  # fmt: skip
    assert output["image"].dtype == output["panoptic_labels"].dtype == torch.uint8
    assert output["image"].shape == (3, 64, 64) and output["panoptic_labels"].shape == (64, 64)
    assert output["panoptic_boxes_xyxy_px"].tolist() == [[0, 0, 32, 64], [32, 32, 64, 64]]
    assert output["image_id"] == 7
    assert output["segments_info"][1] == {"id": 2, "category_id": 3, "isthing": True, "iscrowd": False}


@pytest.mark.parametrize(("kind", "ids"), [("things", [9]), ("segments", [2, 9])])
def test_instances_for_other_models(make_sample, kind, ids):
    """A thing 9, stuff 2 and a crowd 5; the flip turns the columns round."""
    sample = make_sample([[9, 9, 2, 5], [9, 0, 2, 2]], [info(9, 4), info(2, 7, isthing=False), info(5, 4, iscrowd=1)])
    mapper = PanopticMapper(True, augmentations=[T.HFlipTransform(4)], image_format="RGB", instances=kind)
    found = mapper(sample)["instances"]
    order = found.gt_classes.argsort(descending=True).tolist()  # stuff has 7, the thing 4
    masks = found.gt_masks.tensor if kind == "things" else found.gt_masks
    expected = {2: [[0, 1, 0, 0], [1, 1, 0, 0]], 9: [[0, 0, 1, 1], [0, 0, 0, 1]]}
    assert masks.dtype == torch.bool and masks[order].int().tolist() == [expected[one] for one in ids]
    assert found.gt_classes[order].tolist() == [{2: 7, 9: 4}[one] for one in ids]
    assert found.gt_boxes.tensor[order].tolist() == [{2: [0, 0, 2, 2], 9: [2, 0, 4, 2]}[one] for one in ids]
    assert found.image_size == (2, 4)


@pytest.mark.parametrize("name", MAPPERS)
def test_instances_by_the_key(make_sample, name):
    cfg = make_cfg(DATASET_MAPPER_NAME=name, PSF_INSTANCES="segments")
    output = build_mapper(cfg, is_train=True)(make_sample(np.zeros((40, 60), int), []))
    assert len(output["instances"]) == 0 and output["instances"].gt_masks.shape == (0, *output["image"].shape[1:])
    assert "instances" not in build_mapper(make_cfg(), is_train=True)(make_sample([[5]], [info(5)]))
    cfg.INPUT.PSF_INSTANCES = "all"
    with pytest.raises(ValueError, match=r"INPUT\.PSF_INSTANCES is 'all', expected one of none, things, segments"):
        build_mapper(cfg, is_train=True)


def test_at_test_the_image_is_resized_alone(make_sample):
    sample = make_sample(np.full((10, 40), 5), [info(5)])
    output = build_mapper(make_cfg(), is_train=False)(sample)
    assert output["image"].shape == (3, 24, 96)  # 64 x 256 would pass the longest side of 96
    assert (output["height"], output["width"]) == (10, 40)
    assert "panoptic_labels" not in output
    assert output["segments_info"] == sample["segments_info"]
    assert output["pan_seg_file_name"] == sample["pan_seg_file_name"]


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_scenes_are_made_in_memory_in_the_format(image_format):
    scene = make_scene(2, split="train")
    mapper = PanopticMapper(True, augmentations=[], image_format=image_format)
    output = mapper(training_dicts()[2])
    pixels = output["image"].permute(1, 2, 0).numpy()
    assert (pixels == (scene.image if image_format == "RGB" else scene.image[..., ::-1])).all()
    assert (output["panoptic_labels"].numpy() == scene.labels).all()
    assert output["segments_info"] == scene.segments
    assert (output["height"], output["width"]) == scene.labels.shape


def test_a_worker_keeps_nothing_of_an_image(make_sample):
    ids = np.random.default_rng(0).integers(0, 30, (16, 16)).repeat(20, axis=0).repeat(20, axis=1)
    sample = make_sample(ids, [info(k) for k in range(1, 30)])
    mapper = build_mapper(make_cfg(), is_train=True)
    mapper(sample)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(20):
            mapper(sample)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 20_000  # an image would be 64 x 64 x 3 = 12288 bytes, its PNG's ids 320 x 320 x 4


def test_detectron2s_loader_takes_the_mapper():
    mapper = plain()
    loader = build_detection_train_loader(
        dataset=training_dicts()[:16],
        mapper=mapper,
        sampler=torch.utils.data.SequentialSampler(range(16)),
        total_batch_size=2,
        num_workers=0,
        aspect_ratio_grouping=False,
    )
    batch = next(iter(loader))
    assert [item["image_id"] for item in batch] == [one["image_id"] for one in training_dicts()[:2]]
    for index, item in enumerate(batch):
        scene = make_scene(index, split="train")
        assert np.array_equal(item["image"].permute(1, 2, 0).numpy(), scene.image)
        assert np.array_equal(item["panoptic_labels"].numpy(), scene.labels)
        assert item["segments_info"] == scene.segments


@pytest.mark.parametrize("shape", [(1, 1), (17, 4000), (4000, 17), (1, 4000)])
@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("name", MAPPERS)
def test_extreme_sizes_simply_work(make_sample, shape, is_train, name):
    crop = {"CROP__ENABLED": True, "CROP__TYPE": "absolute_range", "CROP__SIZE": [20, 30]}
    cfg = make_cfg(**crop, IMAGE_SIZE=90, DATASET_MAPPER_NAME=name)
    mapper = build_mapper(cfg, is_train)
    sample = make_sample(np.full(shape, 5), [info(5)])
    for seed in range(4):
        np.random.seed(seed)
        output = mapper(sample)
        _, height, width = output["image"].shape
        assert min(height, width) >= 1 and max(height, width) <= 96
        if is_train:
            assert len(output["segments_info"]) == 1
            assert name == "psf_panoptic_lsj" or (output["panoptic_labels"] == 1).all()  # that one pads


@pytest.mark.parametrize("kind", ["absolute_range", "absolute"])
def test_released_augmentation_crops_half_of_the_images(kind):
    cfg = make_cfg(CROP__ENABLED=True, CROP__TYPE=kind, CROP__SIZE=[384, 600])
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = tuple(range(480, 801, 32)), 1333
    augmentations = T.AugmentationList(build_augmentations(cfg, is_train=True))
    crops, num_flips, num_images = [], 0, 100
    for seed in range(num_images):
        np.random.seed(seed)
        inputs = T.AugInput(np.zeros((480, 640, 3), np.uint8))
        transforms = augmentations(inputs)
        resizes = [t for t in transforms.transforms if isinstance(t, T.ResizeTransform)]
        crop = [t for t in transforms.transforms if isinstance(t, T.CropTransform)]
        assert len(resizes) == len(crop) + 1
        if crop:  # resize, crop, resize
            assert [transforms.transforms.index(t) for t in (resizes[0], crop[0], resizes[1])] in ([0, 1, 2], [1, 2, 3])
        if crop:
            assert min(resizes[0].new_h, resizes[0].new_w) in (400, 500, 600)
        height, width = inputs.image.shape[:2]
        assert max(height, width) <= 1333
        assert min(height, width) in cfg.INPUT.MIN_SIZE_TRAIN or max(height, width) == 1333
        crops += crop
        num_flips += any(isinstance(t, T.HFlipTransform) for t in transforms.transforms)
    assert 30 < len(crops) < 70 and 30 < num_flips < 70
    assert all(384 <= side <= 600 for crop in crops for side in (crop.w, crop.h))


# ------------------------------------------------------------------ mistakes


def test_unknown_mapper_is_named_with_the_known():
    assert "psf_panoptic" in DATASET_MAPPER_REGISTRY
    with pytest.raises(ValueError, match=r"INPUT\.DATASET_MAPPER_NAME is 'coco'.*psf_panoptic"):
        build_mapper(make_cfg(DATASET_MAPPER_NAME="coco"), is_train=True)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("psf_panoptic_lsj", "MIN_SCALE", 3.0),
        ("psf_panoptic_lsj", "IMAGE_SIZE", 0),
        ("psf_panoptic_cityscapes", "CROP.SINGLE_CATEGORY_MAX_AREA", 0.0),
    ],
)
def test_impossible_values_are_named(name, key, value):
    keys = {"DATASET_MAPPER_NAME": name, "CROP__ENABLED": True, key: value}
    with pytest.raises(ValueError, match=rf"INPUT.*{key}.*{value}"):
        build_mapper(make_cfg(**keys), is_train=True)


def test_unknown_flip_is_named():
    with pytest.raises(ValueError, match=r"INPUT\.RANDOM_FLIP is 'both'"):
        build_mapper(make_cfg(RANDOM_FLIP="both"), is_train=True)


@pytest.mark.parametrize("key", ["file_name", "pan_seg_file_name"])
def test_missing_file_is_named_with_the_variable(make_sample, key, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    sample = make_sample([[5]], [info(5)])
    Path(sample[key]).unlink()
    with pytest.raises(ValueError, match=rf"{Path(sample[key]).name}.*missing.*DETECTRON2_DATASETS"):
        plain()(sample)


@pytest.mark.parametrize("key", ["pan_seg_file_name", "segments_info"])
def test_dict_without_panoptic_ground_truth_is_refused_in_training_alone(make_sample, key):
    sample = make_sample([[5]], [info(5)])
    del sample[key]
    with pytest.raises(ValueError, match=r"image\.png: no panoptic ground truth.*DATASETS\.TRAIN"):
        plain()(sample)
    build_mapper(make_cfg(), is_train=False)(sample)


@pytest.mark.parametrize("is_train", [False, True])
def test_sizes_that_the_json_exchanges_are_named(make_sample, is_train):
    sample = {**make_sample([[5, 5]], [info(5)]), "height": 2, "width": 1}
    with pytest.raises(ValueError, match=r"image\.png is 2 x 1 pixels, .*JSON .* has 1 x 2 .*psf validate --fix"):
        build_mapper(make_cfg(), is_train)(sample)


def test_png_of_another_size_is_named(make_sample):
    sample = make_sample([[5, 5]], [info(5)], image=np.zeros((3, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"gt\.png is 2 x 1 pixels, but its image .*image\.png is 4 x 3"):
        plain()(sample)


def test_image_of_another_size_than_the_json_says_is_named(make_sample):
    sample = make_sample([[5]], [info(5)]) | {"height": 9, "width": 9}
    with pytest.raises(ValueError, match=r"image\.png is 1 x 1 pixels, .* has 9 x 9"):
        plain()(sample)


def test_corrupt_image_is_named(make_sample):
    sample = make_sample([[5]], [info(5)])
    Path(sample["file_name"]).write_bytes(b"")
    with pytest.raises(ValueError, match=r"image\.png: empty, corrupt"):
        plain()(sample)


# ------------------------------------------------------------------ real images


@pytest.fixture(scope="module")
def coco_dicts(shared: Path) -> list[dict]:
    root = shared / "data" / "coco25" / "coco"
    metadata = MetadataCatalog.get("coco_2017_val_panoptic").as_dict()
    paths = [str(root / part) for part in ("annotations/panoptic_val2017.json", "val2017", "panoptic_val2017")]
    return load_coco_panoptic_json(*paths, metadata)


def test_real_coco_ground_truth_is_kept_to_the_pixel(coco_dicts):
    mapper = plain()
    crowds = 0
    for sample in coco_dicts:
        output = mapper(sample)
        areas = np.bincount(output["panoptic_labels"].numpy().ravel(), minlength=len(output["segments_info"]) + 1)
        found = sorted((s["category_id"], s["isthing"], s["iscrowd"], areas[s["id"]]) for s in output["segments_info"])
        listed = sample["segments_info"]
        assert found == sorted((s["category_id"], s["isthing"], bool(s["iscrowd"]), s["area"]) for s in listed)
        with Image.open(sample["file_name"]) as image:
            assert output["image"].shape == (3, image.height, image.width)
        crowds += sum(segment["iscrowd"] for segment in output["segments_info"])
    assert crowds == 12


def test_real_coco_goes_through_the_released_augmentation(coco_dicts):
    cfg = make_cfg(CROP__ENABLED=True, CROP__TYPE="absolute_range", CROP__SIZE=[384, 600], MIN_SIZE_TRAIN=(320,))
    cfg.INPUT.MAX_SIZE_TRAIN = 533
    mapper = build_mapper(cfg, is_train=True)
    np.random.seed(0)
    for sample in coco_dicts:
        output = mapper(sample)
        ids = np.unique(output["panoptic_labels"].numpy())
        assert sorted({*ids.tolist(), 0} - {0}) == [segment["id"] for segment in output["segments_info"]]

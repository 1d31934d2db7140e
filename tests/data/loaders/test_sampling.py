"""How often each image is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_train_loader
from detectron2.utils.env import seed_all_rng

from psf.data.loaders import build_train_loader, check_sampler, join_datasets, repeat_factors
from tests.models import tiny_config


def test_samplers_that_need_classes():
    cfg = tiny_config(DATALOADER__SAMPLER_TRAIN="RepeatFactorTrainingSampler")
    check_sampler(cfg, [{"annotations": []}, {"segments_info": []}])
    with pytest.raises(ValueError, match=r"SAMPLER_TRAIN is .*segments_info nor annotations.*\"TrainingSampler\""):
        check_sampler(cfg, [{"segments_info": []}, {"psf_scene": {}}])
    with pytest.raises(ValueError, match=r'SAMPLER_TRAIN is "RandomSubsetTrainingSampler": expected one of'):
        check_sampler(tiny_config(DATALOADER__SAMPLER_TRAIN="RandomSubsetTrainingSampler"), [])


def test_images_with_rare_classes_are_repeated():
    cfg = tiny_config(DATALOADER__REPEAT_THRESHOLD=0.9)
    classes = [[0], [0], [0, 1], [0]]
    dicts = [{"segments_info": [{"category_id": one} for one in of_image]} for of_image in classes]
    dicts[3]["annotations"] = []  # the panoptic segments are what the model is trained on
    # Class 1 is in a quarter of the images, class 0 in all: sqrt(0.9 / 0.25) and 1.
    assert repeat_factors(cfg, dicts).tolist() == pytest.approx([1, 1, (0.9 / 0.25) ** 0.5, 1])


COMMON, RARE = "psf_test_common", "psf_test_rare"


def image(name: str, *classes: int) -> dict:
    annotations = [{"category_id": one, "iscrowd": 0} for one in classes]
    return {"file_name": name, "height": 2, "width": 3, "annotations": annotations}


@pytest.fixture
def two_sets() -> Iterator[list[tuple[str, list[dict]]]]:
    """Four and two images; class 1 is in a quarter of the images of the first set."""
    first = [image(f"{COMMON}{i}", 0, *([1] if i == 2 else [])) for i in range(4)]
    sets = [(COMMON, first), (RARE, [image(f"{RARE}{i}", 2) for i in range(2)])]
    for name, dicts in sets:
        DatasetCatalog.register(name, lambda dicts=dicts: dicts)
    yield sets
    for name, _ in sets:
        DatasetCatalog.remove(name)


def weighted(name: str, factors: list, **more: object) -> CfgNode:
    return tiny_config(
        DATALOADER__SAMPLER_TRAIN=name,
        DATALOADER__REPEAT_THRESHOLD=0.9,
        DATALOADER__NUM_WORKERS=0,
        DATASETS__TRAIN=(COMMON, RARE),
        DATASETS__TRAIN_REPEAT_FACTOR=factors,
        SOLVER__IMS_PER_BATCH=2,
        **more,
    )


class TestWeightedDatasets:
    def test_factors(self, two_sets: list):
        def factors(name: str) -> list[float]:
            cfg = weighted(name, [(RARE, 3.0)])
            return repeat_factors(cfg, join_datasets(cfg, two_sets)).tolist()

        assert factors("WeightedTrainingSampler") == [1, 1, 1, 1, 3, 3]
        # Class 1 is in 1 of 4 images of its set: sqrt(0.9 / 0.25). Of all six images it would be sqrt(0.9 / (1 / 6)).
        expected = pytest.approx([1, 1, (0.9 / 0.25) ** 0.5, 1, 3, 3])
        assert factors("WeightedCategoryTrainingSampler") == expected

    @pytest.mark.parametrize("name", ["WeightedTrainingSampler", "WeightedCategoryTrainingSampler"])
    def test_order_is_detectron2s(self, name: str, two_sets: list):
        cfg, names = weighted(name, [(RARE, 2.5), (COMMON, 0.5)]), [[], []]
        for found, build in zip(names, (self.ours, self.theirs)):
            seed_all_rng(3)
            found += [one["file_name"] for batch in islice(build(cfg, two_sets), 30) for one in batch]
        assert names[0] == names[1]
        counts = Counter(one.rstrip("0123456789") for one in names[0])
        assert counts[RARE] > 1.5 * counts[COMMON]  # expected: 2 * 2.5 to 4 * 0.5, or to 0.5 * (3 + sqrt(3.6))

    @staticmethod
    def ours(cfg: CfgNode, sets: list, mapper: Callable[[dict], dict] = lambda one: one):
        return build_train_loader(cfg, join_datasets(cfg, sets), mapper)

    @staticmethod
    def theirs(cfg: CfgNode, sets: list):
        return build_detection_train_loader(cfg, mapper=lambda one: one)

    def test_a_stopped_training_continues_with_the_next_image(self, two_sets: list):
        cfg = weighted("WeightedTrainingSampler", [(RARE, 2.5)])
        first = self.ours(cfg, two_sets)
        batches = iter(first)
        next(batches)
        second = self.ours(cfg, two_sets)
        assert not second.load_state_dict(first.state_dict())
        assert list(islice(second, 9)) == list(islice(batches, 9))

    @pytest.mark.parametrize(
        ("factors", "message"),
        [
            (
                [("other", 2.0)],
                r"has \('other', 2\.0\): expected a pair of a name in DATASETS\.TRAIN \(psf_test_common, ",
            ),
            ([RARE], r"has 'psf_test_rare': expected a pair"),
            ([(RARE, -1)], r".*a number of 0 or more"),
            ([(RARE, float("nan"))], r".*a number of 0 or more"),
            ([(RARE, "3")], r".*a number of 0 or more"),
            ([(RARE, 0), (COMMON, 0.0)], "is 0 for all of DATASETS"),
        ],
    )
    def test_mistakes(self, factors: list, message: str):
        with pytest.raises(ValueError, match=rf"^DATASETS\.TRAIN_REPEAT_FACTOR {message}"):
            check_sampler(weighted("WeightedTrainingSampler", factors), [])

    def test_factors_that_nothing_reads(self):
        with pytest.raises(
            ValueError, match=r'no effect on DATALOADER\.SAMPLER_TRAIN "TrainingSampler": expected "Wei'
        ):
            check_sampler(weighted("TrainingSampler", [(RARE, 2.0)]), [])

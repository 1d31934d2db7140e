"""Merging for the outputs of any model, by hand and on outputs as Mask2Former has them."""

from __future__ import annotations

import pytest
import torch
from detectron2.data import Metadata

from psf.errors import UserError
from psf.inference import ImageGeometry, MergingThresholds, merge_panoptic
from psf.structures import PanopticClasses

THRESHOLDS = MergingThresholds(alpha=1.0, beta=1.0, t_cnf=0.25, t_keep=0.6)
# Things and stuff in any order: 0 sky, 1 ball, 2 ground, 3 box.
METADATA = Metadata(thing_dataset_id_to_contiguous_id={30: 1, 10: 3}, stuff_dataset_id_to_contiguous_id={5: 0, 40: 2})


def row(*spans: tuple[int, int, float], width: int = 8) -> torch.Tensor:
    """Masks of one row: a score from one column to before another, 0 elsewhere."""
    columns = torch.arange(width)
    return torch.stack([((columns >= low) & (columns < high))[None] * score for low, high, score in spans])


def test_by_hand():
    """The ball is drawn first and takes two pixels of the sky; of the box, nothing is left below ball and ground."""
    masks = row((2, 4, 1.0), (0, 4, 0.9), (4, 7, 0.8), (3, 6, 0.6), (7, 8, 0.9), (7, 8, 1.0))
    scores, ids = torch.tensor([0.9, 0.8, 0.7, 0.9, 0.6, 0.2]), torch.tensor([1, 0, 2, 3, 0, 1])
    # Confidences: 0.9, 0.72, 0.56, 0.54, 0.54, and 0.2, below T_CNF. Half of the sky is left: less than T_KEEP 0.6.
    panoptic_seg, segments = merge_panoptic(scores, ids, masks, METADATA, (1, 8), THRESHOLDS)
    assert panoptic_seg.tolist() == [[0, 0, 1, 1, 2, 2, 2, 3]] and panoptic_seg.dtype == torch.int32
    found = [(one["id"], one["category_id"], one["isthing"], one["area"]) for one in segments]
    assert found == [(1, 1, True, 2), (2, 2, False, 3), (3, 0, False, 1)]
    assert [one["score"] for one in segments] == pytest.approx([0.9, 0.56, 0.54])
    # With a lower T_KEEP for stuff, the two skies become one segment.
    pair = (THRESHOLDS, THRESHOLDS._replace(t_keep=0.5))
    panoptic_seg, segments = merge_panoptic(scores, ids, masks, METADATA, (1, 8), pair)
    assert panoptic_seg.tolist() == [[2, 2, 1, 1, 3, 3, 3, 2]]
    assert [(one["category_id"], one["area"]) for one in segments] == [(1, 2), (0, 3), (2, 3)]


def test_padding_is_cropped_and_classes_may_be_given():
    """A mask of the left half of a padded image of 4 columns is the whole image of 2 columns."""
    classes = PanopticClasses.from_counts(1, 0)
    sizes = ImageGeometry(padded_size=(1, 4), image_size=(1, 2), output_size=(1, 2))
    args = (torch.ones(1), torch.zeros(1, dtype=torch.long), row((0, 2, 1.0), width=4), classes)
    panoptic_seg, [segment] = merge_panoptic(*args, sizes, THRESHOLDS)
    assert panoptic_seg.tolist() == [[1, 1]] and segment["area"] == 2
    assert merge_panoptic(*args, (1, 4), THRESHOLDS)[0].tolist() == [[1, 1, 0, 0]]


def test_raw_outputs_of_mask2former():
    """As in docs/usage.md: pred_logits (Q, K + 1), of which the last is no object; pred_masks (Q, h, w) logits."""
    pred_logits = torch.full((3, 5), -9.0)
    pred_logits[0, 1] = pred_logits[1, 4] = pred_logits[2, 0] = 9.0
    pred_masks = 40 * (row((0, 3, 1.0), (0, 8, 1.0), (3, 8, 1.0)) - 0.5)
    scores, ids = pred_logits.softmax(-1).max(-1)
    is_object = ids != pred_logits.shape[-1] - 1
    panoptic_seg, segments = merge_panoptic(
        scores[is_object], ids[is_object], pred_masks[is_object].sigmoid(), METADATA, (2, 8), THRESHOLDS
    )
    assert panoptic_seg.tolist() == 2 * [[1, 1, 1, 2, 2, 2, 2, 2]]
    assert {(one["category_id"], one["area"]) for one in segments} == {(1, 6), (0, 10)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_ids_of_the_host_for_masks_on_a_gpu():
    ids, masks = torch.tensor([1, 0]), row((2, 4, 1.0), (4, 8, 0.9))
    panoptic_seg, _ = merge_panoptic(torch.ones(2).cuda(), ids, masks.cuda(), METADATA, (1, 8), THRESHOLDS)
    assert panoptic_seg.tolist() == [[0, 0, 1, 1, 2, 2, 2, 2]]


def test_nothing():
    empty = torch.zeros(0)
    panoptic_seg, segments = merge_panoptic(empty, empty.long(), torch.zeros(0, 3, 4), METADATA, (6, 8), THRESHOLDS)
    assert panoptic_seg.tolist() == [[0] * 8] * 6 and segments == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_scores": torch.tensor([3.0])}, r"class_scores are in 3 \.\. 3.*softmax"),
        ({"mask_scores": -torch.ones(1, 1, 2)}, r"mask_scores are in -1 \.\. -1.*sigmoid"),
        ({"mask_scores": torch.full((1, 1, 2), torch.nan)}, "mask_scores are in nan"),
        ({"class_ids": torch.tensor([4])}, r"class_ids contain \[4\], the metadata has 0 \.\. 3"),
        ({"mask_scores": torch.ones(1, 1, 1, 2)}, r"have the shapes \(1,\), \(1,\) and \(1, 1, 1, 2\)"),
        ({"class_ids": torch.tensor([1, 1])}, "have the shapes"),
        ({"metadata": Metadata()}, "the metadata has neither"),
        ({"metadata": PanopticClasses((0, 1), (1, 2))}, r"ids \[1\] of the metadata mean a thing class and a stuff"),
    ],
)
def test_mistakes(change, message):
    arguments = {
        "class_scores": torch.ones(1),
        "class_ids": torch.ones(1, dtype=torch.long),
        "mask_scores": torch.ones(1, 1, 2),
        "metadata": METADATA,
        "sizes": (1, 2),
        "thresholds": THRESHOLDS,
    }
    merge_panoptic(**arguments)
    with pytest.raises(UserError, match=message):
        merge_panoptic(**{**arguments, **change})

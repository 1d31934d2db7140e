"""The released recipe (configs/coco/released/Base-Released.yaml): its differences from the paper's text."""

from detectron2.config import LazyCall as L

from psf.losses import HungarianMatcher, PerLayerAssigner

from .panoptic_segformer import model

# A fourth level for encoder and location decoder; boxes are refined from layer to layer, also at test.
model.neck.num_levels = 4
model.location_decoder.update(box_refinement=True, head_at_test=True)

for decoder in (model.thing_decoder, model.stuff_decoder):
    decoder.update(mask_activation="relu", ignore_padding=False, position_in_stream=True)

# The location decoder classifies the things, and the mask decoder gets only its matched queries.
model.thing_classifier = None
weights = model.matching.matcher
model.matching = L(PerLayerAssigner)(
    matcher=weights,
    second_matcher=L(HungarianMatcher)(**{**weights, "class_weight": 4.0}),
    queries_per_thing=1,
)
model.criterion.update(balance="share", stuff_cls_weight=4.0)

model.post_processor.extra_pixels = 1.0
model.post_processor.instance.boxes = "location_decoder"
model.settings.candidates = "top_pairs"

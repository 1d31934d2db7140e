"""Panoptic SegFormer as a Detectron2 meta-architecture: a batch of images in, losses or results out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from psf.errors import UserError
from psf.inference import (
    CandidateOutcomes,
    ImageGeometry,
    MaskWiseMerging,
    PostProcessor,
    choose_things,
    join_candidates,
    semantic_classes,
    semantic_result,
    stuff_candidates,
    thing_candidates,
)
from psf.inference.candidates import as_integers, separate_stuff
from psf.inference.tiles import tiled_candidates
from psf.losses import Assigner, MaskHealth, PanopticCriterion, ThingAssignments, measure_mask_health
from psf.meta_arch.build import ResultSettings, model_parts
from psf.modeling import (
    FineLevel,
    LocationDecoderProtocol,
    MaskDecoderProtocol,
    MaskFeatureMap,
    Neck,
    PixelEncoderProtocol,
    QueryClassifier,
)
from psf.modeling.activation_checkpointing import checkpoint_activations
from psf.ops.transfer import upload
from psf.structures import (
    Candidates,
    DecodedMasks,
    FeatureTokens,
    PanopticClasses,
    PanopticTargets,
    TrainingPredictions,
    panoptic_targets,
    stuff_as_things,
)

__all__ = ["PanopticSegFormer", "padded_pixels"]

NO_MASKS = DecodedMasks([], [])


@META_ARCH_REGISTRY.register()
class PanopticSegFormer(nn.Module):
    """Backbone, neck, pixel encoder; thing queries through the location decoder; all queries through mask decoders.

    Args:
        backbone: images -> maps by name.
        neck: maps -> levels of D channels.
        pixel_encoder: levels -> tokens.
        fine_level: one more level for the mask decoders; None: they receive only the encoder's levels.
        mask_feature_map: features that refine the masks; None: masks have the size of the finest level.
        location_decoder: tokens -> thing queries with their locations; None: the model has no thing classes.
        thing_decoder: mask decoder of the thing queries.
        thing_classifier: classes of the refined thing queries; None: the location decoder predicts them.
        stuff_decoder: mask decoder of the stuff queries; None: the model has no stuff classes, or its queries are joint
            and `location_decoder` and `thing_classifier` have the stuff classes after the thing classes.
        stuff_classifier: presence of each refined stuff query's class; None without stuff queries.
        matching: target assignment, and selection of the queries that train the mask decoder.
        criterion: the training loss.
        post_processor: candidates -> panoptic map and instances.
        classes: contiguous ids of the thing and stuff classes.
        dim: D.
        fine_feature: name of the input map of `fine_level`.
        mask_feature: name of the input map of `mask_feature_map`.
        num_mask_levels: levels that the mask decoders attend to, the finest ones.
        pixel_mean: per channel, in units of the images.
        pixel_std: per channel.
        size_divisibility: images are padded to a multiple of it; -1: the backbone's `size_divisibility`.
        channels_last: memory format of the images and of the backbone's weights.
        activation_checkpointing: parts whose blocks run again in backward, see `checkpoint_activations`.
        settings: settings of inference.

    Attributes:
        mask_health: counts for the last training batch; None before the first.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        neck: Neck,
        pixel_encoder: PixelEncoderProtocol,
        fine_level: FineLevel | None = None,
        mask_feature_map: MaskFeatureMap | None = None,
        mask_feature: str = "",
        location_decoder: LocationDecoderProtocol | None,
        thing_decoder: MaskDecoderProtocol | None,
        thing_classifier: QueryClassifier | None,
        stuff_decoder: MaskDecoderProtocol | None,
        stuff_classifier: QueryClassifier | None,
        matching: Assigner,
        criterion: PanopticCriterion,
        post_processor: PostProcessor,
        classes: PanopticClasses,
        dim: int,
        fine_feature: str = "",
        num_mask_levels: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int,
        channels_last: bool,
        activation_checkpointing: Sequence[str],
        settings: ResultSettings,
    ):
        super().__init__()
        self.backbone, self.neck, self.pixel_encoder = backbone, neck, pixel_encoder
        self.fine_level, self.fine_feature = fine_level, fine_feature
        self.mask_feature_map, self.mask_feature = mask_feature_map, mask_feature
        self.channels_last = channels_last
        self.backbone.to(memory_format=self.memory_format)
        self.location_decoder = location_decoder
        self.thing_decoder, self.thing_classifier = thing_decoder, thing_classifier
        self.stuff_decoder, self.stuff_classifier = stuff_decoder, stuff_classifier
        if stuff_decoder is not None:
            self.stuff_query_feat = nn.Embedding(len(classes.stuff_ids), dim)
            self.stuff_query_pos = nn.Embedding(len(classes.stuff_ids), dim)
        self.matching, self.criterion, self.post_processor = matching, criterion, post_processor
        self.classes, self.num_mask_levels, self.settings = classes, num_mask_levels, settings
        self.size_divisibility = backbone.size_divisibility if size_divisibility < 0 else size_divisibility
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.mask_health: MaskHealth | None = None
        checkpoint_activations(self, activation_checkpointing)
        self.register_load_state_dict_pre_hook(_refuse_released_names)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return model_parts(cfg)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.pixel_mean.device
        return device

    @property
    def has_joint_queries(self) -> bool:
        """Whether the thing queries also predict stuff (table 8)."""
        return self.stuff_decoder is None and len(self.classes.stuff_ids) > 0

    @property
    def has_tiles(self) -> bool:
        """Whether images are cut into tiles at test."""
        return self.settings.tiles.side > 0

    @property
    def mask_stride(self) -> int:
        """Pixels of the image per pixel of a mask."""
        finest = self.mask_feature or self.fine_feature or self.neck.in_features[0]
        stride: int = self.backbone.output_shape()[finest].stride
        return stride

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format of the backbone's input; a property because torch.save cannot store it as an attribute."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Detectron2's interface.

        Args:
            batched_inputs: one dict per image: `image` (C, H, W), channels in INPUT.FORMAT's order, in the units of
                MODEL.PIXEL_MEAN; `height` and `width` of the results (default: the image's); in training the
                ground truth, in one of the three forms of `psf.structures.targets`.

        Returns:
            In training the loss terms by name (the total is their sum); else one dict per image with `panoptic_seg`
            ((H, W) int32 map, segments_info), `instances` and `sem_seg` (K, H, W), each if enabled in MODEL.PSF.TEST;
            with `settings.semantic_classes`, `sem_seg` is the (H, W) int32 map of the classes with the best scores.

        Raises:
            UserError: if an image has NaN or infinite values or another number of channels than the model, or the
                ground truth has none of the three forms.
        """
        if not self.training:
            if torch.jit.is_tracing():
                self._check_traceable(batched_inputs)
            return [
                self.result(candidates, geometry) for candidates, geometry in self.candidates_by_image(batched_inputs)
            ]
        images = self.preprocess(batched_inputs)
        targets = panoptic_targets(batched_inputs, self.classes, tuple(images.tensor.shape[-2:]), self.device)
        if self.has_joint_queries:
            targets = [stuff_as_things(target, len(self.classes.thing_ids)) for target in targets]
        return self._losses(*self._encode(images.tensor, padded_pixels(images)), targets)

    def _check_traceable(self, batched_inputs: list[dict[str, Any]]) -> None:
        """Refuse results that depend on numbers of the example, which a trace stores, other than its size.

        A trace, also in Detectron2's TracingAdapter, is for images of one size: `preprocess` enforces it.
        """
        processor, settings = self.post_processor, self.settings
        is_merging, is_panoptic = isinstance(processor, MaskWiseMerging), settings.panoptic
        obstacles = {
            "MODEL.PSF.TEST.TILES.SIZE to 0": self.has_tiles,
            "MODEL.PSF.TEST.PANOPTIC_ON to False, or POST_PROCESSOR.NAME to MaskWiseMerging": (
                is_panoptic and not is_merging
            ),
            'MODEL.PSF.TEST.PANOPTIC_ON to False, as MODEL.PSF.QUERIES is "joint"': is_panoptic
            and self.has_joint_queries,
            "MODEL.PSF.TEST.INSTANCE.NMS_THRESH to 1.0": settings.instance and processor.instance.nms_thresh < 1,
            "height and width of the input to int, or leave them out": any(
                isinstance(x.get(key), Tensor) for x in batched_inputs for key in ("height", "width")
            ),
        }
        for change, is_needed in obstacles.items():
            if is_needed:
                raise UserError(f"a trace would repeat the result of its example for other images: set {change}")

    def explain(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, CandidateOutcomes]]:
        """Explain why each candidate is, or is not, in the test results of `forward`.

        Args:
            batched_inputs: inputs of `forward` at test.

        Returns:
            One dict per image with the outcomes for `panoptic_seg` and `instances`, each if enabled in MODEL.PSF.TEST;
            see `psf.inference.PostProcessor.explain`.
        """
        on = {"panoptic": self.settings.panoptic, "instance": self.settings.instance}
        return [
            self.post_processor.explain(candidates, geometry, **on)
            for candidates, geometry in self.candidates_by_image(batched_inputs)
        ]

    def candidates_by_image(self, batched_inputs: list[dict[str, Any]]) -> Iterator[tuple[Candidates, ImageGeometry]]:
        """At test: the candidates of each image, and the sizes of their masks; `result` makes its results of them."""
        if self.has_tiles:
            yield from map(self._tiled_candidates, batched_inputs)
            return
        images = self.preprocess(batched_inputs)
        candidates = self.candidates(images.tensor, padded_pixels(images))
        for x, image_size, image_candidates in zip(batched_inputs, images.image_sizes, candidates, strict=True):
            output_size = (x.get("height", image_size[0]), x.get("width", image_size[1]))
            height, width = as_integers(images.tensor.shape[-2:])
            yield image_candidates, ImageGeometry((height, width), tuple(image_size), output_size)

    def _tiled_candidates(self, x: dict[str, Any]) -> tuple[Candidates, ImageGeometry]:
        def candidates_of(images: ImageList) -> Candidates:
            return self.candidates(images.tensor, padded_pixels(images))[0]

        return tiled_candidates(
            x,
            self.settings.tiles,
            self.post_processor,
            self.preprocess,
            candidates_of,
            stride=self.mask_stride,
            is_fixed=not self.has_joint_queries,
        )

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalize the images, and pad them with zeros to the largest height and width of the batch."""
        images, flags = [], []
        for x in batched_inputs:
            image = upload(x["image"], self.device)
            if torch.jit.is_tracing():  # an operation that fails if the trace gets an image of another size
                image = image.expand(as_integers(image.shape))
            name = x.get("file_name", x.get("image_id", "?"))
            if len(image) != len(self.pixel_mean):
                raise UserError(
                    f"image {name} has {len(image)} channels, the model {len(self.pixel_mean)} (MODEL.PIXEL_MEAN)"
                )
            if image.is_floating_point() and not torch.jit.is_tracing():
                flags.append((name, torch.isfinite(image).all()))
            # `.half()` and `.bfloat16()` also convert the two buffers.
            images.append(((image - self.pixel_mean) / self.pixel_std).to(self.pixel_mean.dtype))
        if flags and not torch.stack([flag for _, flag in flags]).all():  # one wait for the device
            name = next(name for name, flag in flags if not flag)
            raise UserError(f"image {name} has NaN or infinite values; expected finite numbers")
        padding = self.backbone.padding_constraints
        batch = ImageList.from_tensors(images, self.size_divisibility, padding_constraints=padding)
        return ImageList(batch.tensor, [as_integers(size) for size in batch.image_sizes])

    def _encode(self, images: Tensor, padding_mask: Tensor | None) -> tuple[FeatureTokens, FeatureTokens]:
        """All tokens, and the tokens that the mask decoders attend to."""
        features = self.backbone(images.contiguous(memory_format=self.memory_format))
        tokens = self.pixel_encoder(self.neck(features), padding_mask)
        memory = tokens.finest(self.num_mask_levels)
        if self.fine_level is not None:
            memory = self.fine_level(features[self.fine_feature], memory, padding_mask)
        if self.mask_feature_map is not None:
            memory = self.mask_feature_map(features[self.mask_feature], memory, padding_mask)
        return tokens, memory

    def _decode_stuff(self, memory: FeatureTokens, layer: int | None) -> tuple[DecodedMasks, list[Tensor]]:
        """Masks and class logits (B, K_stuff) of the stuff queries."""
        if self.stuff_decoder is None or self.stuff_classifier is None:
            return NO_MASKS, []
        queries = self.stuff_query_feat.weight.expand(len(memory.tokens), -1, -1)
        decoded = self.stuff_decoder(queries, memory, self.stuff_query_pos.weight, layer=layer)
        return decoded, [logits[..., 0] for logits in self.stuff_classifier(decoded, layer)]

    def _losses(
        self, tokens: FeatureTokens, memory: FeatureTokens, targets: list[PanopticTargets]
    ) -> dict[str, Tensor]:
        stuff, stuff_logits = self._decode_stuff(memory, layer=None)
        predictions = TrainingPredictions([], NO_MASKS, [], stuff, stuff_logits)
        assignments = ThingAssignments([], [])
        if self.location_decoder is not None and self.thing_decoder is not None:
            located = self.location_decoder(tokens)
            selected = self.matching.select(located, targets)
            things = self.thing_decoder(selected.queries, memory, selected.query_pos, boxes=selected.boxes_cxcywh_norm)
            logits = [] if self.thing_classifier is None else self.thing_classifier(things)
            predictions = predictions._replace(
                location_layers=located.layers,
                things=things,
                thing_class_logits=logits,
                proposals=located.proposals,
            )
            assignments = self.matching.assign(predictions, selected, targets)
        self.mask_health = measure_mask_health(predictions, assignments, targets, self.post_processor.mask_threshold)
        return self.criterion(predictions, assignments, targets)

    def candidates(self, images: Tensor, padding_mask: Tensor | None) -> list[Candidates]:
        """The candidates of each image: chosen things, then all stuff classes; or chosen joint queries.

        This is the whole network at test, without post-processing; torch.compile makes one graph of it.

        Args:
            images: (B, C, H, W), normalized and padded.
            padding_mask: (B, H, W), True where padded; None if no image is padded.
        """
        tokens, memory = self._encode(images, padding_mask)
        stuff, stuff_logits = self._decode_stuff(memory, self.settings.layer)
        things = self._thing_candidates(tokens, memory)
        if self.has_joint_queries:
            return [separate_stuff(one, len(self.classes.thing_ids)) for one in things]
        if not stuff_logits:
            return things
        candidates = [
            stuff_candidates(*one)
            for one in zip(stuff_logits[-1], stuff.mask_scores[-1], stuff.refined_queries[-1], strict=True)
        ]
        if things:
            candidates = [join_candidates(t, s) for t, s in zip(things, candidates, strict=True)]
        return candidates

    def _thing_candidates(self, tokens: FeatureTokens, memory: FeatureTokens) -> list[Candidates]:
        if self.location_decoder is None or self.thing_decoder is None:
            return []
        located = self.location_decoder(tokens)
        layer, strategy, num_pairs = self.settings.layer, self.settings.candidates, self.settings.num_top_pairs
        if self.thing_classifier is None:  # the location decoder has predicted the classes: decode the chosen queries
            things = choose_things(located.layers[-1].class_logits, strategy, num_pairs)
            chosen = located.pick(things.indices)
            boxes = chosen.boxes_cxcywh_norm
            decoded = self.thing_decoder(chosen.queries, memory, chosen.query_pos, boxes=boxes, layer=layer)
            masks, queries = decoded.mask_scores[-1], decoded.refined_queries[-1]
        else:
            boxes = located.boxes_cxcywh_norm
            decoded = self.thing_decoder(located.queries, memory, located.query_pos, boxes=boxes, layer=layer)
            things = choose_things(self.thing_classifier(decoded, layer)[-1], strategy, num_pairs)
            masks = torch.take_along_dim(decoded.mask_scores[-1], things.indices[..., None, None], dim=1)
            queries = torch.take_along_dim(decoded.refined_queries[-1], things.indices[..., None], dim=1)
        pred_boxes = None
        if located.layers and located.layers[-1].locations.shape[-1] == 4:
            pred_boxes = torch.take_along_dim(located.layers[-1].locations, things.indices[..., None], dim=1)
        return thing_candidates(things, masks, pred_boxes, queries)

    def result(self, candidates: Candidates, geometry: ImageGeometry) -> dict[str, Any]:
        """One image's results at the output size of `geometry`, each if enabled in MODEL.PSF.TEST."""
        result = self.post_processor.results(
            candidates, self.classes, geometry, panoptic=self.settings.panoptic, instance=self.settings.instance
        )
        if self.settings.semantic:
            summarize = semantic_classes if self.settings.semantic_classes else semantic_result
            result["sem_seg"] = summarize(candidates, self.classes, geometry)
        return result


def padded_pixels(images: ImageList) -> Tensor | None:
    """(B, H, W) bool, True where padded; None if no image is padded."""
    height, width = as_integers(images.tensor.shape[-2:])
    if all(tuple(size) == (height, width) for size in images.image_sizes):
        return None
    mask = torch.ones(len(images), height, width, dtype=torch.bool, device=images.tensor.device)
    for one, (h, w) in zip(mask, images.image_sizes, strict=True):
        one[:h, :w] = False
    return mask


def _refuse_released_names(model: nn.Module, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:
    """Raise a UserError for weights under the released code's names: a lenient loader would skip them all."""
    if any(name.startswith(f"{prefix}bbox_head.") for name in state_dict):
        raise UserError(
            "these are the weights of a released Panoptic SegFormer, under other names (bbox_head...): convert the "
            "file with psf convert-weights, or load it as it is with psf.engine.Predictor or psf train"
        )

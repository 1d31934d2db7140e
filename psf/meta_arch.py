"""Panoptic SegFormer as a Detectron2 meta-architecture: a batch of images in, losses or results out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from psf.classes import PanopticClasses
from psf.inference import CandidateOutcomes, Frame, choose_things, join_candidates, stuff_candidates, thing_candidates
from psf.joint_queries import separate_stuff, stuff_as_things
from psf.losses import (
    MaskHealth,
    PanopticCriterion,
    PerLayerMatching,
    SharedMatching,
    ThingAssignments,
    measure_mask_health,
)
from psf.model_parts import ResultSettings, model_parts
from psf.modeling import FineLevel, Neck
from psf.post_processing import PostProcessor, semantic_result
from psf.predictions import Candidates, DecodedMasks, FeatureTokens, PanopticTargets, TrainingPredictions
from psf.recompute import recompute_blocks
from psf.targets import panoptic_targets
from psf.tiled_inference import tiled_candidates

__all__ = ["PanopticSegFormer", "padded_pixels"]

NO_MASKS = DecodedMasks([], [])


@META_ARCH_REGISTRY.register()
class PanopticSegFormer(nn.Module):
    """Backbone, neck, pixel encoder; thing queries through the location decoder; all queries through mask decoders.

    Args:
        backbone: gives the maps that `neck` asks for.
        neck: maps -> levels of D channels.
        pixel_encoder: levels -> tokens.
        fine_level: one more level for the mask decoders; None: they see those of the tokens alone.
        location_decoder: tokens -> located thing queries; None: the model knows no things.
        thing_decoder: mask decoder of the thing queries.
        thing_classifier: classes of the refined thing queries; None: the location decoder names them.
        stuff_decoder: mask decoder of the stuff queries; None: the model knows no stuff, or its queries are joint,
            and `location_decoder` and `thing_classifier` name the stuff classes after the thing classes.
        stuff_classifier: presence of each refined stuff query's class; None without stuff queries.
        matching: which queries the mask decoder learns on, and who answers for what.
        criterion: the training loss.
        post_processor: candidates -> panoptic map and instances.
        classes: contiguous ids of the thing and stuff classes.
        dim: D.
        fine_feature: name of the map that `fine_level` takes.
        num_mask_levels: levels that the mask decoders attend to, the finest ones.
        pixel_mean: per channel, in the images' units.
        pixel_std: per channel.
        size_divisibility: images are padded to a multiple of it; -1: what the backbone asks for.
        channels_last: memory format of the images and of the backbone's weights.
        recompute: parts whose blocks are computed again for backward, see `psf.recompute`.
        settings: what is computed at test.

    Attributes:
        mask_health: how much the mask heads found in the last training batch; None before the first.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        neck: Neck,
        pixel_encoder: nn.Module,
        fine_level: FineLevel | None = None,
        location_decoder: nn.Module | None,
        thing_decoder: nn.Module | None,
        thing_classifier: nn.Module | None,
        stuff_decoder: nn.Module | None,
        stuff_classifier: nn.Module | None,
        matching: SharedMatching | PerLayerMatching,
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
        recompute: Sequence[str],
        settings: ResultSettings,
    ):
        super().__init__()
        self.backbone, self.neck, self.pixel_encoder = backbone, neck, pixel_encoder
        self.fine_level, self.fine_feature = fine_level, fine_feature
        self.channels_last = channels_last
        self.backbone.to(memory_format=self.memory_format)
        self.location_decoder = location_decoder
        self.thing_decoder, self.thing_classifier = thing_decoder, thing_classifier
        self.stuff_decoder, self.stuff_classifier = stuff_decoder, stuff_classifier
        if stuff_decoder is not None:
            self.stuff_content = nn.Embedding(len(classes.stuff_ids), dim)
            self.stuff_position = nn.Embedding(len(classes.stuff_ids), dim)
        self.matching, self.criterion, self.post_processor = matching, criterion, post_processor
        self.classes, self.num_mask_levels, self.settings = classes, num_mask_levels, settings
        self.size_divisibility = backbone.size_divisibility if size_divisibility < 0 else size_divisibility
        self.pixel_mean: Tensor
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.mask_health: MaskHealth | None = None
        recompute_blocks(self, recompute)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return model_parts(cfg)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.pixel_mean.device
        return device

    @property
    def has_joint_queries(self) -> bool:
        """Whether the thing queries serve stuff, too (table 8)."""
        return self.stuff_decoder is None and len(self.classes.stuff_ids) > 0

    @property
    def has_tiles(self) -> bool:
        """Whether images are cut into tiles at test."""
        return self.settings.tiles.side > 0

    @property
    def mask_stride(self) -> int:
        """Pixels of the image per pixel of a mask."""
        stride: int = self.backbone.output_shape()[self.fine_feature or self.neck.in_features[0]].stride
        return stride

    @property
    def memory_format(self) -> torch.memory_format:
        """Of what the backbone gets. Not kept as such: torch.save cannot write it."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Detectron2's interface.

        Args:
            batched_inputs: one dict per image: `image` (C, H, W), channels in INPUT.FORMAT's order, in the units of
                MODEL.PIXEL_MEAN; `height` and `width` of the wanted results (default: the image's); in training the
                truth, in one of the three forms of `psf.targets`.

        Returns:
            In training the loss terms by name (the total is their sum); else one dict per image with `panoptic_seg`
            ((H, W) int32 map, segments_info), `instances` and `sem_seg` (K, H, W), as MODEL.PSF.TEST switches them on.

        Raises:
            ValueError: if an image holds NaN or infinite values or has other channels than the model, or the truth is
                not understood.
        """
        if not self.training:
            return [self.result(candidates, frame) for candidates, frame in self._competing(batched_inputs)]
        images = self.preprocess(batched_inputs)
        targets = panoptic_targets(batched_inputs, self.classes, tuple(images.tensor.shape[-2:]), self.device)
        if self.has_joint_queries:
            targets = [stuff_as_things(target, len(self.classes.thing_ids)) for target in targets]
        return self._losses(*self._encode(images.tensor, padded_pixels(images)), targets)

    def explain(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, CandidateOutcomes]]:
        """Why candidates are, or are not, in the results that `forward` gives at test, image by image.

        Args:
            batched_inputs: as `forward` takes them at test.

        Returns:
            One dict per image with the outcomes behind `panoptic_seg` and `instances`, as MODEL.PSF.TEST switches them
            on; see `psf.post_processing.PostProcessor.explain`.
        """
        on = {"panoptic": self.settings.panoptic, "instance": self.settings.instance}
        return [
            self.post_processor.explain(candidates, frame, **on)
            for candidates, frame in self._competing(batched_inputs)
        ]

    def _competing(self, batched_inputs: list[dict[str, Any]]) -> Iterator[tuple[Candidates, Frame]]:
        """What competes for the pixels of each image, and the sizes that its masks have; at test."""
        if self.has_tiles:
            yield from map(self._tiled_candidates, batched_inputs)
            return
        images = self.preprocess(batched_inputs)
        candidates = self.candidates(images.tensor, padded_pixels(images))
        for x, image_size, image_candidates in zip(batched_inputs, images.image_sizes, candidates, strict=True):
            output_size = (x.get("height", image_size[0]), x.get("width", image_size[1]))
            yield image_candidates, Frame(tuple(images.tensor.shape[-2:]), tuple(image_size), output_size)

    def _tiled_candidates(self, x: dict[str, Any]) -> tuple[Candidates, Frame]:
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
        """Normalised, then padded with zeros to the largest height and width of the batch."""
        images = []
        for x in batched_inputs:
            image = x["image"].to(self.device)
            name = x.get("file_name", x.get("image_id", "?"))
            if len(image) != len(self.pixel_mean):
                raise ValueError(
                    f"image {name} has {len(image)} channels, the model {len(self.pixel_mean)} (MODEL.PIXEL_MEAN)"
                )
            if image.is_floating_point() and not torch.isfinite(image).all():
                raise ValueError(f"image {name} holds NaN or infinite values; expected finite numbers")
            images.append((image - self.pixel_mean) / self.pixel_std)
        return ImageList.from_tensors(
            images, self.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )

    def _encode(self, images: Tensor, padding_mask: Tensor | None) -> tuple[FeatureTokens, FeatureTokens]:
        """All tokens, and those that the mask decoders attend to."""
        features = self.backbone(images.contiguous(memory_format=self.memory_format))
        tokens = self.pixel_encoder(self.neck(features), padding_mask)
        memory = tokens.finest(self.num_mask_levels)
        if self.fine_level is not None:
            memory = self.fine_level(features[self.fine_feature], memory, padding_mask)
        return tokens, memory

    def _decode_stuff(self, memory: FeatureTokens, layer: int | None) -> tuple[DecodedMasks, list[Tensor]]:
        """Masks and class logits (B, K_stuff) of the stuff queries, which need no location."""
        if self.stuff_decoder is None or self.stuff_classifier is None:
            return NO_MASKS, []
        queries = self.stuff_content.weight.expand(len(memory.tokens), -1, -1)
        decoded = self.stuff_decoder(queries, memory, self.stuff_position.weight, layer=layer)
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
            things = self.thing_decoder(
                selected.queries, memory, selected.position, **_boxes(selected.boxes_cxcywh_norm)
            )
            logits = [] if self.thing_classifier is None else self.thing_classifier(things)
            predictions = predictions._replace(
                location_layers=located.layers,
                things=things,
                thing_class_logits=logits,
                proposals=located.proposals,
            )
            assignments = self.matching.assign(predictions, selected, targets)
        self.mask_health = measure_mask_health(predictions, assignments, targets, self.post_processor.mask_threshold)
        with torch.autocast(self.device.type, enabled=False):
            return self.criterion(predictions, assignments, targets)

    def candidates(self, images: Tensor, padding_mask: Tensor | None) -> list[Candidates]:
        """What competes for the pixels of each image: chosen things, then all stuff classes; or chosen joint queries.

        All of the network at test, and nothing that depends on its outcome: torch.compile makes one graph of it.

        Args:
            images: (B, C, H, W), normalised and padded.
            padding_mask: (B, H, W), True where padded; None if no image is.
        """
        tokens, memory = self._encode(images, padding_mask)
        stuff, stuff_logits = self._decode_stuff(memory, self.settings.layer)
        things = self._thing_candidates(tokens, memory)
        if self.has_joint_queries:
            return [separate_stuff(one, len(self.classes.thing_ids)) for one in things]
        if not stuff_logits:
            return things
        candidates = [
            stuff_candidates(logits, masks)
            for logits, masks in zip(stuff_logits[-1], stuff.mask_scores[-1], strict=True)
        ]
        if things:
            candidates = [join_candidates(t, s) for t, s in zip(things, candidates, strict=True)]
        return candidates

    def _thing_candidates(self, tokens: FeatureTokens, memory: FeatureTokens) -> list[Candidates]:
        if self.location_decoder is None or self.thing_decoder is None:
            return []
        located = self.location_decoder(tokens)
        layer, way, num_pairs = self.settings.layer, self.settings.candidates, self.settings.num_top_pairs
        if self.thing_classifier is None:  # the classes are known: only the chosen queries are decoded
            things = choose_things(located.layers[-1].class_logits, way, num_pairs)
            queries = located.pick(things.rows)
            boxes = _boxes(queries.boxes_cxcywh_norm)
            masks = self.thing_decoder(queries.queries, memory, queries.position, layer=layer, **boxes).mask_scores[-1]
        else:
            boxes = _boxes(located.boxes_cxcywh_norm)
            decoded = self.thing_decoder(located.queries, memory, located.position, layer=layer, **boxes)
            things = choose_things(self.thing_classifier(decoded, layer)[-1], way, num_pairs)
            masks = torch.take_along_dim(decoded.mask_scores[-1], things.rows[..., None, None], dim=1)
        found = None
        if located.layers and located.layers[-1].locations.shape[-1] == 4:
            found = torch.take_along_dim(located.layers[-1].locations, things.rows[..., None], dim=1)
        return thing_candidates(things, masks, found)

    def result(self, candidates: Candidates, frame: Frame) -> dict[str, Any]:
        """One image's results at the size that the frame names, as MODEL.PSF.TEST switches them on."""
        result = self.post_processor.results(
            candidates, self.classes, frame, panoptic=self.settings.panoptic, instance=self.settings.instance
        )
        if self.settings.semantic:
            result["sem_seg"] = semantic_result(candidates, self.classes, frame)
        return result


def _boxes(boxes: Tensor | None) -> dict[str, Tensor]:
    """The argument of a mask decoder with a box prior; decoders without one need not take it."""
    return {} if boxes is None else {"boxes": boxes}


def padded_pixels(images: ImageList) -> Tensor | None:
    """(B, H, W) bool, True where padded; None if nothing is."""
    height, width = images.tensor.shape[-2:]
    if all(tuple(size) == (height, width) for size in images.image_sizes):
        return None
    mask = torch.ones(len(images), height, width, dtype=torch.bool, device=images.tensor.device)
    for one, (h, w) in zip(mask, images.image_sizes, strict=True):
        one[:h, :w] = False
    return mask

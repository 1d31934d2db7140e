"""The parts of the model that a config names: register a class under its own name, and MODEL.PSF.*.NAME finds it."""

from detectron2.utils.registry import Registry

__all__ = ["LOCATION_DECODER_REGISTRY", "MASK_DECODER_REGISTRY", "PIXEL_ENCODER_REGISTRY", "POST_PROCESSOR_REGISTRY"]

PIXEL_ENCODER_REGISTRY = Registry("PSF_PIXEL_ENCODER")
PIXEL_ENCODER_REGISTRY.__doc__ = (
    "Classes built as (cfg): projected levels -> tokens, as psf.modeling.DeformablePixelEncoder."
)

LOCATION_DECODER_REGISTRY = Registry("PSF_LOCATION_DECODER")
LOCATION_DECODER_REGISTRY.__doc__ = (
    "Built as (cfg, num_classes): tokens -> located queries, as psf.modeling.LocationDecoder."
)

MASK_DECODER_REGISTRY = Registry("PSF_MASK_DECODER")
MASK_DECODER_REGISTRY.__doc__ = (
    "Built as (cfg, depth): queries, tokens -> masks, refined queries, as psf.modeling.MaskDecoder."
)

POST_PROCESSOR_REGISTRY = Registry("PSF_POST_PROCESSOR")
POST_PROCESSOR_REGISTRY.__doc__ = "Built as (cfg): candidates -> panoptic map, as psf.post_processing.MaskWiseMerging."

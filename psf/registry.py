"""The parts of the model that a config names: register a class under its own name, and MODEL.PSF.*.NAME finds it."""

from detectron2.utils.registry import Registry

__all__ = ["LOCATION_DECODER_REGISTRY", "MASK_DECODER_REGISTRY", "PIXEL_ENCODER_REGISTRY", "POST_PROCESSOR_REGISTRY"]

PIXEL_ENCODER_REGISTRY = Registry("PSF_PIXEL_ENCODER")
PIXEL_ENCODER_REGISTRY.__doc__ = "Projected backbone levels -> tokens. See psf.modeling.DeformablePixelEncoder."

LOCATION_DECODER_REGISTRY = Registry("PSF_LOCATION_DECODER")
LOCATION_DECODER_REGISTRY.__doc__ = "Tokens -> location-aware thing queries. See psf.modeling.LocationDecoder."

MASK_DECODER_REGISTRY = Registry("PSF_MASK_DECODER")
MASK_DECODER_REGISTRY.__doc__ = "Queries and tokens -> masks and classes. See psf.modeling.MaskDecoder."

POST_PROCESSOR_REGISTRY = Registry("PSF_POST_PROCESSOR")
POST_PROCESSOR_REGISTRY.__doc__ = "Candidate masks -> panoptic map. See psf.post_processing.MaskWiseMerging."

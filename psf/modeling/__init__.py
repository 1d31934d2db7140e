"""The paper's network, one part per file."""

from psf.modeling.interfaces import (
    LocationDecoderProtocol,
    MaskDecoderDepth,
    MaskDecoderProtocol,
    PixelEncoderProtocol,
    build_location_decoder,
    build_mask_decoder,
    build_pixel_encoder,
)
from psf.modeling.location_decoder import LocationDecoder
from psf.modeling.mask_decoder import MaskDecoder, QueryClassifier
from psf.modeling.neck import FineLevel, MaskFeatureMap, Neck
from psf.modeling.pixel_encoder import DeformablePixelEncoder

__all__ = [
    "DeformablePixelEncoder",
    "FineLevel",
    "LocationDecoder",
    "LocationDecoderProtocol",
    "MaskDecoder",
    "MaskDecoderDepth",
    "MaskDecoderProtocol",
    "MaskFeatureMap",
    "Neck",
    "PixelEncoderProtocol",
    "QueryClassifier",
    "build_location_decoder",
    "build_mask_decoder",
    "build_pixel_encoder",
]

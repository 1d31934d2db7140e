"""The paper's network, part by part; each file is one of its nouns."""

from psf.modeling.fine_level import FineLevel
from psf.modeling.location_decoder import LocationDecoder, build_location_decoder
from psf.modeling.mask_decoder import MaskDecoder, MaskDecoderDepth, QueryClassifier, build_mask_decoder
from psf.modeling.neck import Neck
from psf.modeling.pixel_encoder import DeformablePixelEncoder, build_pixel_encoder

__all__ = [
    "DeformablePixelEncoder",
    "FineLevel",
    "LocationDecoder",
    "MaskDecoder",
    "MaskDecoderDepth",
    "Neck",
    "QueryClassifier",
    "build_location_decoder",
    "build_mask_decoder",
    "build_pixel_encoder",
]

"""Contract tests for replaceable parts: check whether your own part fits into the model.

Each function takes the class that you register (or a function with the same arguments), builds the part, and raises an
AssertionError with what was found and what `psf.modeling.interfaces` requires:

    from psf.testing import check_mask_decoder

    def test_my_decoder():
        check_mask_decoder(MyDecoder)

Everything runs on the CPU, in seconds, on random numbers with fixed seeds.
"""

from psf.testing.inputs import small_config
from psf.testing.network import check_location_decoder, check_mask_decoder, check_pixel_encoder
from psf.testing.post_processor import check_post_processor

__all__ = [
    "check_location_decoder",
    "check_mask_decoder",
    "check_pixel_encoder",
    "check_post_processor",
    "small_config",
]

"""Contract tests for replaceable parts: does a part of your own fit into the model?

Each function takes the class that you register (or any function that is called with the same arguments), builds it, and
raises an AssertionError that says what was found and what `psf.modeling.interfaces` requires:

    from psf.testing import check_mask_decoder

    def test_my_decoder():
        check_mask_decoder(MyDecoder)

Everything runs on the CPU, in seconds, on random numbers with fixed seeds.
"""

from psf.testing.network import check_location_decoder, check_mask_decoder, check_pixel_encoder
from psf.testing.part import small_config
from psf.testing.post_processor import check_post_processor

__all__ = [
    "check_location_decoder",
    "check_mask_decoder",
    "check_pixel_encoder",
    "check_post_processor",
    "small_config",
]

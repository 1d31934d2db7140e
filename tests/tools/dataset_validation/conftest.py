"""Samples, as the tests of psf.data have them."""

from tests.data.conftest import make_sample, tune_folder  # noqa: F401

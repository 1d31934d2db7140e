"""The mini set and its config, as the tests of the engine have them."""

from tests.engine.conftest import config_file, mini, mini_root, parse_args  # noqa: F401

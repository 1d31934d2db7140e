"""A server that segments images over HTTP, and a page for people; needs the packages of the extra `serve`."""

from psf.tools.serving.app import build_app
from psf.tools.serving.limits import Limits, Refusal
from psf.tools.serving.server import Listener, bind, serve
from psf.tools.serving.service import Service

__all__ = ["Limits", "Listener", "Refusal", "Service", "bind", "build_app", "serve"]

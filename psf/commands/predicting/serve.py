"""Segment images over HTTP, with a page for people; the model is loaded once.

    psf serve --model output/mine/model_final.pth

Then open http://127.0.0.1:8000/ in a browser, or send images:

    curl -F image=@photo.jpg http://127.0.0.1:8000/v1/segment

There is no authentication: only this machine reaches the server, unless --host names another address.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Sequence

from psf.commands import command_parser, echo, log_to_screen, not_negative, positive, run_command
from psf.errors import UserError

__all__ = ["build_parser", "main"]

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")
MEGA = 1_000_000


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse_args(words)
    log_to_screen()
    return run_command(lambda: run(args))


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser, without torch and Detectron2: `--help` is quick."""
    parser = command_parser("serve", __doc__)
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="FILE",
        help="a model file of psf, or the name of a published model such as R50",
    )
    add("--config-file", metavar="FILE", help="a config in place of the one inside, for a checkpoint without one")
    add(
        "--register",
        action="append",
        default=[],
        metavar="NAME=JSON,PNGS,IMAGES",
        help="register a panoptic set that the --config-file names, for its classes; can be repeated",
    )
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen at [%(default)s: this machine alone]")
    add("--port", type=not_negative, default=8000, help="port to listen at; 0: any free one [%(default)s]")
    add(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name of this server in addresses, such as that of a reverse proxy; can be repeated",
    )
    add("--device", help="cpu, cuda, cuda:1, ... [a GPU if there is one]")
    limits = parser.add_argument_group("limits")
    add = limits.add_argument
    add("--max-megabytes", type=positive, default=20, metavar="N", help="of an upload [%(default)s]")
    add("--max-megapixels", type=positive, default=50, metavar="N", help="of an image [%(default)s]")
    add("--max-queue", type=not_negative, default=16, metavar="N", help="images that wait at a time [%(default)s]")
    add("--queue-seconds", type=positive, default=30, metavar="N", help="that an image waits at most [%(default)s]")
    add("--upload-seconds", type=positive, default=30, metavar="N", help="for an upload [%(default)s]")
    add(
        "--kept-megabytes",
        type=not_negative,
        default=512,
        metavar="N",
        help="memory of results that are kept for other thresholds [%(default)s]",
    )
    add("--max-connections", type=positive, default=256, metavar="N", help="at a time [%(default)s]")
    add("--shutdown-seconds", type=positive, default=60, metavar="N", help="for requests at the end [%(default)s]")
    parser.add_argument(
        "--import",
        action="append",
        default=[],
        dest="imports",
        metavar="MODULE",
        help="import your own module, whose classes the model needs; can be repeated",
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config options; last"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Load the model, and serve it until a signal."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"psf serve needs {missing[0]}: pip install 'panoptic-segformer[serve]'")
    if args.register and not args.config_file:
        raise UserError("--register needs --config-file, which names the set: a model file has its own classes")
    # Heavy: torch, Detectron2 and the packages of the extra.
    from psf.prediction import Predictor
    from psf.tools.serving import Limits, Service, bind, serve

    limits = Limits(
        max_bytes=args.max_megabytes * MEGA,
        max_pixels=args.max_megapixels * MEGA,
        max_queue=args.max_queue,
        queue_seconds=args.queue_seconds,
        upload_seconds=args.upload_seconds,
        max_kept_bytes=args.kept_megabytes * MEGA,
        max_connections=args.max_connections,
        shutdown_seconds=args.shutdown_seconds,
    )
    listener = bind(args.host, args.port)
    with listener.socket:
        predictor = Predictor(
            args.model,
            config_file=args.config_file,
            options=args.opts,
            imports=args.imports,
            register=args.register,
            device=args.device,
        )
        predictor.warm_up()
        name = args.model.replace("\\", "/").rpartition("/")[2]
        service = Service(predictor, name, limits)
        if not serve(service, listener, allowed_hosts=args.allowed_host, say=echo):
            os._exit(1)  # a thread still computes, and Python would wait for it

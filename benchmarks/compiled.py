#!/usr/bin/env python3
"""The dense part of the released R50 model, eager against torch.compile and, on a GPU, a CUDA graph.

At test: `PanopticSegFormer.candidates` of an image, which is all but post-processing. With --training: a training step
whose backbone, pixel encoder, location decoder and stuff decoder are compiled, each for itself; the number of things
changes from batch to batch, so the thing decoder stays eager. The script first compares the scores, or the losses, with
those of the eager model. What fails to compile gets a row
with the exception, and no time.

    python benchmarks/compiled.py                       on a CPU, inductor needs a C++ compiler and minutes
    python benchmarks/compiled.py --training            a run of its own, because compiling takes minutes

With --quick, torch.compile traces and splits the graph, but generates no code (backend aot_eager).
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from released_model import make_plausible, released_model
from report import add_device, argument_parser, difference, report, time_in_turns
from scenes import training_input
from tabulate import tabulate
from torch import Tensor

from psf import PanopticSegFormer

COMPILED_IN_TRAINING = ("backbone", "pixel_encoder", "location_decoder", "stuff_decoder")
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
ONE_LAYER = [f"MODEL.PSF.{name}_LAYERS" for name in ("PIXEL_ENCODER.NUM", "LOCATION_DECODER.NUM")]
ONE_LAYER += [f"MODEL.PSF.MASK_DECODER.NUM_{kind}_LAYERS" for kind in ("THING", "STUFF")]
QUICK = [word for key in ONE_LAYER for word in (key, "1")]
QUICK += ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]

Scores = list[Tensor]  # to be compared
Run = Callable[[], Scores]


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__, rounds=5)
    add_device(parser)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--training", action="store_true", help="a training step instead of an image at test")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    on_gpu = options.device != "cpu"
    size = (128, 192) if options.quick else (512, 768) if options.training else (800, 1216)
    model = released_model(options.device, *(QUICK if options.quick else []))
    rows: list[list[Any]] = []
    for dtype in (torch.bfloat16, torch.float32) if on_gpu and not options.training else (torch.float32,):
        backend = "aot_eager" if options.quick else "inductor"
        if options.training:
            variants = in_training(model, size, backend)
        else:
            variants = at_test(model, size, dtype, backend, on_gpu=on_gpu)
        rows += measure(variants, options.device, dtype, options.rounds, training=options.training)
    headers = ["pass", "type", "", "first call, s", "ms", "/ eager", "difference"]
    table = tabulate(rows, headers, tablefmt="pipe", floatfmt=("", "", "", ".1f", ".1f", ".3f", ".0e"))
    where = torch.cuda.get_device_name() if on_gpu else f"CPU, {options.threads} threads"
    text = f"{where}; R50, {size[0]} x {size[1]}, batch 1; median of {options.rounds} rounds\n\n{table}"
    report("compiled_training" if options.training else "compiled", text, quick=options.quick)


def at_test(
    model: PanopticSegFormer, size: tuple[int, int], dtype: torch.dtype, backend: str, *, on_gpu: bool
) -> dict[str, Callable[[], Run]]:
    """Functions that make each variant, by name; the eager one first."""
    model.eval()
    make_plausible(model, [training_input(*size)])
    images = model.preprocess([training_input(*size)]).tensor

    def scores(candidates: Callable[..., Any]) -> Run:
        def run() -> Scores:
            [found] = candidates(images, None)
            # Rounding may swap two equally confident things; stuff is in a fixed order.
            return [found.class_scores, found.mask_scores[~found.is_thing]]

        return run

    variants = {"eager": lambda: scores(model.candidates)}
    if on_gpu:
        variants["CUDA graph"] = lambda: scores(captured(model.candidates, images))
    if dtype == torch.bfloat16 or not on_gpu:  # compiling once is enough for the time of a check
        variants["torch.compile"] = lambda: scores(torch.compile(model.candidates, dynamic=False, backend=backend))
    return variants


def captured(candidates: Callable[..., Any], images: Tensor) -> Callable[..., Any]:
    """A function that replays the work of `candidates(images, None)`; its results are overwritten by the next call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a first run outside the graph: kernels are built, tables cached
        candidates(images, None)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = candidates(images, None)

    def replay(*_: Any) -> Any:
        graph.replay()
        return found

    return replay


def in_training(model: PanopticSegFormer, size: tuple[int, int], backend: str) -> dict[str, Callable[[], Run]]:
    model.train()
    inputs = [training_input(*size)]

    def step() -> Scores:
        torch.manual_seed(0)
        model.zero_grad(set_to_none=True)
        losses = model(inputs)
        torch.stack(list(losses.values())).sum().backward()
        return [torch.stack([loss.detach() for loss in losses.values()])]

    def eager() -> Scores:
        with torch.compiler.set_stance("force_eager"):
            return step()

    def compiled() -> Run:
        for name in COMPILED_IN_TRAINING:
            getattr(model, name).compile(dynamic=False, backend=backend)
        return step

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # compiled code draws other random numbers
        elif isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    return {"eager": lambda: eager, "torch.compile": compiled}


def measure(
    variants: dict[str, Callable[[], Run]], device: str, dtype: torch.dtype, rounds: int, *, training: bool
) -> list[list[Any]]:
    """Rows of the table; the script ends if a variant gives other numbers than the eager model."""
    first = ["training" if training else "test", str(dtype).removeprefix("torch.")]
    half = torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False)
    runs: dict[str, Run] = {}
    firsts: dict[str, list[Any]] = {}
    failed: list[list[Any]] = []
    expected: Scores = []
    with half, torch.set_grad_enabled(training):
        for name, make in variants.items():
            start = time.perf_counter()
            try:
                run = make()
                found = [x.clone() for x in run()]
            except Exception as error:  # of any part of torch's compilers
                if name == "eager":
                    raise
                failed.append([*first, f"{name} failed: {type(error).__name__}"])
                print(f"{failed[-1][-1]}: {error}")
                with contextlib.suppress(RuntimeError):  # of an interrupted capture: the others can still run
                    _synchronize(device)
                continue
            expected = expected or found
            worst = max(difference(x, y) for x, y in zip(found, expected, strict=True))
            if not worst <= TOLERANCE[dtype]:
                sys.exit(f"{name}, {dtype}: the results differ by {worst:.1e} from those of the eager model")
            runs[name], firsts[name] = run, [time.perf_counter() - start, worst]
        times = time_in_turns(list(runs.values()), rounds)
    rows: list[list[Any]] = []
    for name, milliseconds in zip(runs, times, strict=True):
        seconds, worst = firsts[name]
        rows.append([*first, name, seconds, milliseconds, milliseconds / times[0], worst])
    return rows + failed


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()

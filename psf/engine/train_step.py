"""One iteration of training: forward, backward, checks of loss and gradients, update."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from fvcore.nn.precise_bn import get_bn_modules
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from psf.data import RandomState, unchanged_random_state
from psf.data.files import atomic_path
from psf.data.loaders import why_workers_failed
from psf.engine.optimizer import optimizer_state_for, parameter_names
from psf.errors import UserError
from psf.ops.transfer import download, upload

__all__ = [
    "METRICS_PERIOD",
    "TrainStep",
    "any_process",
    "autocast_dtype",
    "is_of_lost_process",
    "is_of_timeout",
    "without_ddp",
]

logger = logging.getLogger(__name__)

SKIPPED_FOLDER = "skipped_steps"  # in OUTPUT_DIR: inputs of steps that were skipped
MAX_STORED_STEPS = 5
METRICS_PERIOD = 20  # iterations between two lines of metrics.json, as Detectron2's PeriodicWriter counts them
MAX_NAMES = 3  # of parameters in a message
# Texts in the errors of gloo and of NCCL.
TIMED_OUT = ("Timed out waiting", "Watchdog caught collective operation timeout")
LOST = ("Connection closed by peer", "Connection reset by peer", "remote process exited or there was a network error")
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def without_ddp(model: nn.Module) -> Any:
    """The model itself, if DistributedDataParallel wraps it."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def any_process(flags: Sequence[bool] | Tensor, *, device_type: str) -> list[bool]:
    """Whether a flag is set in any process, for each flag; all processes call this together.

    Args:
        flags: of this process; those in a tensor are read from its device together with those of other processes.
        device_type: "cuda" or "cpu", where the processes communicate.
    """
    numbers = flags if isinstance(flags, Tensor) else torch.tensor(flags)
    if comm.get_world_size() > 1:
        numbers = upload(numbers.to(torch.int32), device_type)
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return [bool(number) for number in numbers.tolist()]


def is_of_lost_process(error: BaseException | None) -> bool:
    """Whether an error says that another process of the run has ended; that one reports why."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in LOST)


def is_of_timeout(error: BaseException | None) -> bool:
    """Whether an error says that other processes of the run have not answered for `--collective-timeout`."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in TIMED_OUT)


def _is_explained(error: BaseException | None) -> bool:
    """Whether the run ends with one line on this error, from here, from `launch` or from another process."""
    if error is None:
        return False
    is_of_disk = isinstance(error, OSError) and error.errno in DISK_ERRORS
    is_of_other = is_of_lost_process(error) or is_of_timeout(error)
    return isinstance(error, UserError) or is_of_disk or is_of_other or why_workers_failed(error) is not None


# Detectron2's loop logs every exception with its traceback.
logging.getLogger("detectron2.engine.train_loop").addFilter(
    lambda record: not (record.exc_info and _is_explained(record.exc_info[1]))
)


def _total(losses: Mapping[str, Tensor]) -> Tensor:
    total: Any = sum(losses.values())  # from 0, as in Detectron2
    return total


def autocast_dtype(cfg: CfgNode) -> torch.dtype | None:
    """SOLVER.AMP.DTYPE if SOLVER.AMP.ENABLED, else None.

    Raises:
        UserError: if it is neither "float16" nor "bfloat16", or if it is "float16" on a CPU.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    name = cfg.SOLVER.AMP.DTYPE
    if name not in ("float16", "bfloat16"):
        raise UserError(f'SOLVER.AMP.DTYPE is {name!r}, expected "float16" or "bfloat16"')
    if name == "float16" and torch.device(cfg.MODEL.DEVICE).type == "cpu":
        raise UserError(
            'SOLVER.AMP.DTYPE is "float16" and MODEL.DEVICE "cpu": use "bfloat16" on a CPU, or full precision '
            "with SOLVER.AMP.ENABLED False"
        )
    return getattr(torch, name)


class _Cause(NamedTuple):
    """What one process knows about a step that is skipped."""

    terms: dict[str, float]  # loss terms that are not finite, or whose gradients are not -> value
    images: list[str]
    file: str | None  # the inputs


class _Metrics(NamedTuple):
    """Metrics of one iteration that are not written yet."""

    iteration: int
    data_time: float
    names: list[str]
    values: Tensor  # (terms,) on the device


class TrainStep(SimpleTrainer):
    """Detectron2's SimpleTrainer and AMPTrainer in one class; AMPTrainer requires CUDA.

    A step is skipped, by all processes together, if the loss of one process or the norm of the gradients is not finite:
    weights and optimizer stay as they are. One line in the log has the loss terms, the images, and the file with the
    inputs (only those of the first 5 steps are stored). In float16, gradients that overflow only lower the scale.

    Args:
        dtype: of autocast; None trains in full precision. Gradients are scaled for float16 only.
        device_type: "cuda" or "cpu".
        max_skipped: the training ends when this many steps in a row are skipped.
        output_dir: folder for the inputs of skipped steps; "": they are not stored.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: Optimizer,
        *,
        dtype: torch.dtype | None,
        device_type: str,
        max_skipped: int = 1,
        output_dir: str = "",
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self._dtype = dtype
        self._device_type = device_type
        self._scaler = torch.amp.GradScaler(device_type, enabled=dtype == torch.float16)
        self._max_skipped, self._output_dir = max_skipped, output_dir
        self._num_skipped = self._num_in_row = 0
        self._noted: list[_Metrics] = []
        # Statistics of batch norms, which a forward pass changes. Norms that are frozen have none that change.
        self._statistics = [buffer for module in get_bn_modules(model) for buffer in module.buffers()]

    def start_loader(self) -> None:
        """Start the workers of the loader now, not with the first iteration."""
        self._data_loader_iter_obj = iter(self.data_loader)

    def run_step(self) -> None:
        """Forward, backward, log, and update unless the loss or a gradient is not finite.

        Raises:
            UserError: if too many steps in a row are skipped.
        """
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        before = RandomState.capture(), [buffer.clone() for buffer in self._statistics]
        losses = self._losses(self.model, batch)
        total = _total(losses)
        self.optimizer.zero_grad()
        self._scaler.scale(total).backward()
        self._scaler.unscale_(self.optimizer)
        # The only wait for the device, of all processes together. Gradients are the same in all, as DDP averages them.
        flags = torch.stack([total.detach().reshape(()), self._gradient_norm().to(total)]).isfinite().logical_not()
        is_bad_loss, is_bad_gradient = any_process(flags, device_type=self._device_type)
        if is_bad_loss:
            if self._scaler.is_enabled():
                self._scaler.update(self._scaler.get_scale())  # forget the gradients; the scale is not to blame
            self._skip(batch, losses, *before, is_bad_loss=True)
            return
        self._note_metrics(losses, data_time)
        if is_bad_gradient and not (self._scaler.is_enabled() and self._scaler.get_scale() > 1):
            if self._scaler.is_enabled():
                self._scaler.update()
            self._skip(batch, losses, *before, is_bad_loss=False)
            return
        self._num_in_row = 0
        self._scaler.step(self.optimizer)  # gradients have their true norms here, so clipping uses them
        self._scaler.update()

    def _losses(self, model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        with torch.autocast(self._device_type, dtype=self._dtype, enabled=self._dtype is not None):
            return model(batch)

    def _gradient_norm(self) -> Tensor:
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def _note_metrics(self, losses: Mapping[str, Tensor], data_time: float) -> None:
        """Keep the loss terms on the device until `write_metrics_so_far`."""
        if len(self._noted) >= METRICS_PERIOD:
            self.write_metrics_so_far()
        values = torch.stack([value.detach().reshape(()) for value in losses.values()])
        self._noted.append(_Metrics(self.iter, data_time, list(losses), values))

    def write_metrics_so_far(self) -> None:
        """Write the loss terms of the last iterations to the event storage, each under its iteration.

        All processes call this together: `Trainer` does every 20 iterations, before Detectron2's writers, and before
        each checkpoint. Detectron2 writes them after each iteration, and waits for the device for each term.
        """
        noted, self._noted = self._noted, []
        for one, values in zip(noted, download([one.values for one in noted]), strict=True):
            self._write_metrics(dict(zip(one.names, values, strict=True)), one.data_time, iter=one.iteration)

    def _skip(
        self,
        batch: list[dict[str, Any]],
        losses: dict[str, Tensor],
        state: RandomState,
        statistics: list[Tensor],
        *,
        is_bad_loss: bool,
    ) -> None:
        """Undo the forward pass, and report the step.

        Args:
            batch: its inputs.
            losses: the terms of this process.
            state: random state before the forward pass.
            statistics: of batch norms before the forward pass.
            is_bad_loss: the loss of a process is not finite; else the gradients are not.
        """
        self._num_skipped += 1
        self._num_in_row += 1
        parameters = [] if is_bad_loss else self._non_finite_gradients()
        self.optimizer.zero_grad()
        for buffer, old in zip(self._statistics, statistics, strict=True):
            buffer.copy_(old)
        terms = self._guilty_terms(batch, losses, state)
        for buffer, old in zip(self._statistics, statistics, strict=True):
            buffer.copy_(old)
        images = [str(x.get("file_name", "?")) for x in batch]
        causes = comm.gather(_Cause(terms, images, self._store(batch, terms, state)))
        get_event_storage().put_scalar("num_skipped_steps", self._num_skipped, smoothing_hint=False)
        if comm.is_main_process():
            guilty = [cause for cause in causes if cause.terms] or causes
            message = self._describe(guilty, parameters)
            logger.warning("%s", message)
        if self._num_in_row >= self._max_skipped:
            raise UserError(
                f"training ended at iteration {self.iter}: {self._num_in_row} steps in a row were skipped because loss "
                "or gradients were not finite (SOLVER.MAX_SKIPPED_STEPS; log.txt has their terms and images). The last "
                "checkpoint is as it was: lower SOLVER.BASE_LR, or remove the images, and continue with --resume"
            )

    def _guilty_terms(
        self, batch: list[dict[str, Any]], losses: dict[str, Tensor], state: RandomState
    ) -> dict[str, float]:
        """Loss terms that are not finite; if all are, the terms whose own gradients are not.

        For the gradients, the forward pass is repeated with the same random numbers, without DDP.
        """
        terms = {name: value.item() for name, value in losses.items() if not torch.isfinite(value)}
        [is_loss] = any_process([bool(terms)], device_type=self._device_type)
        if is_loss:
            return terms
        model = without_ddp(self.model)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        with unchanged_random_state():
            state.restore()
            losses = self._losses(model, batch)
        for name, value in losses.items():
            if value.requires_grad:
                gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
                if not all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None):
                    terms[name] = value.item()
        return terms

    def _non_finite_gradients(self) -> list[str]:
        return [
            name
            for name, parameter in without_ddp(self.model).named_parameters()
            if parameter.grad is not None and not parameter.grad.isfinite().all()
        ]

    def _store(self, batch: list[dict[str, Any]], terms: Mapping[str, float], state: RandomState) -> str | None:
        """Write the inputs of this process for `psf replay`; returns the file."""
        if not self._output_dir or self._num_skipped > MAX_STORED_STEPS or not (terms or comm.is_main_process()):
            return None
        path = Path(self._output_dir, SKIPPED_FOLDER, f"iteration_{self.iter:07d}_process_{comm.get_rank()}.pth")
        with atomic_path(path) as draft, draft.open("wb") as file:
            step = {"iteration": self.iter, "terms": dict(terms), "batch": batch, "random": state.as_entry()}
            torch.save(step, file)
        return str(path)

    def _describe(self, causes: list[_Cause], parameters: list[str]) -> str:
        terms = {name: value for cause in causes for name, value in cause.terms.items()}
        values = ", ".join(f"{name} {value:g}" for name, value in terms.items())
        what = f"the loss is not finite ({values})"
        if parameters:
            more = f" and {len(parameters) - MAX_NAMES} more" if len(parameters) > MAX_NAMES else ""
            what = f"gradients are not finite (of {', '.join(parameters[:MAX_NAMES])}{more}; from {values or '?'})"
        images = ", ".join(image for cause in causes for image in cause.images)
        files = ", ".join(cause.file for cause in causes if cause.file)
        return (
            f"SKIPPED iteration {self.iter}, step {self._num_in_row} of at most {self._max_skipped} in a row "
            f"(SOLVER.MAX_SKIPPED_STEPS): {what}; images {images}"
            + (f"; inputs for psf replay in {files}" if files else "")
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "grad_scaler": self._scaler.state_dict(),
            "parameter_names": parameter_names(self.optimizer, without_ddp(self.model)),
            "num_skipped": (self._num_skipped, self._num_in_row),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a step, but keep the config's learning rates and weight decay (see `optimizer_state_for`)."""
        names = state_dict.get("parameter_names")  # absent in files of earlier versions
        optimizer = optimizer_state_for(self.optimizer, without_ddp(self.model), state_dict["optimizer"], names)
        super().load_state_dict({**state_dict, "optimizer": optimizer})
        if state_dict.get("grad_scaler"):  # empty if the earlier run was not in float16
            self._scaler.load_state_dict(state_dict["grad_scaler"])
        self._num_skipped, self._num_in_row = state_dict.get("num_skipped", (0, 0))

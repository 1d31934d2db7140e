"""Around the iterations of a training: checkpoints, exact resume, stopping, and warnings of dead mask heads."""

from psf.engine.hooks.checkpoints import CheckpointHook, checkpoint_period
from psf.engine.hooks.mask_health import MaskHealthHook
from psf.engine.hooks.process_state import ProcessStateHook
from psf.engine.hooks.stopping import ForwardedSignals, Stopped, StopSignals, stop_numbers

__all__ = [
    "CheckpointHook",
    "ForwardedSignals",
    "MaskHealthHook",
    "ProcessStateHook",
    "StopSignals",
    "Stopped",
    "checkpoint_period",
    "stop_numbers",
]

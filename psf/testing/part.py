"""Requirements for every part of the network: padding, batches, gradients, autocast, saving and checkpointing."""

from __future__ import annotations

import abc
import io
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from psf.errors import UserError
from psf.modeling.activation_checkpointing import checkpoint_activations
from psf.testing.inputs import OTHER_SIZE, Call

__all__ = ["Check", "PartCheck"]

FLOAT32 = (torch.float32,)
AUTOCAST = (torch.float32, torch.bfloat16, torch.float16)
LEAST_INFLUENCE = 1e-6  # a smaller gradient, relative to that of the image itself, is rounding


class Check:
    """Fails with an AssertionError that names the checked object and the config.

    Args:
        name: of the object.
        context: what it was built for, such as the config.
    """

    def __init__(self, name: str, context: str):
        self.name, self.context = name, context

    def fail(self, message: str, cause: Exception | None = None) -> NoReturn:
        """Raise the AssertionError; `cause` is the exception of the object."""
        reason = f": {type(cause).__name__}: {cause}" if cause else ""
        raise AssertionError(f"{self.name}: {message}{reason} (with {self.context})") from cause

    def require(self, holds: bool, message: str) -> None:
        """Fail if the condition does not hold."""
        if not holds:
            self.fail(message)

    def built(self, build: Callable[[], Any]) -> Any:
        """The object that `build` returns."""
        try:
            return build()
        except Exception as error:
            self.fail("it cannot be built", error)

    def require_equal(self, found: dict[str, Tensor], expected: dict[str, Tensor], message: str) -> None:
        """Compare tensors by name, up to rounding."""
        self.require(found.keys() == expected.keys(), f"{message}: {sorted(found)} instead of {sorted(expected)}")
        for name, value in expected.items():
            self.require(
                found[name].shape == value.shape,
                f"{message}: {name} has shape {tuple(found[name].shape)} instead of {tuple(value.shape)}",
            )
            difference = largest_difference(found[name], value)
            self.require(difference <= tolerance(value), f"{message}: {name} differs by up to {difference:.2g}")

    def require_tensor(self, name: str, value: Any, shape: Sequence[int], dtypes: Sequence[torch.dtype]) -> None:
        """Check type, shape, dtype, and that all values are finite."""
        self.require(isinstance(value, Tensor), f"{name} is a {type(value).__name__}; expected a tensor")
        self.require(
            tuple(value.shape) == tuple(shape), f"{name} has shape {tuple(value.shape)}; expected {tuple(shape)}"
        )
        expected = " or ".join(str(dtype) for dtype in dtypes)
        self.require(value.dtype in dtypes, f"{name} has dtype {value.dtype}; expected {expected}")
        if value.is_floating_point():
            self.require(bool(torch.isfinite(value).all()), f"{name} has NaN or infinite values")


class PartCheck(Check, abc.ABC):
    """The checks for all parts of the network.

    Args:
        build: returns a new, initialized instance.
        cfg: the config of the instance.
        name: of the part, for messages.
        context: what it is built for, such as the config.
    """

    attribute: str  # name of the part in the model
    checkpointing_name: str  # name of the part in MODEL.PSF.ACTIVATION_CHECKPOINTING

    def __init__(self, build: Callable[[], Any], cfg: CfgNode, name: str, context: str):
        super().__init__(name, context)
        self.build, self.node = build, cfg.MODEL.PSF
        self.dtypes: Sequence[torch.dtype] = FLOAT32  # of the output, except coordinates

    @abc.abstractmethod
    def inputs(self, call: Call) -> dict[str, Tensor]:
        """All tensors that the part receives, by name."""

    @abc.abstractmethod
    def forward(self, part: nn.Module, inputs: dict[str, Tensor], call: Call) -> Any:
        """Run the part."""

    @abc.abstractmethod
    def check_output(self, output: Any, call: Call, *, is_training: bool = False) -> None:
        """Check types, shapes and ranges."""

    @abc.abstractmethod
    def tensors(self, output: Any, call: Call) -> dict[str, Tensor]:
        """The tensors (B, ...) by name, with zeros where the images are padded."""

    @abc.abstractmethod
    def gradient_paths(self, output: Any) -> list[tuple[str, list[Tensor], list[str]]]:
        """Outputs of training (their name, and tensors), and the inputs that their gradients reach."""

    def run(self) -> None:
        """Build the part and run all checks."""
        part = self.make(seed=0)
        self.name = type(part).__name__
        with torch.no_grad():
            self.check_shapes(part)
            self.check_repeatable(part)
            self.check_padding(part)
            self.check_batch(part)
        self.check_gradients(part)
        self.check_images_in_training(part)
        self.check_autocast(part)
        with torch.no_grad():
            self.check_state_dict(part)
            self.check_training_mode(part)
        self.check_activation_checkpointing(part)

    def make(self, seed: int) -> nn.Module:
        """A new instance in evaluation mode; the parameters to train are slightly changed, so that none is 0."""
        torch.manual_seed(seed)
        part = self.built(self.build)
        self.require(isinstance(part, nn.Module), f"it is a {type(part).__name__}; expected an nn.Module")
        lazy = [name for name, p in part.named_parameters() if nn.parameter.is_lazy(p)]
        self.require(
            not lazy,
            f"parameters without a shape before the first call: {', '.join(lazy)}; the optimizer needs them earlier: "
            "give their sizes (nn.Linear in place of nn.LazyLinear)",
        )
        with torch.no_grad():
            for parameter in part.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn_like(parameter)
        assert isinstance(part, nn.Module)
        return part.eval()

    def call(self, part: nn.Module, call: Call, inputs: dict[str, Tensor] | None = None) -> Any:
        """Run the part on copies of its inputs, and check that they stay unchanged."""
        inputs = self.inputs(call) if inputs is None else inputs
        given = {name: x.clone() for name, x in inputs.items()}
        try:
            output = self.forward(part, given, call)
        except Exception as error:
            self.fail(f"it fails for {call}", error)
        changed = [name for name, x in inputs.items() if not torch.equal(given[name], x)]
        self.require(not changed, f"it changes its arguments in place: {', '.join(changed)}; other parts read them")
        return output

    def results(self, part: nn.Module, call: Call) -> dict[str, Tensor]:
        """The output's tensors by name."""
        return self.tensors(self.call(part, call), call)

    def check_shapes(self, part: nn.Module) -> None:
        other_size = Call(images=(1, 2), size=OTHER_SIZE)
        for call in (Call(images=(0,), has_mask=False), Call(), other_size):
            self.check_output(self.call(part, call), call)

    def check_repeatable(self, part: nn.Module) -> None:
        first, second = (self.results(part, Call()) for _ in range(2))
        self.require_equal(second, first, "the result of a second call in evaluation mode differs")

    def check_padding(self, part: nn.Module) -> None:
        first, second = (self.results(part, Call(noise=noise)) for noise in range(2))
        self.require_equal(second, first, "values in padding change the result (padding_mask is True there)")
        without, zeros = (self.results(part, Call(images=(0,), has_mask=has_mask)) for has_mask in (False, True))
        message = "the result for padding_mask None differs from that for a padding_mask that is False everywhere"
        self.require_equal(without, zeros, message)

    def check_batch(self, part: nn.Module) -> None:
        together = self.results(part, Call())
        for image in Call().images:
            alone = self.results(part, Call(images=(image,)))
            own = {name: value[image : image + 1] for name, value in together.items()}
            self.require_equal(own, alone, f"the result of image {image} in a batch differs from its result alone")

    def train(self, part: nn.Module) -> tuple[dict[str, Tensor], Any]:
        """The inputs, which require gradients, and the output in training."""
        part.train()
        inputs = {name: x.requires_grad_(x.is_floating_point()) for name, x in self.inputs(Call()).items()}
        return inputs, self.call(part, Call(), inputs)

    def check_gradients(self, part: nn.Module) -> None:
        """In training the parameters receive gradients, and so do the inputs that `gradient_paths` names."""
        inputs, output = self.train(part)
        self.check_output(output, Call(), is_training=True)
        is_trained = any(p.requires_grad for p in part.parameters())
        for outputs, tensors, names in self.gradient_paths(output):
            has_gradient = all(x.requires_grad for x in tensors)
            self.require(
                has_gradient or not (names or is_trained), f"{outputs} have no gradient in training; do not detach them"
            )
            reached = [inputs[name] for name in names]
            gradients = _gradients(tensors, reached) if reached else []
            cut = [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]
            self.require(
                not cut,
                f"in training no gradient of {outputs} reaches the argument {', '.join(cut)}, which would not be "
                "trained; use it, and do not detach it",
            )
        self.backward(part, output)
        without = [name for name, p in part.named_parameters() if p.requires_grad and p.grad is None]
        self.require(
            not without,
            f"parameters without a gradient: {', '.join(without)}; every output in training must depend on them, or "
            "requires_grad must be False",
        )
        wrong = [name for name, p in part.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        self.require(not wrong, f"gradients with NaN or infinite values: {', '.join(wrong)}")
        part.eval()

    def backward(self, part: nn.Module, output: Any) -> None:
        """Gradients of a random linear function of all outputs."""
        part.zero_grad(set_to_none=True)
        tensors = [x for x in _all_tensors(output) if x.requires_grad]
        if tensors:  # else all is frozen
            _random_sum(tensors).backward()

    def check_images_in_training(self, part: nn.Module) -> None:
        """In training the output for an image has no gradient with respect to the other images."""
        inputs, output = self.train(part)
        own = [x[0] for x in self.tensors(output, Call()).values() if x.requires_grad]
        images = {name: x for name, x in inputs.items() if x.requires_grad and len(x) == len(Call().images)}
        gradients = _gradients(own, list(images.values())) if own else []
        for name, gradient in zip(images, gradients):
            influence, most = (0.0, 0.0) if gradient is None else (gradient[1:].abs().max(), gradient[0].abs().max())
            self.require(
                bool(influence <= LEAST_INFLUENCE * most),
                f"in training the result of image 0 depends on other images of the batch, on their {name}; use no "
                "batch statistics, such as nn.BatchNorm",
            )
        part.eval()

    def check_autocast(self, part: nn.Module) -> None:
        context, self.dtypes = self.context, AUTOCAST
        for dtype in (torch.bfloat16, torch.float16):
            self.context = f"{context}, under autocast with {dtype}"
            with torch.no_grad(), torch.autocast("cpu", dtype):
                self.check_output(self.call(part, Call()), Call())
        self.context, self.dtypes = context, FLOAT32

    def copy(self, part: nn.Module, seed: int) -> nn.Module:
        """Another instance with the part's state_dict."""
        other, file = self.make(seed), io.BytesIO()
        try:
            torch.save(part.state_dict(), file)
            file.seek(0)
            other.load_state_dict(torch.load(file, weights_only=True))
        except Exception as error:
            self.fail("a second instance does not load its state_dict", error)
        return other

    def check_state_dict(self, part: nn.Module) -> None:
        message = "the result of a second instance with the same state_dict differs; store all state in parameters"
        other = self.copy(part, seed=1)
        self.require_equal(self.results(other, Call()), self.results(part, Call()), f"{message} or buffers")

    def check_training_mode(self, part: nn.Module) -> None:
        """Without random numbers, training gives the results of evaluation."""
        twin = self.copy(part, seed=1).train()
        for module in twin.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
            elif isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
        first, second = (self.results(twin, Call()) for _ in range(2))
        if any(largest_difference(first[name], second[name]) > tolerance(first[name]) for name in first):
            return  # random in another way than by dropout
        expected = self.results(part, Call())
        shared = first.keys() & expected.keys()
        first, expected = ({name: x[name] for name in x if name in shared} for x in (first, expected))
        self.require_equal(first, expected, "the result in training (without dropout) is not that of evaluation")

    def check_activation_checkpointing(self, part: nn.Module) -> None:
        gradients = []
        for is_checkpointed in (False, True):
            model, twin = nn.Module(), self.copy(part, seed=1)
            for attribute in ("thing_decoder", "stuff_decoder", self.attribute):
                setattr(model, attribute, twin if attribute == self.attribute else None)
            if is_checkpointed:
                try:
                    checkpoint_activations(model, [self.checkpointing_name])
                except UserError:
                    return  # no `layers`
            torch.manual_seed(0)  # for dropout
            self.backward(twin, self.train(twin)[1])
            gradients.append({name: p.grad for name, p in twin.named_parameters() if p.grad is not None})
        self.require_equal(gradients[1], gradients[0], "activation checkpointing of its `layers` changes gradients")


def tolerance(value: Tensor) -> float:
    """The largest difference to a tensor that is rounding."""
    return 1e-4 * max(1.0, float(value.detach().abs().max())) if value.numel() else 0.0


def largest_difference(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference of two tensors of one shape; infinite if it is NaN."""
    difference = (one - other).detach().abs().nan_to_num(torch.inf)
    return float(difference.max()) if difference.numel() else 0.0


def _random_sum(tensors: Sequence[Tensor]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([(x * torch.randn(x.shape, generator=generator)).sum() for x in tensors]).sum()


def _gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Gradients of a random linear function of the outputs; None where there is no path."""
    gradients: Sequence[Tensor | None] = torch.autograd.grad(
        _random_sum(outputs), list(inputs), allow_unused=True, retain_graph=True
    )
    return gradients


def _all_tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, (tuple, list)):
        return [x for one in value for x in _all_tensors(one)]
    return []

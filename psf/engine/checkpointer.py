"""Detectron2's checkpointer, extended.

It writes and resumes safely, re-maps heads by class names, and reports weights that do not fit the model.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer as PlainCheckpointer
from torch import nn

from psf.checkpoint import (
    ClassNames,
    ModelEntry,
    TunedMerging,
    adapt_input_channels,
    adapt_query_count,
    arrange_weights,
    changes_table,
    class_names_from_config,
    compare_classes,
    newest_sound_checkpoint,
    non_finite_names,
    query_count_entry,
    read_checkpoint,
    remap_classes,
    stored_query_count,
    write_checkpoint,
)
from psf.checkpoint.pretrained import PREFIX, check_name
from psf.checkpoint.reading import check_kind
from psf.checkpoint.saving import TAG
from psf.data.files import local_path, write_text
from psf.engine.merging import apply_merging
from psf.errors import UserError

__all__ = ["Checkpointer", "build_checkpointer", "check_weights", "file_of_weights"]

logger = logging.getLogger(__name__)

HEURISTICS = "matching_heuristics=True"  # option of MODEL.WEIGHTS: FILE?matching_heuristics=True
_WAY_OUT = "Name another OUTPUT_DIR, or train without --resume."
_WHY_NOT_REMAPPED = (
    "Heads are re-mapped by class names only if both lists of names are known: that of the file, which psf's trainer "
    "and psf convert-weights store in it, and that of DATASETS.TRAIN or DATASETS.TEST."
)


def file_of_weights(path: str) -> str:
    """MODEL.WEIGHTS without its option. Any other query of an address stays: presigned addresses need theirs."""
    file, _, option = path.partition("?")
    return path if "://" in file and option not in ("", HEURISTICS) else file


@contextmanager
def _without_query(path: str) -> Iterator[str]:
    """A path for Detectron2's checkpointer, which would drop the query of an address and look for the rest."""
    if "?" not in (address := file_of_weights(path)):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, Path(address.partition("?")[0]).name)
        link.symlink_to(os.path.abspath(local_path(address)))
        yield str(link)


def check_weights(path: str) -> None:
    """Check MODEL.WEIGHTS, as far as that takes no time: the first bytes of a file, and of an address the name psf://NAME.

    Args:
        path: of a file, with or without its option, an address, or "".

    Raises:
        UserError: if the file is missing or obviously no checkpoint, or has an unknown option; if psf has no such name.
    """
    file, _, option = path.partition("?")
    if file.startswith(PREFIX):
        check_name(file)
    if "://" in file:
        return
    if option not in ("", HEURISTICS):
        raise UserError(f'MODEL.WEIGHTS is "{path}": the only option of a file is ?{HEURISTICS}')
    if not file:
        return
    if not os.path.isfile(file):
        found = "is a folder" if os.path.isdir(file) else "no such checkpoint file"
        raise UserError(f"{file}: {found} (MODEL.WEIGHTS, or with --resume the last in OUTPUT_DIR)")
    check_kind(Path(file))


class _ChannelAdapter(PlainCheckpointer):
    """Adapts entries to the model, after Detectron2's checkpointer has matched their names to the model's."""

    _resumes = False
    _source = ""  # file or address that is being loaded

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if not self._resumes:
            self._adapt(checkpoint["model"], heuristics=checkpoint.get("matching_heuristics", False))
        self._check_finite(checkpoint["model"])
        return super()._load_model(checkpoint)

    def _check_finite(self, state_dict: dict[str, Any]) -> None:
        """Refuse weights of the model that would give empty results, or a loss of NaN, without a reason."""
        self._convert_ndarray_to_tensor(state_dict)
        own = {name: state_dict[name] for name in self.model.state_dict().keys() & state_dict.keys()}
        if names := sorted(non_finite_names(own, {name for name, _ in self.model.named_parameters()})):
            raise UserError(
                f"{self._source}: {names[0]} and {len(names) - 1} other weights are NaN or infinite: name another "
                "checkpoint in MODEL.WEIGHTS"
            )

    def _adapt(self, state_dict: dict[str, Any], *, heuristics: bool) -> None:
        self._convert_ndarray_to_tensor(state_dict)
        for name, shape in adapt_input_channels(state_dict, self.model.state_dict(), is_suffix=heuristics).items():
            weight = self.model.get_parameter(name)
            logger.info(
                "Adapted to the channels of the images (MODEL.PIXEL_MEAN), and loaded: %s  %s -> %s",
                *(name, shape, tuple(weight.shape)),
            )
            if self.checkpointables and not weight.requires_grad:
                logger.warning(
                    "%s is frozen, so it cannot adapt to the channels: see MODEL.BACKBONE.FREEZE_AT, "
                    "MODEL.PSF.TIMM.FREEZE or MODEL.PSF.SWIN.FREEZE",
                    name,
                )


class Checkpointer(DetectionCheckpointer, _ChannelAdapter):
    """Saves class names with the weights, and re-maps heads by class names if the model has other classes.

    A table in the log has the result for each class. When a run is resumed (optimizer and iteration are loaded, too),
    other classes raise a UserError, because the optimizer state would not fit. So do parameters of another shape;
    otherwise they are skipped with one warning. Without an optimizer or other checkpointables, the model will not be
    trained, and a warning names its parts that stay random.

    Unless a run is resumed, the first convolution is adapted from 3 channels to the model's number of channels, and the
    number of thing queries is adapted, too.

    The file also stores the number of thing queries and the merging thresholds that training has tuned. A model that
    will not be trained gets these thresholds, see `psf.engine.merging.apply_merging`.

    Files are written with a checksum, and appear when they are complete (`psf.checkpoint.write_checkpoint`). A run is
    resumed from the newest sound file, `resumed_from`.

    Args:
        model: as Detectron2's.
        save_dir: as Detectron2's.
        class_names: of the model; None: unknown, so nothing is re-mapped.
        num_thing_queries: of the model; None: unknown, and not stored.
        entry: the config of the model; None: not stored.
        others: as Detectron2's; `optimizer`, `trainer` and so on.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        class_names: ClassNames | None = None,
        num_thing_queries: int | None = None,
        entry: ModelEntry | None = None,
        **others: Any,
    ) -> None:
        super().__init__(model, save_dir, **others)
        self.class_names, self.num_thing_queries, self.entry = class_names, num_thing_queries, entry
        self.merging: TunedMerging | None = None  # of the loaded file, or from the search at the end of training
        self.resumed_from: Path | None = None
        self._newest: Path | None = None  # sound file that this run has loaded or written
        self._content: dict[str, Any] | None = None  # of the file that will be loaded, if it has been read already

    def save(self, name: str, **kwargs: Any) -> None:
        """As Detectron2's; the file also has what `ModelEntry` describes, class names, query count and `merging`.

        Raises:
            UserError: if the file cannot be written, or a weight is not finite; the last checkpoint is as it was.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        entries: dict[str, Any] = {}
        for entry in (self.class_names, self.merging, self.entry):
            entries |= {} if entry is None else entry.as_entry()
        if self.num_thing_queries is not None:
            entries |= query_count_entry(self.num_thing_queries)
        states = {key: checkpointable.state_dict() for key, checkpointable in self.checkpointables.items()}
        content = {"model": self.model.state_dict(), **states, **entries, **kwargs}
        path = Path(self.save_dir, f"{name}.pth")
        if names := non_finite_names(content["model"], self._parameters()):
            raise UserError(
                f"{path} is not written: {names[0]} and {len(names) - 1} other weights are NaN or infinite; "
                f"lower SOLVER.BASE_LR; {self._way_on()}"
            )
        self.logger.info("Saving checkpoint to %s", path)
        try:
            write_checkpoint(content, path)
            self.tag_last_checkpoint(path.name)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror or error}): make room or change the folder's permissions; "
                f"{self._way_on()}"
            ) from error
        self._newest = path

    def _way_on(self) -> str:
        if self._newest is None:
            return "no earlier checkpoint of this run exists, so start it again"
        return f"{self._newest} is the last checkpoint, from which --resume continues"

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """As Detectron2's, but never a torn file."""
        write_text(Path(self.save_dir, TAG), last_filename_basename, durable=True)

    def _parameters(self) -> set[str]:
        return {name for name, _ in self.model.named_parameters()}

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As Detectron2's, but resumes from the newest sound checkpoint, and names damaged newer checkpoints.

        Raises:
            UserError: if there are checkpoints, but no sound one.
        """
        found = newest_sound_checkpoint(Path(self.save_dir), self._parameters()) if resume and self.save_dir else None
        if found is None:
            if resume:
                logger.info("--resume: no checkpoint in %s", self.save_dir or "OUTPUT_DIR")
            return self.load(path, checkpointables=[])
        self.resumed_from = self._newest = found.path
        for reason in found.refused:
            logger.warning("NOT USED: %s", reason)
        if found.refused:
            logger.warning("Using the newest sound checkpoint, %s", found.path)
        self._content = found.content
        return self.load(str(found.path))

    def _torch_load(self, f: str) -> dict[str, Any]:
        content, self._content = self._content, None
        return read_checkpoint(f) if content is None else content

    def load(
        self, path: str, checkpointables: list[str] | None = None, *, content: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """As Detectron2's, but reads files with `psf.checkpoint.read_checkpoint`, which executes nothing in them.

        Args:
            path, checkpointables: as Detectron2's.
            content: of the file, if it has been read already.

        Raises:
            UserError: if a file is missing, damaged, refused or cannot be downloaded, or has an unknown option.
        """
        check_weights(path)
        file = file_of_weights(path)
        if file and not os.path.isfile(local_path(file)):
            raise UserError(f"{file}: no such checkpoint file (MODEL.WEIGHTS)")
        if not file and not self.checkpointables and comm.is_main_process():
            logger.warning("MODEL.WEIGHTS is empty: the weights are random, and so are the results")
        self._content = content or self._content
        self._resumes, self._source = checkpointables is None and bool(self.checkpointables), path
        try:
            with _without_query(path) as plain:
                return super().load(plain, checkpointables)
        finally:
            self._parsed_url_during_load = None  # Detectron2 keeps it after an error, and refuses to load another file

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = arrange_weights(self._torch_load(filename), filename)
        url: Any = self._parsed_url_during_load  # Detectron2 has set it
        if url.query == HEURISTICS:
            content["matching_heuristics"] = True
        return content

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        stored = ClassNames.of_checkpoint(checkpoint)
        self._is_compared = stored is not None and self.class_names is not None
        if stored is not None and self.class_names is not None:
            self._remap(checkpoint, stored, self.class_names)
        if self._resumes:
            self._check_query_count(checkpoint)
        else:
            self._adapt_query_count(checkpoint)
        self.merging = TunedMerging.of_checkpoint(checkpoint)
        if not self.checkpointables:
            apply_merging(self.model, self.merging)
        return super()._load_model(checkpoint)

    def _check_query_count(self, checkpoint: dict[str, Any]) -> None:
        stored, own = stored_query_count(checkpoint), self.num_thing_queries
        if None not in (stored, own) and stored != own:
            raise UserError(
                f"cannot resume: MODEL.PSF.NUM_THING_QUERIES is {own}, the checkpoint was trained with {stored}. "
                f"{_WAY_OUT}"
            )

    def _adapt_query_count(self, checkpoint: dict[str, Any]) -> None:
        stored, own = stored_query_count(checkpoint), self.num_thing_queries
        counts = adapt_query_count(checkpoint["model"], self.model.state_dict())
        if counts is None and None not in (stored, own) and stored != own and not self.checkpointables:
            # Queries without learned embeddings: the weights fit any number of them.
            logger.warning(
                "MODEL.PSF.NUM_THING_QUERIES: the checkpoint was trained with %d, the model has %d", stored, own
            )
        if counts is not None:
            level = logging.INFO if self.checkpointables or counts[0] > counts[1] else logging.WARNING
            logger.log(
                level,
                "MODEL.PSF.NUM_THING_QUERIES: the checkpoint has %d, the model %d; the first %d are loaded%s",
                *counts,
                min(counts),
                ", the others are RANDOM" if counts[0] < counts[1] else "",
            )

    def _remap(self, checkpoint: dict[str, Any], stored: ClassNames, own: ClassNames) -> None:
        changes = compare_classes(stored, own)
        if all(change.is_identity for change in changes.values()):
            return
        message = f"classes of the checkpoint -> of the dataset, by name:\n{changes_table(changes)}"
        if self._resumes:
            raise UserError(f"cannot resume: {message}\n{_WAY_OUT}")
        checkpoint["model"] = remap_classes(checkpoint["model"], self.model.state_dict(), changes)
        new = [name for change in changes.values() for name in change.new]
        if new and not self.checkpointables:
            logger.warning("THE RESULTS OF NEW CLASSES WILL BE RANDOM: %s", message)
        else:
            logger.info("Heads re-mapped, weights of new classes initialised: %s", message)

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        skipped = incompatible.incorrect_shapes
        if skipped:
            width = max(len(name) for name, _, _ in skipped)
            lines = [f"  {name:{width}}  {tuple(stored)} -> {tuple(own)}" for name, stored, own in skipped]
            message = (
                f"{len(skipped)} parameters of the checkpoint differ in shape from the model's (checkpoint -> model; "
                "was it trained on a dataset with another number of classes?):\n" + "\n".join(lines)
            )
            if not self._is_compared:
                message += f"\n{_WHY_NOT_REMAPPED}"
            if self._resumes:
                raise UserError(f"cannot resume: {message}\n{_WAY_OUT}")
            logger.warning("SKIPPED, AND LEFT AT THEIR INITIAL VALUES: %s", message)
        # Parameters of another shape, which are reported above, are among the missing keys as well.
        random = self._untouched_parts(set(incompatible.missing_keys).difference(name for name, _, _ in skipped))
        if random and not self.checkpointables:
            logger.warning(
                "THE RESULTS WILL BE RANDOM: the checkpoint (MODEL.WEIGHTS) has no weights for the model's %s; "
                "backbone weights alone are only a starting point for training",
                ", ".join(random),
            )
        if random and self.checkpointables:  # a list of all their parameters would hide this line
            logger.info("MODEL.WEIGHTS has no weights for %s: they start from random weights", ", ".join(random))
            missing = [name for name in incompatible.missing_keys if name.partition(".")[0] not in random]
            incompatible = incompatible._replace(missing_keys=missing)
        super()._log_incompatible_keys(incompatible._replace(incorrect_shapes=[]))

    def _untouched_parts(self, absent: set[str]) -> list[str]:
        """Names of the model's parts whose parameters are all `absent` from the checkpoint."""
        parts: dict[str, bool] = {}
        for name, _ in self.model.named_parameters():
            part = name.partition(".")[0]
            parts[part] = parts.get(part, True) and name in absent
        return [part for part, is_untouched in parts.items() if is_untouched]


def build_checkpointer(cfg: CfgNode, model: nn.Module, save_dir: str = "", **others: Any) -> Checkpointer:
    """A checkpointer for the classes and the number of thing queries of a config.

    Args:
        cfg: of the model.
        model, save_dir, others: as for `Checkpointer`.
    """
    names, num_queries = class_names_from_config(cfg), cfg.MODEL.PSF.NUM_THING_QUERIES
    entry = ModelEntry.of_config(cfg) if save_dir else None
    return Checkpointer(model, save_dir, class_names=names, num_thing_queries=num_queries, entry=entry, **others)

"""Find the image of each label image, by name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from psf.data.files import check_regular, is_hidden
from psf.data.images import image_suffixes
from psf.data.panoptic_format import shorten
from psf.errors import UserError

__all__ = ["choose_images", "find_images", "find_labels", "join_by_name", "read_names"]

Label = TypeVar("Label")

# Ends of the names of label images and of images, before the suffix of the file, longest first.
LABEL_ENDS = (
    "_gtFine_labelIds",
    "_gtFine_instanceIds",
    "_segmentation",
    "_instanceIds",
    "_instances",
    "_labelIds",
    "_labels",
    "_label",
    "_masks",
    "_mask",
    "_seg",
    "_gt",
)
IMAGE_ENDS = ("_leftImg8bit", "_image", "_img", "_rgb")
_MOST_NAMED = 5  # files in a message
_MOST_BYTES = 100_000_000  # of a list of names


def find_images(folder: Path, *, without: Iterable[Path] = ()) -> dict[str, str]:
    """Images below a folder, sorted: name without suffix -> name, both relative to the folder.

    Args:
        without: label images and their folders, which are passed over.

    Raises:
        UserError: if there is none, or if two names differ in their suffix alone.
    """
    passed = {path.absolute() for path in without} - {folder.absolute()}
    found: dict[str, str] = {}
    for path in _files(folder):
        absolute = path.absolute()
        if absolute in passed or not passed.isdisjoint(absolute.parents):
            continue
        name = path.relative_to(folder)
        key = name.with_suffix("").as_posix()
        if key in found:
            raise UserError(f"{folder}: {found[key]} and {name} differ in their suffix alone; remove one of them")
        found[key] = name.as_posix()
    if not found:
        raise UserError(f"{folder}: found no image; set --image-root to the folder of the images")
    return found


def find_labels(folder: Path, *, image_root: Path, end: str | None = None) -> dict[str, Path]:
    """Label images below a folder, sorted: name without suffix and, if given, `end` -> path.

    Args:
        image_root: folder of the images. If it is the same one, label images are the files with `end`, or one of
            LABEL_ENDS.
        end: end of their names before the suffix; other files are passed over.

    Raises:
        UserError: if there is none, or if two names differ in their suffix alone.
    """
    ends = (end,) if end is not None else LABEL_ENDS if folder.absolute() == image_root.absolute() else ("",)
    found: dict[str, Path] = {}
    for path in _files(folder):
        if not path.stem.endswith(ends):
            continue
        key = path.relative_to(folder).with_suffix("").as_posix()
        key = key[: len(key) - len(end)] if end else key
        if key in found:
            raise UserError(f"{found[key]} and {path} differ in their suffix alone; remove one of them")
        found[key] = path
    if not found:
        kind = f"with a name that ends in {' or '.join(ends[:3])}" if ends != ("",) else "of any format"
        raise UserError(f"{folder}: found no label image {kind}; correct --labels, --image-root or --label-suffix")
    return found


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: found no such folder")
    suffixes = {*image_suffixes(), ".npy"}
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    return [path for path in paths if not is_hidden(path, folder)]


def choose_images(images: Mapping[str, str], names: Collection[str], place: str) -> dict[str, str]:
    """The images with these names: file names, names without suffix, or the last parts of either.

    Raises:
        UserError: beginning with `place`, if a name is no image.
    """
    chosen_names = set(names)
    chosen: dict[str, str] = {}
    known = set[str]()
    for key, file_name in images.items():
        hits = chosen_names & {key, file_name, key.rsplit("/", 1)[-1], file_name.rsplit("/", 1)[-1]}
        if hits:
            chosen[key] = file_name
            known |= hits
    if unknown := sorted(chosen_names - known):
        raise UserError(f"{place}: {len(unknown)} of {len(chosen_names)} names are no image ({_first(unknown)})")
    return chosen


def join_by_name(
    images: Mapping[str, str],
    labels: Mapping[str, Label],
    *,
    place: str,
    are_chosen: bool = False,
    skip_unlabeled: bool = False,
) -> tuple[list[tuple[str, Label]], int]:
    """Pairs of images and labels of the same name, apart from one of IMAGE_ENDS and LABEL_ENDS.

    Args:
        images, labels: name without suffix -> image, label.
        place: beginning of messages.
        are_chosen: whether these are not all images, so that labels may have no image.
        skip_unlabeled: skip images without a label.

    Returns:
        (name of the image, label) in the order of the images, and the number of skipped images.

    Raises:
        UserError: naming the first ones, if a label has no image, or an image has no label or two.
    """
    short = {_without_end(key, IMAGE_ENDS): key for key in images}
    label_of: dict[str, tuple[str, Label]] = {}
    alone = []
    for key, label in labels.items():
        bare = _without_end(key, LABEL_ENDS)
        image = next((one for one in (key, short.get(key), bare, short.get(bare)) if one in images), None)
        if image is None:
            alone.append(key)
        elif image in label_of:
            raise UserError(
                f"{place}: the image {images[image]} has two labels, {label_of[image][0]} and {key}; choose with "
                "--label-suffix, such as --label-suffix _mask"
            )
        else:
            label_of[image] = key, label
    unlabeled = [file_name for key, file_name in images.items() if key not in label_of]
    problems = (
        [f"{len(alone)} of {len(labels)} labels without an image ({_first(alone)})"] if alone and not are_chosen else []
    )
    if unlabeled and not skip_unlabeled:
        problems.append(f"{len(unlabeled)} of {len(images)} images without a label ({_first(unlabeled)})")
    if problems:
        raise UserError(
            f"{place}: found {' and '.join(problems)}; expected equal names, apart from an end such as _mask "
            "(--label-suffix); --skip-unlabeled skips images without a label"
        )
    pairs = [(images[key], label_of[key][1]) for key in images if key in label_of]
    if not pairs:
        raise UserError(f"{place}: found no image with a label, expected at least one")
    return pairs, len(unlabeled)


def _without_end(key: str, ends: Sequence[str]) -> str:
    for end in ends:
        if key.endswith(end) and not key.endswith(f"/{end}") and key != end:
            return key.removesuffix(end)
    return key


def _first(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _MOST_NAMED else ""
    return f"{', '.join(name if len(name) < 100 else shorten(name) for name in names[:_MOST_NAMED])}{more}"


def read_names(path: Path) -> list[str]:
    """Names of images, one a line, as in ImageSets/Segmentation of Pascal VOC; a UserError if there is none."""
    check_regular(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path}: found more than {_MOST_BYTES} bytes, expected a list of names")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected a list of names, one a line") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"{path}: found no name, expected one a line")
    return names

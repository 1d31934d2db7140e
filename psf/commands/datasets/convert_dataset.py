"""Convert label images, masks or annotations of other formats to a panoptic dataset.

psf convert-dataset --labels masks/ --image-root photos/ --classes classes.csv --things car,person --output mine/
psf convert-dataset --object-masks cells/ --things cell --background background --overlap error --output mine/
psf convert-dataset --instances instances.json --overlap smaller-on-top --output mine/
psf convert-dataset --labelme folder/ --semantic-labels stuff.txt --overlap later-on-top --output mine/
psf convert-dataset --supervisely project/ --things car,person --overlap later-on-top --output mine/
psf convert-dataset --cvat annotations.xml --things car,person --overlap later-on-top --output mine/
psf convert-dataset --label-studio export.json --image-root photos/ --overlap later-on-top --output mine/
psf convert-dataset --yolo yolo/ --overlap smaller-on-top --output mine/

--labels: images with a class, or an instance, in each pixel; --classes lists the classes. --object-masks: one image for
each object. --instances: a JSON in COCO's format, as written by CVAT ("COCO 1.0") and many other programs. --labelme
and --supervisely: folders of these programs. --cvat: "CVAT for images 1.1"; --label-studio: an export of the kind JSON;
--yolo: data.yaml, its folder, or a folder of images below it. All classes are things, except with --things, which names
the things, or, for --instances and --labelme, the stuff classes in the file --semantic-labels (lines `id,name`), which
are annotations, or the pixels with these ids in the masks of --semantic. Writes OUTPUT/panoptic.json and
OUTPUT/panoptic/, and OUTPUT/images/ if the images are only in labelme files.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from psf.commands import add_max_pixels_flag, add_workers_flag, command_parser, echo, positive, run_command
from psf.data.images import limit_pixels
from psf.tools.dataset_conversion.annotations.coco import read_instances
from psf.tools.dataset_conversion.annotations.cvat import read_cvat
from psf.tools.dataset_conversion.annotations.label_studio import read_label_studio
from psf.tools.dataset_conversion.annotations.labelme import read_labelme
from psf.tools.dataset_conversion.annotations.supervisely import read_supervisely
from psf.tools.dataset_conversion.annotations.yolo import read_yolo
from psf.tools.dataset_conversion.classes import named_classes, parse_list, read_classes
from psf.tools.dataset_conversion.conversion import PanopticFiles
from psf.tools.dataset_conversion.label_images import ENCODINGS, LabelPair, convert_label_images
from psf.tools.dataset_conversion.object_masks import read_object_masks
from psf.tools.dataset_conversion.pairing import choose_images, find_images, find_labels, join_by_name, read_names
from psf.tools.dataset_conversion.regions import OVERLAP_POLICIES
from psf.tools.dataset_conversion.sources import SemanticMasks, Source, convert_source, read_labels

__all__ = ["build_parser", "main"]

_DRAWN = ("object_masks", "instances", "labelme", "supervisely", "cvat", "label_studio", "yolo")
_SOURCES = ("labels", *_DRAWN)
# Argument -> the sources that read it.
_READ_BY = {
    "overlap": _DRAWN,
    "background": _DRAWN,
    "image_root": ("labels", "object_masks", "labelme", "cvat", "label_studio"),
    "classes": ("labels", "object_masks", "cvat", "label_studio"),
    "things": ("labels", "object_masks", "supervisely", "cvat", "label_studio", "yolo"),
    "skip_unlabeled": ("labels", "object_masks"),
    **dict.fromkeys(("encoding", "instance_ids", "label_suffix", "names"), ("labels",)),
    **dict.fromkeys(("ignore", "unknown", "min_area"), ("labels",)),
    **dict.fromkeys(("semantic_labels", "semantic"), ("instances", "labelme")),
    "thing_labels": ("labelme",),
    "crowds_as_things": ("instances",),
}


class _Converted(NamedTuple):
    """What is told about a converted set."""

    categories: list[dict[str, Any]]
    notes: Counter[str]
    images: Path | str  # the folder of the images


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser; `main` checks the combination of arguments."""
    parser = command_parser("convert-dataset", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--labels", type=Path, metavar="FOLDER", help="label images")
    source.add_argument("--object-masks", type=Path, metavar="FOLDER", help="a folder of masks for each image")
    source.add_argument("--instances", type=Path, metavar="FILE", help="instances JSON in COCO's format")
    source.add_argument("--labelme", type=Path, metavar="FOLDER", help="labelme files, one for each image")
    source.add_argument("--supervisely", type=Path, metavar="FOLDER", help="a project, or one of its datasets")
    source.add_argument("--cvat", type=Path, metavar="FILE", help="an XML of the kind 'CVAT for images 1.1'")
    source.add_argument("--label-studio", type=Path, metavar="FILE", help="a JSON export of Label Studio")
    source.add_argument("--yolo", type=Path, metavar="PATH", help="data.yaml, or a folder of images of its set")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--image-root", type=Path, metavar="FOLDER", help="images, if they are not in the folder of the source"
    )
    parser.add_argument(
        "--things", metavar="NAMES", help='thing classes, such as car,person; "": none (default: all, or as --classes)'
    )
    parser.add_argument("--background", metavar="NAME", help="stuff class of the pixels that no region covers")
    parser.add_argument("--overlap", choices=OVERLAP_POLICIES, help="which of two overlapping regions gets the pixels")
    parser.add_argument("--overwrite", action="store_true", help="overwrite an existing OUTPUT/panoptic.json")
    _add_label_arguments(parser.add_argument_group("label images and masks"))
    _add_annotation_arguments(parser.add_argument_group("COCO instances and labelme"))
    add_max_pixels_flag(parser)
    add_workers_flag(parser)
    return parser


def _add_label_arguments(group: Any) -> None:
    group.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="CSV with name, value or r,g,b, isthing; or Mapillary's config.json",
    )
    kinds = "; ".join(f"{name}: {meaning}" for name, meaning in ENCODINGS.items())
    group.add_argument("--encoding", choices=ENCODINGS, help=f"meaning of a pixel (default: class). {kinds}")
    group.add_argument(
        "--instance-ids", type=Path, metavar="FOLDER", help="further images with a number or color per thing, 0: none"
    )
    group.add_argument("--label-suffix", metavar="END", help="read only label images with this end, such as _mask")
    group.add_argument("--names", type=Path, metavar="FILE", help="convert only these images, one name a line")
    group.add_argument("--skip-unlabeled", action="store_true", help="skip images without a label")
    group.add_argument("--ignore", metavar="VALUES", help="values, or colors such as #ffffff, that become void")
    group.add_argument(
        "--unknown", choices=("error", "void"), help="what values outside --classes are (default: error)"
    )
    group.add_argument("--min-area", type=positive, metavar="N", help="things with fewer pixels become void")


def _add_annotation_arguments(group: Any) -> None:
    group.add_argument("--semantic-labels", type=Path, metavar="FILE", help="stuff classes, lines id,name")
    group.add_argument("--semantic", type=Path, metavar="FOLDER", help="masks with these ids, FILE.png for FILE.jpg")
    group.add_argument("--thing-labels", type=Path, metavar="FILE", help="thing classes of --labelme, lines id,name")
    group.add_argument(
        "--crowds-as-things",
        action="store_true",
        help="treat iscrowd annotations as single things: some programs set iscrowd for all masks but polygons",
    )


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(words)
    source = next(name for name in _SOURCES if getattr(args, name) is not None)
    for name, sources in _READ_BY.items():
        if getattr(args, name) not in (None, False) and source not in sources:
            parser.error(f"{_flag(name)} needs {' or '.join(map(_flag, sources))}; {_flag(source)} does not read it")
    if source in _DRAWN and not args.overlap:
        parser.error(f"--overlap is missing, {_flag(source)} needs it: one of {', '.join(OVERLAP_POLICIES)}")
    if args.labels and not args.classes:
        parser.error("--labels needs --classes, which defines the values or colors of the label images")
    if args.object_masks and not args.classes and not args.things:
        parser.error("--object-masks needs --things or --classes, the classes of the masks")
    if args.instance_ids and (args.encoding or "class") != "class":
        parser.error(f"--instance-ids needs --encoding class; with {args.encoding}, --labels has the numbers")
    if args.semantic and not args.semantic_labels:
        parser.error("--semantic needs --semantic-labels, which defines the values of the masks")
    return args


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse_arguments(words)
    return run_command(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    limit_pixels(args.max_pixels)
    files = PanopticFiles(args.output / "panoptic.json", args.output / "panoptic")
    files.check_free(overwrite=args.overwrite)
    converted = _convert_labels(args, files) if args.labels else _convert_regions(args, files)
    kinds = ("stuff", "thing")
    rows = [(category["id"], category["name"], kinds[category["isthing"]]) for category in converted.categories]
    echo(tabulate(rows, ("id", "category", "kind")))
    echo("\n".join(f"{number} {note}" for note, number in converted.notes.items()))
    places = f"--json {files.json_file} --png-root {files.png_root} --image-root {converted.images}"
    echo(f"\nNext, validate it: psf validate {places} --html report.html")


def _convert_regions(args: argparse.Namespace, files: PanopticFiles) -> _Converted:
    source, category_of = _read_source(args)
    if args.background is not None:
        source = source.with_background(args.background)
    notes = convert_source(
        source,
        files,
        overlap=args.overlap,
        semantic=SemanticMasks(args.semantic, category_of) if args.semantic else None,
        workers=args.workers,
        show_progress=True,
    )
    images = source.image_root or args.image_root or args.labelme or "IMAGES"
    return _Converted(source.categories, notes, images)


def _read_source(args: argparse.Namespace) -> tuple[Source, dict[int, int]]:
    """The source of regions, and id in --semantic-labels -> category id."""
    things = None if args.things is None else parse_list(args.things)
    if args.supervisely:
        return read_supervisely(args.supervisely, things=things), {}
    if args.yolo:
        return read_yolo(args.yolo, things=things), {}
    if args.cvat or args.label_studio:
        classes = read_classes(args.classes, things=things) if args.classes else None
        if args.cvat:
            return read_cvat(args.cvat, image_root=args.image_root, things=things, classes=classes), {}
        image_root = args.image_root or args.label_studio.parent
        return read_label_studio(args.label_studio, image_root=image_root, things=things, classes=classes), {}
    if args.object_masks:
        classes = read_classes(args.classes, things=things) if args.classes else named_classes(things or ())
        source = read_object_masks(
            args.object_masks, classes, image_root=args.image_root, skip_unlabeled=args.skip_unlabeled
        )
        return source, {}
    stuff_names = read_labels(args.semantic_labels) if args.semantic_labels else {}
    if args.instances:
        return read_instances(args.instances, stuff_names, crowds_as_things=args.crowds_as_things)
    thing_names = read_labels(args.thing_labels) if args.thing_labels else {}
    if not thing_names:
        echo("Thing ids depend on the labels in this folder; for the same ids in several sets, use --thing-labels")
    return read_labelme(
        args.labelme,
        stuff_names,
        thing_names=thing_names,
        image_root=args.image_root,
        extract_to=args.output / "images",
    )


def _convert_labels(args: argparse.Namespace, files: PanopticFiles) -> _Converted:
    things = None if args.things is None else parse_list(args.things)
    classes = read_classes(args.classes, things=things, ignore=parse_list(args.ignore or ""))
    image_root = args.image_root or args.labels
    encoding = args.encoding or "class"
    labels = find_labels(args.labels, image_root=image_root, end=args.label_suffix)
    folders = [folder for folder in (args.labels, args.instance_ids) if folder]
    images = find_images(image_root, without=[*folders, *labels.values()])
    if args.names:
        images = choose_images(images, read_names(args.names), str(args.names))
    joined, num_skipped = join_by_name(
        images, labels, place=str(args.labels), are_chosen=bool(args.names), skip_unlabeled=args.skip_unlabeled
    )
    pairs = [LabelPair(*pair) for pair in joined]
    if args.instance_ids:
        instances = find_labels(args.instance_ids, image_root=image_root)
        labeled = {pair.file_name for pair in pairs}
        images = {key: file_name for key, file_name in images.items() if file_name in labeled}
        found, _ = join_by_name(images, instances, place=str(args.instance_ids), are_chosen=True)
        pairs = [pair._replace(instances=path) for pair, (_, path) in zip(pairs, found, strict=True)]
    elif encoding == "class" and classes.things:
        echo("Connected components become things; things of a class that touch become one (--instance-ids separates)")
    notes = convert_label_images(
        pairs,
        classes,
        image_root,
        files,
        encoding=encoding,
        unknown_is_void=args.unknown == "void",
        min_area=args.min_area or 0,
        workers=args.workers,
        show_progress=True,
    )
    if num_skipped:
        notes["images without a label were skipped"] = num_skipped
    return _Converted(classes.categories, notes, image_root)

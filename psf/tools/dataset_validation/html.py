"""Write a validation report as a self-contained HTML page with drawn samples."""

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from psf.data.files import write_text
from psf.data.images import read_picture
from psf.data.panoptic_format import find_problems, image_key
from psf.data.panoptic_json import panoptic_metadata
from psf.data.panoptic_labels import measure_panoptic_png, read_panoptic_ids
from psf.errors import UserError
from psf.tools.dataset_validation.lists import check_lists
from psf.tools.dataset_validation.report import (
    BEGINNING_OF_REPORT,
    HISTOGRAM_HEADERS,
    ValidationReport,
    check_report_target,
    number_of,
)

__all__ = [
    "UNKNOWN",
    "draw_sample",
    "write_html",
]

_MAX_SIDE = 320  # pixels
_OPACITY = 0.55
_VOID, UNKNOWN, _BORDER = (0, 0, 0), (255, 0, 255), (255, 255, 255)


def draw_sample(
    image_file: str, png_file: str, colors: Mapping[int, tuple[int, int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """The image, and the image with its segments and white borders; (h, w, 3) uint8 RGB, at most 320 pixels.

    Args:
        colors: RGB of each id of the PNG; other ids are magenta, void is black.

    Raises:
        UserError: if a file is missing or damaged.
    """
    picture = read_picture(image_file)
    ids = read_panoptic_ids(png_file, measure_panoptic_png(png_file).ids.tolist())
    scale = min(1.0, _MAX_SIDE / max(picture.shape))
    height, width = (max(round(side * scale), 1) for side in picture.shape[:2])
    small = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
    rows, columns = (
        (np.arange(side) * whole // side).astype(int) for side, whole in zip((height, width), ids.shape)
    )  # of the PNG, which may have another size
    ids = ids[np.ix_(rows, columns)]

    present, inverse = np.unique(ids, return_inverse=True)
    table = np.array([{0: _VOID, **colors}.get(number, UNKNOWN) for number in present.tolist()])
    drawn = (1 - _OPACITY) * small + _OPACITY * table[inverse.reshape(ids.shape)]
    is_border: np.ndarray = np.zeros(ids.shape, dtype=bool)
    is_border[:-1] |= ids[:-1] != ids[1:]
    is_border[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    drawn[is_border] = _BORDER
    return small, drawn.round().astype(np.uint8)


_NUM_EXAMPLES = 5  # maximum number of faults per kind, and per sample

Look = tuple[str, tuple[int, int, int]]  # name and colour of a class

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 1.5rem }
td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top }
figure { display: inline-block; margin: 0 1.2rem 1.6rem 0; vertical-align: top; max-width: 41rem }
figcaption, code { font-size: 13px }
img { margin-right: 4px }
.bar { background: #8ab; height: .7rem; display: inline-block }
.chip { border-radius: 3px; padding: 0 .35rem; margin-right: .25rem; display: inline-block }
.fault { color: #b00020 }
"""


def write_html(
    report: ValidationReport, target: Path, *, png_root: str, image_root: str, num_samples: int = 12
) -> None:
    """Write the page: a summary, faults, samples (images and segments side by side), and classes.

    Half of the samples are images with faults, if there are enough; the others are spread over the set. Images
    that cannot be drawn are skipped.

    Args:
        report: of the set.
        target: the HTML file.
        png_root, image_root: as for `validate_panoptic`.
        num_samples: maximum number of images.

    Raises:
        UserError: if the target exists and is not an earlier report.
    """
    check_report_target(target)
    lists = check_lists(report.content)
    looks: dict[int, Look] = {
        category["id"]: (category["name"], (int(red), int(green), int(blue)))
        for category, (red, green, blue) in zip(
            lists.categories, panoptic_metadata(lists.categories)["thing_colors"], strict=True
        )
    }
    faults_of: dict[str, list[str]] = {}
    for fault in report.faults:
        faults_of.setdefault(fault.where, []).append(f"{fault.kind}: {fault.detail}")
    figures = [
        _figure(
            annotation,
            lists.images[image_key(annotation["image_id"])],
            looks,
            faults_of.get(annotation["file_name"], ()),
            png_root,
            image_root,
        )
        for annotation in _choose(lists.annotations, faults_of, num_samples)
    ]
    parts = [
        f"<h1>{escape(os.path.basename(report.json_file))}</h1>",
        _table([], [[escape(label), escape(text)] for label, text in report.summary()]),
        f"<h2>{number_of(len(report.faults), 'fault', 'faults')}</h2>",
        *_fault_parts(report),
        "<h2>Samples</h2>",
        *figures,
        "<h2>Classes</h2>",
        _histogram(report),
    ]
    page = f"{BEGINNING_OF_REPORT}<title>{escape(report.json_file)}</title>"
    body = "\n".join(parts)
    write_text(target, f"{page}<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n")


def _choose(
    annotations: Sequence[dict[str, Any]], faults_of: Mapping[str, Any], num_samples: int
) -> list[dict[str, Any]]:
    faulty = [one for one in annotations if one["file_name"] in faults_of][: num_samples // 2]
    others = [one for one in annotations if one["file_name"] not in faults_of]
    wanted = min(num_samples - len(faulty), len(others))
    spread = np.linspace(0, max(len(others) - 1, 0), wanted).round().astype(int).tolist()
    return [*faulty, *(others[position] for position in spread)]


def _fault_parts(report: ValidationReport) -> list[str]:
    parts = []
    for kind, number, fixable, examples in report.fault_table(_NUM_EXAMPLES):
        rows = [[f"<code>{escape(fault.where)}</code>", escape(fault.detail)] for fault in examples]
        more = f", {fixable} can be corrected" if fixable else ""
        parts.append(f'<h3 class="fault">{escape(kind)}: {number}{more}</h3>{_table([], rows)}')
    return parts


def _histogram(report: ValidationReport) -> str:
    bar = '<span class="bar" style="width:{:.0f}px"></span>'
    rows = [
        [*(escape(str(cell)) for cell in row), f"{share:.2f}", bar.format(4 * share)]
        for *row, share in report.histogram()
    ]
    return _table([*HISTOGRAM_HEADERS, ""], rows)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(header)}</th>" for header in headers)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _figure(
    annotation: Mapping[str, Any],
    image: Mapping[str, Any],
    looks: Mapping[int, Look],
    faults: Sequence[str],
    png_root: str,
    image_root: str,
) -> str:
    """The image without and with its segments, and a caption; empty if a file cannot be read."""
    listed = [one for one in annotation["segments_info"] if not find_problems("segments_info", one)]
    category_of = {one["id"]: one["category_id"] for one in listed}
    colors = {number: looks[category][1] for number, category in category_of.items() if category in looks}
    try:
        pictures = draw_sample(
            os.path.join(image_root, image["file_name"]), os.path.join(png_root, annotation["file_name"]), colors
        )
    except UserError:
        return ""
    counts = Counter(looks.get(category, (f"category {category}", UNKNOWN)) for category in category_of.values())
    chips = "".join(_chip(*look, number) for look, number in sorted(counts.items()))
    lines = [f"<code>{escape(image['file_name'])}</code>", chips]
    lines += [f'<span class="fault">{escape(text)}</span>' for text in faults[:_NUM_EXAMPLES]]
    embedded = "".join(f'<img src="data:image/jpeg;base64,{_base64(picture)}" alt="">' for picture in pictures)
    return f"<figure>{embedded}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"


def _chip(name: str, color: tuple[int, int, int], number: int) -> str:
    ink = "#000" if sum(color) > 380 else "#fff"
    times = f" × {number}" if number > 1 else ""
    return f'<span class="chip" style="background:rgb{color};color:{ink}">{escape(name)}{times}</span>'


def _base64(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()

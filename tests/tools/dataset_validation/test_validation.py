from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from psf.data.panoptic_labels import measure_panoptic_png
from psf.data.registration import PanopticSet
from psf.tools.dataset_validation import html as validation_html
from psf.tools.dataset_validation.html import draw_sample
from psf.tools.dataset_validation.report import FAULT_KINDS
from psf.tools.dataset_validation.validation import places_of_dataset, shared_images, validate_panoptic, write_corrected
from tests.data.conftest import save_ids
from tests.data.damaged_set import FILE_EDITS, JSON_EDITS, change, places, segments, validate, write_damaged
from tests.mini_set import write_mini_set

# ------------------------------------------------------------------ counting


def test_a_clean_set_is_counted(tmp_path):
    write_mini_set(tmp_path / "set")
    report = validate(tmp_path / "set", workers=2)
    assert report.is_clean and report.corrected is None
    assert (report.num_segments, report.num_crowds) == (14, 1)
    # 48 x 32 with 8 rows void, 36 x 52 with 4 rows void; the others are 40 x 60, 32 x 64 and 30 x 30 without void.
    assert report.num_void == 8 * 32 + 4 * 52
    assert report.num_pixels == 40 * 60 + 48 * 32 + 32 * 64 + 30 * 30 + 36 * 52
    count = {one.name: (one.segments, one.images) for one in report.classes}
    assert count == {"sky": (3, 3), "ball": (3, 2), "ground": (3, 3), "box": (4, 3), "cloud": (0, 0)}
    assert next(one for one in report.classes if one.name == "ball").pixels == 15 * 15 + 2 * 10 * 10  # no crowd
    text = report.text()
    assert "no faults" in text and "classes without a segment  cloud" in text


def test_arrays_are_counted_and_drawn(tmp_path):
    write_mini_set(tmp_path / "set")

    def as_array(content):
        for image in content["images"]:
            path = tmp_path / "set" / "images" / image["file_name"]
            image["file_name"] = f"{path.stem}.npy"
            np.save(path.with_suffix(".npy"), np.asarray(Image.open(path)).repeat(2, axis=2) / 1000)

    change(tmp_path / "set", as_array)
    assert validate(tmp_path / "set").is_clean
    files = [str(tmp_path / "set" / name) for name in ("images/0.npy", "panoptic/0.png")]
    small, drawn = draw_sample(*files, {})
    assert small.shape == drawn.shape == (40, 60, 3) and np.ptp(small) == 255
    np.save(files[0], np.zeros((40, 61, 6)))
    assert [fault.kind for fault in validate(tmp_path / "set").faults] == ["size mismatch"]


def test_the_progress_bar_counts_every_annotation(tmp_path, capsys, monkeypatch):
    write_mini_set(tmp_path / "set")
    validate(tmp_path / "set")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    validate(tmp_path / "set", show_progress=True)
    assert "100%" in (err := capsys.readouterr().err) and "5/5" in err


@pytest.mark.parametrize("seed", range(3))
def test_measures_are_those_of_masks(tmp_path, seed):
    rng = np.random.default_rng(seed)
    known = np.array([0, 1, 256, 70_000, 256**3 - 1])
    ids = known[rng.integers(0, 5, (9, 7))].repeat(rng.integers(1, 4), axis=1)
    save_ids(tmp_path / "ids.png", ids)
    measured = measure_panoptic_png(str(tmp_path / "ids.png"))
    assert measured.size == ids.shape and measured.ids.tolist() == np.unique(ids).tolist()
    for number, area, box in zip(*measured[1:]):
        ys, xs = np.nonzero(ids == number)
        assert area == len(ys)
        assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


# ------------------------------------------------------------------ faults

FIXABLE = {
    "incomplete entry",
    "duplicate category id",
    "several annotations of an image",
    "segment of the JSON, not in the PNG",
    "empty segment",
    "segment id out of range",
    "duplicate segment id",
    "wrong area",
    "wrong box",
    "size mismatch",
}
# Faults that come along: what else is then not as it should be.
WITH = {"id in the PNG, not in the JSON": {"wrong area"}}


@pytest.mark.parametrize("edit", [*JSON_EDITS, *FILE_EDITS])
def test_each_kind_of_fault_is_found_and_corrected_if_safe(tmp_path, edit):
    root, kind = tmp_path / "set", edit.removesuffix(" of files")
    write_damaged(root, edit)
    source = (root / "panoptic.json").read_bytes()
    report = validate(root)
    assert {fault.kind for fault in report.faults} - WITH.get(kind, set()) == {kind}
    assert kind in report.text() and not report.is_clean

    fixed = write_corrected(report, tmp_path / "fixed" / "panoptic.json")
    assert (root / "panoptic.json").read_bytes() == source
    again = validate_panoptic(str(tmp_path / "fixed" / "panoptic.json"), *places(root)[1:])
    is_fixable = edit in FIXABLE
    assert (kind in fixed) == is_fixable and again.is_clean == is_fixable
    assert again.unfixed() == report.unfixed() and not any(fault.is_fixable for fault in again.faults)


def test_every_kind_is_tested():
    assert {*JSON_EDITS, *FILE_EDITS} - {"size mismatch of files"} == set(FAULT_KINDS)


def test_a_png_of_another_image_loses_no_segments(tmp_path):
    root = tmp_path / "set"
    write_mini_set(root)
    Image.new("RGB", (30, 30), (200, 0, 0)).save(root / "panoptic" / "3.png")
    report = validate(root)
    assert report.unfixed() == {"PNG of another image?": 1} and report.corrected is None


def test_segments_that_disagree_under_one_id_stay(tmp_path):
    root = tmp_path / "set"
    write_mini_set(root)
    change(root, lambda x: segments(x, 0).append({**segments(x, 0)[1], "category_id": 5}))
    assert validate(root).unfixed() == {"duplicate segment id": 1}


def test_an_image_on_its_side_by_exif_is_measured_as_the_model_sees_it(tmp_path):
    root = tmp_path / "set"
    write_mini_set(root)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.open(root / "images" / "0.png").save(root / "images" / "0.png", exif=exif)
    [fault] = validate(root).faults
    assert fault.kind == "size mismatch" and "JSON 60 x 40, PNG 60 x 40, image 40 x 60" in fault.detail


def test_images_without_annotation_are_no_fault(tmp_path):
    root = tmp_path / "set"
    write_mini_set(root)
    change(root, lambda x: x["annotations"].pop())
    report = validate(root)
    assert report.is_clean and report.notes == ["1 image has no annotation and is not used"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "expected an object with 'categories'"),
        ("{", "not a valid JSON"),
        (json.dumps({"categories": [], "images": [], "annotations": [{"bbox": []}]}), r"psf convert-dataset"),
    ],
)
def test_what_is_no_panoptic_json_is_refused(tmp_path, text, message):
    (tmp_path / "panoptic.json").write_text(text)
    with pytest.raises(ValueError, match=rf"panoptic\.json: .*{message}"):
        validate(tmp_path)


def test_the_source_is_never_overwritten(tmp_path):
    write_damaged(tmp_path / "set", "wrong area")
    report = validate(tmp_path / "set")
    with pytest.raises(ValueError, match=r"--fix .* is the source JSON"):
        write_corrected(report, tmp_path / "set" / ".." / "set" / "panoptic.json")


def test_places_of_registered_sets():
    with pytest.raises(ValueError, match="no dataset is registered as 'psf_nothing'"):
        places_of_dataset("psf_nothing")
    with pytest.raises(ValueError, match=r"psf_shapes_train.*no panoptic_json"):
        places_of_dataset("psf_shapes_train")


# ------------------------------------------------------------------ pictures


def test_page_is_self_contained_and_shows_the_faults(tmp_path):
    root = tmp_path / "set"
    write_mini_set(root)
    change(root, lambda x: x["categories"][1].update(name="<ball> & co"))
    change(root, lambda x: segments(x, 0)[1].update(category_id=99))
    (root / "images" / "4.png").unlink()
    report = validate(root)
    validation_html.write_html(
        report, tmp_path / "r" / "report.html", png_root=str(root / "panoptic"), image_root=str(root / "images")
    )
    page = (tmp_path / "r" / "report.html").read_text()
    assert page.count("<figure>") == 4 and page.count("data:image/jpeg;base64,") == 8  # one image is missing
    assert "unknown category: 1" in page and "category 99" in page and "missing image: 1" in page
    assert "&lt;ball&gt; &amp; co" in page and "<ball>" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.index("0.png") < page.index("1.png")  # the faulty one comes first


def test_number_of_samples_and_their_choice(tmp_path):
    root = tmp_path / "set"
    write_damaged(root, "wrong box")  # in image 2
    report = validate(root)
    for number, shown in ((0, []), (2, ["2.png", "0.png"]), (3, ["2.png", "0.png", "4.png"])):
        validation_html.write_html(
            report, tmp_path / "r.html", png_root=places(root)[1], image_root=places(root)[2], num_samples=number
        )
        figures = (tmp_path / "r.html").read_text().split("<figcaption>")[1:]
        assert [re.search(r"<code>(.*?)</code>", one)[1] for one in figures] == shown


def test_sample_has_the_colors(make_sample):
    sample = make_sample(np.kron([[1, 2, 0]], np.ones((40, 20), int)), [], image=np.full((40, 60, 3), 100, np.uint8))
    small, drawn = draw_sample(sample["file_name"], sample["pan_seg_file_name"], {1: (200, 0, 0)})
    assert (small == 100).all()
    blend = 0.45 * 100 + 0.55 * np.array([[200, 0, 0], [255, 0, 255], [0, 0, 0]])  # known, unknown, void
    assert (drawn[20, [10, 30, 50]] == blend.round()).all() and (drawn[:, 19] == 255).all()


def test_large_samples_become_small(make_sample):
    sample = make_sample(np.ones((100, 700), int), [])
    small, drawn = draw_sample(sample["file_name"], sample["pan_seg_file_name"], {})
    assert small.shape == drawn.shape == (46, 320, 3)


# ------------------------------------------------------------------ real images


def test_real_coco_is_clean(shared):
    root = shared / "data" / "coco25" / "coco"
    files = ("annotations/panoptic_val2017.json", "panoptic_val2017", "val2017")
    report = validate_panoptic(*(str(root / file) for file in files))
    assert report.is_clean
    assert (report.num_segments, report.num_crowds, sum(one.segments > 0 for one in report.classes)) == (460, 12, 79)


def test_files_outside_of_the_folder_are_faults_and_not_drawn(tmp_path):
    root = tmp_path / "set"
    write_mini_set(root)
    secret = tmp_path / "secret.png"
    (root / "images" / "1.png").rename(secret)
    for name in (str(secret), "../../secret.png"):
        change(root, lambda content, name=name: content["images"][1].update(file_name=name))
        report = validate(root)
        [first, *_] = report.faults
        assert first.kind == "wrong value" and first.detail.startswith(f"'file_name' is {name!r}"[:60])
        _, pngs, images = places(root)
        validation_html.write_html(report, tmp_path / "report.html", png_root=pngs, image_root=images)
        assert (tmp_path / "report.html").read_text().count("<figure>") == 4


def test_notes(tmp_path):
    root = tmp_path / "set"
    write_mini_set(root)
    turned = Image.Exif()
    turned[0x0112] = 6
    picture = np.asarray(Image.open(root / "images" / "3.png"))
    Image.fromarray(np.rot90(picture)).save(root / "images" / "3.png", exif=turned)
    change(root, lambda content: content["categories"][4].update(name="SKY"))
    report = validate(root)
    assert report.is_clean and any(note.startswith("1 image is turned by EXIF") for note in report.notes)
    assert "2 categories differ only in spaces or case: 'SKY', 'sky'" in report.notes


def test_images_that_two_sets_share(tmp_path):
    for name in ("train", "val"):
        write_mini_set(tmp_path / name)
    for number in range(1, 5):  # of the five, one stays the same
        save_ids(tmp_path / "val" / "images" / f"{number}.png", np.full((20, 20), number))
    (tmp_path / "val" / "images" / "0.png").rename(tmp_path / "val" / "images" / "x.png")
    change(tmp_path / "val", lambda content: content["images"][0].update(file_name="x.png"))
    sets = [PanopticSet(name, *places(tmp_path / name)) for name in ("train", "val")]
    assert shared_images(sets) == ["1 image is in both train and val (x.png)"]

from __future__ import annotations

from pathlib import Path

import pytest

from psf.errors import UserError
from psf.tools.dataset_conversion.pairing import choose_images, find_images, find_labels, join_by_name, read_names


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def pairs(images: Path, labels: Path, end: str | None = None) -> list[tuple[str, str]]:
    found = find_labels(labels, image_root=images, end=end)
    joined, _ = join_by_name(find_images(images, without=[labels, *found.values()]), found, place="here")
    return [(image, path.relative_to(labels).as_posix()) for image, path in joined]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("a/1.jpg", "a/1.png"),
        ("a/1.JPG", "a/1_mask.png"),
        ("a/1_leftImg8bit.png", "a/1_gtFine_labelIds.png"),
        ("a/1_leftImg8bit.png", "a/1_instanceIds.tif"),
        ("a/1_rgb.npy", "a/1_seg.npy"),
        ("a/1_mask.jpg", "a/1_mask.png"),  # the name of the image itself
        ("_mask.jpg", "_mask.png"),
    ],
)
def test_names_that_belong_together(tmp_path: Path, image: str, label: str) -> None:
    touch(tmp_path, f"images/{image}", f"labels/{label}", "labels/notes.txt", "images/._x.jpg", "labels/.cache/x.png")
    assert pairs(tmp_path / "images", tmp_path / "labels") == [(image, label)]


def test_cityscapes_has_three_label_images_per_image(tmp_path: Path) -> None:
    ends = ("_gtFine_labelIds", "_gtFine_instanceIds", "_gtFine_color")
    touch(tmp_path, "img/a/1_leftImg8bit.png", *(f"gt/a/1{end}.png" for end in ends))
    touch(tmp_path / "gt", "a/1_gtFine_polygons.json")
    images, labels = tmp_path / "img", tmp_path / "gt"
    with pytest.raises(UserError, match=r"has two labels, .*choose with --label-suffix"):
        pairs(images, labels)
    expected = [("a/1_leftImg8bit.png", "a/1_gtFine_instanceIds.png")]
    assert pairs(images, labels, "_gtFine_instanceIds") == expected
    with pytest.raises(UserError, match="found no label image with a name that ends in _x"):
        pairs(images, labels, "_x")


def test_images_and_labels_in_one_folder(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "1_seg.png", "b/2.jpg", "b/2_seg.png")
    assert pairs(tmp_path, tmp_path) == [("1.jpg", "1_seg.png"), ("b/2.jpg", "b/2_seg.png")]
    touch(tmp_path, "labels/1.png", "labels/b/2.png")  # or labels in a folder of the images
    (tmp_path / "1_seg.png").unlink()
    (tmp_path / "b" / "2_seg.png").unlink()
    assert pairs(tmp_path, tmp_path / "labels") == [("1.jpg", "1.png"), ("b/2.jpg", "b/2.png")]


def test_what_has_no_partner_is_listed(tmp_path: Path) -> None:
    touch(tmp_path, *(f"images/{i}.jpg" for i in range(8)), "labels/0.png", "labels/x.png")
    with pytest.raises(UserError) as caught:
        pairs(tmp_path / "images", tmp_path / "labels")
    message = "1 of 2 labels without an image (x) and 7 of 8 images without a label (1.jpg, 2.jpg, 3.jpg, 4.jpg, 5.jpg,"
    assert message in str(caught.value)
    images = find_images(tmp_path / "images")
    labels = find_labels(tmp_path / "labels", image_root=tmp_path / "images")
    with pytest.raises(UserError, match="1 of 2 labels without an image"):
        join_by_name(images, labels, place="here", skip_unlabeled=True)
    del labels["x"]
    joined, skipped = join_by_name(images, labels, place="here", skip_unlabeled=True)
    assert [image for image, _ in joined] == ["0.jpg"] and skipped == 7


def test_chosen_images(tmp_path: Path) -> None:
    images = {"a/1": "a/1.jpg", "a/2": "a/2.jpg", "b/1": "b/1.png", "3 x": "3 x.jpg"}
    (tmp_path / "names.txt").write_bytes("\ufeffa/2\r\n\r\nb/1.png\r\n3 x\r\n".encode())
    names = read_names(tmp_path / "names.txt")
    assert list(choose_images(images, names, "here")) == ["a/2", "b/1", "3 x"]
    assert list(choose_images(images, ["1"], "here")) == ["a/1", "b/1"]
    with pytest.raises(UserError, match=r"here: 1 of 2 names are no image \(5\)"):
        choose_images(images, ["5", "a/1"], "here")
    (tmp_path / "names.txt").write_text("\n")
    with pytest.raises(UserError, match="found no name"):
        read_names(tmp_path / "names.txt")


def test_folders_without_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found no such folder"):
        find_images(tmp_path / "none")
    with pytest.raises(UserError, match="found no image; set --image-root"):
        find_images(tmp_path)
    with pytest.raises(UserError, match="found no label image"):
        find_labels(tmp_path, image_root=tmp_path)
    touch(tmp_path, "1.jpg", "1.png")
    with pytest.raises(UserError, match=r"1\.jpg and 1\.png differ in their suffix alone"):
        find_images(tmp_path)

"""Drawn segments: colours, contours, names and legends."""

from __future__ import annotations

import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psf.output import Region, draw_legend, draw_regions, legend_entries
from psf.output import drawing as drawing_module
from psf.output.colors import class_color, contrasting, segment_levels, with_level
from psf.output.drawing import draw_text, find_box, text_size
from psf.output.legend import LegendEntry, add_legend

RED, BLUE = (200, 0, 0), (0, 0, 200)


def region(top: int, left: int, bottom: int, right: int, name: str = "ball", **more) -> Region:
    fields = {"color": RED, "is_thing": True, "score": 0.5, **more}
    mask = np.ones((bottom - top, right - left), dtype=bool)
    return Region(name=name, box=np.s_[top:bottom, left:right], mask=mask, **fields)


def written(regions: list[Region], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Text, top, left, height and width of each name that is written over a gray image."""
    texts = []

    def record(canvas, text, top, left, font_size, color):
        texts.append((text, top, left, *text_size(text, font_size)))

    monkeypatch.setattr(drawing_module, "draw_text", record)
    draw_regions(np.full((*size, 3), 128, np.uint8), regions)
    return texts


class TestColors:
    @given(st.tuples(*[st.integers(0, 255)] * 3))
    def test_levels_differ_and_keep_the_hue(self, color: tuple[int, int, int]):
        shades = [with_level(color, level) for level in range(5)]
        assert shades[0] == color
        lightness = sorted(max(one) + min(one) for one in shades)  # of 510
        assert min(b - a for a, b in pairwise(lightness)) > 20
        if color == (200, 0, 0):
            assert all(one[1] == one[2] <= one[0] for one in shades)

    def test_neighbours_of_a_class_differ(self):
        boxes = [np.s_[0:10, 10 * i : 10 * i + 10] for i in range(8)]  # a row, each touching the next
        levels = segment_levels(["ball"] * 8, boxes, (10, 80))
        assert all(a != b for a, b in pairwise(levels))
        assert segment_levels(["ball", "box"] * 4, boxes, (10, 80)) == [0] * 8  # each touches another class alone
        assert segment_levels(["ball"] * 3, boxes[::3], (10, 80)) == [0] * 3  # apart

    def test_of_the_metadata_or_a_palette(self):
        known = SimpleNamespace(thing_colors=[[1, 2, 3]], stuff_colors=[[4, 5, 6]])
        assert class_color(known, 0, True) == (1, 2, 3) and class_color(known, 0, False) == (4, 5, 6)
        others = {class_color(SimpleNamespace(), category, True) for category in range(10)}
        assert len(others) == 10 and class_color(known, 7, True) in others

    def test_contrast(self):
        assert contrasting((200, 100, 0), np.zeros((3, 3))) == (228, 178, 128)  # half of it, and half of white
        assert contrasting((200, 100, 0), np.full((3, 3), 255)) == (100, 50, 0)


class TestRegions:
    def test_fill_and_contour_by_hand(self):
        image = np.full((40, 40, 3), 100, np.uint8)
        drawn = draw_regions(image, [region(10, 10, 20, 20)])
        assert image.min() == 100  # not changed
        # 0.55 * 100 + 0.45 * (200, 0, 0) = (145, 55, 55), of luminance 82: the contour is half white.
        assert drawn[15, 15].tolist() == [145, 55, 55]
        for place in ((10, 10), (10, 15), (19, 19), (15, 10)):
            assert drawn[place].tolist() == [228, 128, 128]
        outside = np.ones((40, 40), bool)
        outside[10:20, 10:20] = False
        assert (drawn[outside] == 100).all()

    def test_a_narrow_image_has_thin_contours(self):
        """Thickness by the longer side would be 500 pixels here, and take minutes."""
        image = np.zeros((1, 400_000, 3), np.uint8)
        start = time.process_time()
        drawn = draw_regions(image, [region(0, 0, 1, 400_000)])
        assert drawn.shape == image.shape and drawn.any() and time.process_time() - start < 1.0

    def test_small_segments_lie_over_large_ones(self):
        both = [region(8, 8, 12, 12, color=BLUE, name="box"), region(0, 0, 20, 20)]
        drawn = draw_regions(np.zeros((20, 20, 3), np.uint8), both)
        red, _, blue = drawn[10, 10].tolist()
        assert blue == 90 and red == round(0.55 * 90)  # 0.45 * 200 below, 0.45 * 200 above

    def test_a_name_needs_room(self, monkeypatch: pytest.MonkeyPatch):
        [(text, top, left, height, width)] = written([region(20, 20, 120, 220)], (140, 240), monkeypatch)
        assert text == "ball 50%" and top >= 20 and top + height <= 120 and left >= 20 and left + width <= 220
        # Half of the segment is hidden at most: "ball" and its margin has about 17 x 30 pixels.
        height, width = (side + 4 for side in text_size("ball", 11))
        side = int(np.ceil((2 * height * width) ** 0.5))
        assert [one[0] for one in written([region(50, 50, 50 + side, 50 + side)], (140, 240), monkeypatch)] == ["ball"]
        assert not written([region(50, 50, 49 + side, 49 + side)], (140, 240), monkeypatch)
        assert not written([region(50, 10, 54, 230)], (140, 240), monkeypatch)  # large enough, but thin
        assert not written([region(0, 0, 10, 240)], (10, 240), monkeypatch)  # taller than the image

    def test_stuff_and_ground_truth_have_no_score(self, monkeypatch: pytest.MonkeyPatch):
        one = region(0, 0, 100, 200, score=None)
        assert [x[0] for x in written([one], (100, 200), monkeypatch)] == ["ball"]
        assert [x[0] for x in written([one._replace(is_thing=False, score=0.4)], (100, 200), monkeypatch)] == ["ball"]

    def test_names_do_not_overlap(self, monkeypatch: pytest.MonkeyPatch):
        """Forty segments on top of one another and side by side."""
        generator = np.random.default_rng(0)
        corners = generator.integers(0, 150, (40, 2)).tolist()
        texts = written([region(y, x, y + 60, x + 90) for y, x in corners], (240, 260), monkeypatch)
        assert 5 < len(texts) < 40
        is_taken = np.zeros((240, 260), bool)
        for _, top, left, height, width in texts:
            box = np.s_[top : top + height, left : left + width]
            assert not is_taken[box].any() and is_taken[box].shape == (height, width)
            is_taken[box] = True

    def test_an_empty_segment_is_nothing(self):
        image = np.full((4, 4, 3), 9, np.uint8)
        nothing = Region("ball", RED, True, 0.5, np.s_[0:0, 0:0], np.zeros((0, 0), bool))
        assert np.array_equal(draw_regions(image, [nothing]), image)

    def test_boxes(self):
        mask = np.zeros((5, 6), bool)
        assert find_box(mask) is None
        mask[1, 2] = mask[3, 4] = True
        assert find_box(mask) == np.s_[1:4, 2:5]


class TestLegend:
    def test_things_are_counted_and_come_first(self):
        regions = [
            region(0, 0, 9, 9, "sky", is_thing=False, color=BLUE),
            region(0, 0, 1, 1, "box"),
            region(0, 0, 2, 2, "ball"),
            region(0, 0, 2, 2, "ball"),
            region(0, 0, 10, 10, "sea", is_thing=False),
        ]
        entries = legend_entries(regions)
        assert [one.text for one in entries] == ["ball x 2", "box x 1", "sea", "sky"]
        assert entries[-1].color == BLUE
        assert legend_entries([region(0, 0, 1, 1, "x" * 99)])[0].text == f"{'x' * 39}… x 1"

    def test_lines_hold_what_fits(self):
        entries = [LegendEntry(f"class {i}", (250, i, 0)) for i in range(9)]
        wide, narrow = draw_legend(entries, 2000, 12), draw_legend(entries, 100, 12)
        assert wide.shape[1] == 2000 and narrow.shape[1] == 100
        # A line takes the height of letters and 4 pixels; there are 6 around all of them.
        line = text_size("", 12)[0] + 4
        assert (len(wide), len(narrow)) == (line + 6, 9 * line + 6)
        for i in range(9):
            for legend in (wide, narrow):
                assert (legend == (250, i, 0)).all(axis=-1).sum() == 12 * 12
        assert draw_legend([], 100, 12).shape == (0, 100, 3)

    def test_what_does_not_fit_is_counted(self, monkeypatch: pytest.MonkeyPatch):
        texts = []
        monkeypatch.setattr("psf.output.legend.draw_text", lambda canvas, text, *place: texts.append(text))
        entries = [LegendEntry(f"class {i}", RED) for i in range(9)]
        draw_legend(entries, 200, 12, max_lines=2)
        assert texts[-1] == f"+ {9 - len(texts) + 1} more" and 2 <= len(texts) - 1 < 9
        texts.clear()
        draw_legend(entries, 200, 12, max_lines=9)
        assert texts == [one.text for one in entries]

    def test_below_a_picture(self):
        picture = np.zeros((30, 20, 3), np.uint8)
        drawn = add_legend(picture, [region(0, 0, 9, 9, "a long name")], 12)
        assert drawn.shape[1] > 20 and np.array_equal(drawn[:30, :20], picture)
        assert (drawn[:30, 20:] == 255).all() and drawn[30:].min() < 100
        assert add_legend(picture, [], 12) is picture


def test_text_is_cut_off_at_the_border():
    canvas = np.full((20, 30, 3), 255, np.uint8)
    draw_text(canvas, "a text that is longer", -3, -5, 12)
    assert canvas.min() < 100
    other = canvas.copy()
    draw_text(other, "elsewhere", 40, 0, 12)
    draw_text(other, "elsewhere", -40, 0, 12)
    assert np.array_equal(other, canvas)
    assert text_size("汽车 é $x$", 12)[1] > text_size("é", 12)[1]

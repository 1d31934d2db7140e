"""The sixteen corruptions: shape, seed and severity of each, and some values by hand."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from psf.tools.robustness import CORRUPTIONS, SEVERITIES, corrupt
from psf.tools.robustness.corruptions import brightness, contrast, glass_blur, overwrite, saturate, smear

# Published strengths whose order is not that of the distance: colour is taken away or added; ice gets brighter while
# the image gets darker; glass has fewer rounds at the severities 2 and 4 than at the ones before.
NOT_ORDERED = {"saturate", "frost", "glass_blur"}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Clouds of colour whose amplitudes fall as 1 / frequency, as in photographs; 144 x 192, rather bright."""
    height, width = 144, 192
    rows, columns = np.fft.fftfreq(height)[:, None, None], np.fft.fftfreq(width)[None, :, None]
    frequency = np.hypot(rows * height, columns * width).clip(min=1)
    noise = np.fft.fft2(np.random.default_rng(3).normal(size=(height, width, 3)), axes=(0, 1))
    clouds = np.fft.ifft2(noise / frequency, axes=(0, 1)).real
    return np.clip(150 + 45 * clouds / clouds.std(), 0, 255).astype(np.uint8)


def test_those_of_table_11():
    groups = [one.group for one in CORRUPTIONS.values()]
    assert groups == ["blur"] * 4 + ["noise"] * 4 + ["digital"] * 4 + ["weather"] * 4
    assert all(len(one.settings) == len(SEVERITIES) == 5 for one in CORRUPTIONS.values())


@pytest.mark.parametrize("name", CORRUPTIONS)
class TestEach:
    def test_keeps_form_and_the_image_itself(self, image: np.ndarray, name: str):
        before = image.copy()
        for shape in (image.shape, (33, 50, 3), (2, 3, 3), (1, 1, 3)):
            part = np.ascontiguousarray(image[: shape[0], : shape[1]])
            for severity in (1, 5):
                out = corrupt(part, name, severity, seed=1)
                assert out.shape == shape and out.dtype == np.uint8
        assert np.array_equal(image, before)
        assert corrupt(np.zeros((20, 30, 3), np.uint8), name, 3).shape == (20, 30, 3)  # nothing is divided by 0

    def test_the_seed_decides(self, image: np.ndarray, name: str):
        one, same, other = (corrupt(image, name, 4, seed) for seed in (7, 7, 8))
        assert np.array_equal(one, same)
        is_random = name not in {
            "defocus_blur",
            "gaussian_blur",
            "brightness",
            "contrast",
            "saturate",
            "jpeg_compression",
        }
        assert np.array_equal(one, other) != is_random

    def test_severity_takes_it_further_away(self, image: np.ndarray, name: str):
        distances = []
        for severity in SEVERITIES:
            outs = [corrupt(image, name, severity, seed).astype(int) for seed in range(4)]
            distances.append(float(np.mean([np.square(out - image).mean() for out in outs])))
        assert distances[0] > 0
        if name in NOT_ORDERED:
            assert max(distances[2:]) > distances[0]
        else:
            assert distances == sorted(distances)


class TestByHand:
    def test_hsv(self):
        """Against the standard library's conversion, pixel by pixel."""
        pixels = np.random.default_rng(0).random((5, 6, 3))
        pixels[0, 0], pixels[0, 1], pixels[0, 2] = 0.0, 1.0, 0.4  # black, white, gray
        brighter, richer = brightness(pixels, None, 0.3), saturate(pixels, None, 5, 0.1)
        for place in np.ndindex(5, 6):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixels[place])
            assert brighter[place] == pytest.approx(colorsys.hsv_to_rgb(hue, saturation, min(value + 0.3, 1)))
            wanted = min(5 * saturation + 0.1, 1)
            assert richer[place] == pytest.approx(colorsys.hsv_to_rgb(hue, wanted, value))

    def test_contrast(self):
        pixels = np.array([[[0.0, 0.2, 0.5], [1.0, 0.4, 0.5]]])  # means 0.5, 0.3, 0.5
        np.testing.assert_allclose(contrast(pixels, None, 0.4), [[[0.3, 0.26, 0.5], [0.7, 0.34, 0.5]]])

    def test_shares_of_impulse_noise(self):
        out = corrupt(np.full((200, 200, 3), 128, np.uint8), "impulse_noise", 5)
        assert (out == 0).mean() == pytest.approx(0.135, abs=0.005)  # half of 0.27 each
        assert (out == 255).mean() == pytest.approx(0.135, abs=0.005)

    @pytest.mark.parametrize(("name", "deviation"), [("gaussian_noise", 0.08), ("speckle_noise", 0.15 * 128 / 255)])
    def test_deviation_of_noise(self, name: str, deviation: float):
        out = corrupt(np.full((200, 200, 3), 128, np.uint8), name, 1)
        assert out.std() / 255 == pytest.approx(deviation, rel=0.02)

    def test_motion_looks_along_a_line(self):
        """At 0 degrees a point is seen by the pixels up to 2 * radius to its left, most by itself."""
        point = np.zeros((9, 15))
        point[4, 10] = 1.0
        out = smear(point, radius=2, sigma=1.5, degrees=0)
        weights = np.exp(-(np.arange(5) ** 2) / (2 * 1.5**2))
        np.testing.assert_allclose(out[4, 10:5:-1], weights / weights.sum())
        assert out.sum() == pytest.approx(1)

    @pytest.mark.parametrize("reach", [1, 2, 3, 4])
    @pytest.mark.parametrize("size", [(20, 31), (9, 9), (8, 40), (1, 1)], ids=str)
    def test_glass_overwrites_as_a_loop_does(self, size: tuple[int, int], reach: int):
        """The published loop as Python runs it, with the assignment that reads like a swap."""
        rng = np.random.default_rng(reach)
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        offsets = rng.integers(-reach, reach, (max(size[0] - 2 * reach, 0), max(size[1] - 2 * reach, 0), 2))
        expected = image.copy()
        for row in range(size[0] - reach, reach, -1):
            for column in range(size[1] - reach, reach, -1):
                down, right = offsets[row - reach - 1, column - reach - 1]
                one, other = (row, column), (row + down, column + right)
                expected[one], expected[other] = expected[other], expected[one]
        assert np.array_equal(overwrite(image, offsets, reach), expected)

    def test_glass(self):
        """Whole steps of 1 / 255 between the two smoothings; where nothing differs, nothing changes."""
        gray = np.full((30, 40, 3), 100.6 / 255)
        np.testing.assert_allclose(glass_blur(gray, np.random.default_rng(0), 1.0, 2, 3), 100 / 255)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("rain", 1), "unknown corruption 'rain'"), (("fog", 0), "severity 0"), (("fog", 6), "severity 6")],
)
def test_no_such(arguments: tuple[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        corrupt(np.zeros((4, 4, 3), np.uint8), *arguments)


def test_other_images():
    with pytest.raises(ValueError, match=r"\(4, 4\) of float64"):
        corrupt(np.zeros((4, 4)), "fog", 1)


def test_an_image_that_is_too_large_for_a_jpeg():
    with pytest.raises(ValueError, match="an image has more than 65,500 pixels a side"):
        corrupt(np.zeros((1, 65_501, 3), np.uint8), "jpeg_compression", 1)

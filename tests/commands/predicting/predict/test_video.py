"""`psf predict` on a video file and a camera."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psf.output import TimedFrame, VideoFile, VideoWriter

pytest.importorskip("av")


def write_video(path: Path, images: list[np.ndarray]) -> Path:
    with VideoWriter(path, Fraction(10)) as writer:
        for index, image in enumerate(images):
            writer.write(TimedFrame(image, index / 10))
    return path


def read_video(path: Path) -> tuple[list[TimedFrame], Fraction]:
    with VideoFile(path) as frames:
        return list(frames), frames.rate


def is_blue_on_top(image: np.ndarray) -> bool:
    red, _, blue = image[2:8, 60:].mean(axis=(0, 1))
    return blue > 200 > 100 > red


@pytest.fixture
def video(tmp_path, scene) -> Path:
    """Five frames of a box that moves to the right."""
    return write_video(tmp_path / "clip.mp4", [scene(left=20 + 4 * index) for index in range(5)])


def test_video_keeps_length_rate_and_size(run, video, out, capfd):
    assert run("--video-input", video, "--output", out) == 0
    frames, rate = read_video(out / "clip.mp4")
    assert len(frames) == 5 and rate == 10 and frames[0].image_rgb.shape == (60, 90, 3)
    assert np.allclose([frame.seconds for frame in frames], [0, 0.1, 0.2, 0.3, 0.4], atol=1e-3)
    source, _ = read_video(video)
    assert np.abs(frames[2].image_rgb.astype(int) - source[2].image_rgb).max() > 60  # something is drawn on it
    assert is_blue_on_top(frames[2].image_rgb)
    assert "5 frames written" in capfd.readouterr().out


def test_video_to_a_named_file_with_a_limit(run, video, tmp_path):
    target = tmp_path / "new" / "drawn.mkv"
    assert run("--video-input", video, "--output", target, "--max-frames", 2) == 0
    assert len(read_video(target)[0]) == 2


def test_damaged_video_leaves_what_came_before(run, tmp_path, out, caplog):
    noise = np.random.default_rng(0).integers(0, 256, (8, 60, 90, 3), dtype=np.uint8)
    video = write_video(tmp_path / "clip.mp4", list(noise))
    data = bytearray(video.read_bytes())
    middle = slice(len(data) // 2, len(data) * 3 // 4)
    data[middle] = bytes(len(data[middle]))
    video.write_bytes(data)
    assert run("--video-input", video, "--output", out) == 1
    assert "clip.mp4: cannot be decoded further" in caplog.records[-1].getMessage()
    assert 1 <= len(read_video(out / "clip.mp4")[0]) < 8


def test_video_that_cannot_be_read_or_written(run, video, tmp_path, out, capsys):
    before = video.read_bytes()
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    for source, target, message in (
        (tmp_path / "none.mp4", out, "none.mp4"),
        (text, out, "text.mp4"),
        (video, video, "would overwrite"),
        (video, video.parent, "is in the output folder"),
        (video, out / "drawn.txt", "drawn.txt"),
    ):
        assert run("--video-input", source, "--output", target) == 2
        assert message in capsys.readouterr().err
    assert video.read_bytes() == before


def test_no_camera(run, out, capsys):
    assert run("--webcam", 99, "--output", out) == 2
    assert "camera 99" in capsys.readouterr().err


@pytest.fixture
def fake_cameras(monkeypatch, scene) -> None:
    """Three BGR frames; then camera 0 ends, and at camera 1 the user presses Ctrl-C. Camera 2 gives no frame."""

    class FakeCapture:
        def __init__(self, index):
            self.index, self.num_left = index, 0 if index == 2 else 3

        def isOpened(self):
            return True

        def read(self):
            self.num_left -= 1
            if self.num_left < 0 and self.index == 1:
                raise KeyboardInterrupt
            return self.num_left >= 0, np.ascontiguousarray(scene()[:, :, ::-1])

        def release(self):
            pass

    monkeypatch.setattr("cv2.VideoCapture", FakeCapture)


@pytest.mark.parametrize(("arguments", "name"), [(["--webcam"], "camera0.mp4"), (["--webcam", 1], "camera1.mp4")])
def test_webcam_is_recorded(run, fake_cameras, out, arguments, name):
    assert run(*arguments, "--output", out) == 0
    frames, _ = read_video(out / name)
    assert len(frames) == 3 and frames[0].seconds < frames[2].seconds
    assert is_blue_on_top(frames[0].image_rgb)


def test_webcam_without_a_picture(run, fake_cameras, out, capsys):
    assert run("--webcam", 2, "--output", out) == 2
    assert "no frame" in capsys.readouterr().err


def test_a_model_of_bands_takes_no_video(run, video, out, capsys):
    assert run("--video-input", video, "--output", out, "--opts", "INPUT.FORMAT", "BANDS") == 2
    assert "INPUT.FORMAT is 'BANDS'" in capsys.readouterr().err and not list(out.glob("*"))


@pytest.mark.parametrize("source", [["--video-input", "clip.mp4"], ["--webcam"]])
def test_files_of_an_image_are_not_of_a_video(run, out, capsys, source):
    assert run(*source, "--output", out, "--save", "json") == 2
    assert "--save needs --input" in capsys.readouterr().err and not out.exists()


def test_classes_named_like_formulas_in_a_video(run, video, out, metadata, monkeypatch):
    monkeypatch.setitem(vars(metadata), "thing_classes", [r"$\frac{$"] * 2)
    monkeypatch.setitem(vars(metadata), "stuff_classes", [r"$\frac{$"] * 2)
    assert run("--video-input", video, "--output", out, "--max-frames", 1) == 0
    assert len(read_video(out / "clip.mp4")[0]) == 1


def test_a_pipe_is_no_video(run, tmp_path, out, capsys):
    """Reading one would wait for ever."""
    os.mkfifo(tmp_path / "pipe.mp4")
    assert run("--video-input", tmp_path / "pipe.mp4", "--output", out) == 2
    assert "pipe.mp4: a pipe" in capsys.readouterr().err


def test_a_wrong_suffix_is_found_before_the_model_is_built(run, video, out, capsys, monkeypatch):
    monkeypatch.setattr("psf.commands.predicting.predict.video.build_predictor", lambda args: pytest.fail("built"))
    assert run("--video-input", video, "--output", out / "a.gif") == 2
    assert "a.gif: '.gif' is not the suffix of a container for H.264" in capsys.readouterr().err
    assert not list(out.glob("*"))


def test_frames_that_are_too_large(run, video, out, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # restored afterwards
    assert run("--video-input", video, "--output", out, "--opts", "INPUT.PSF_MAX_PIXELS", 5399) == 2
    assert "raise INPUT.PSF_MAX_PIXELS" in capsys.readouterr().err
    assert run("--video-input", video, "--output", out, "--opts", "INPUT.PSF_MAX_PIXELS", 5400) == 0

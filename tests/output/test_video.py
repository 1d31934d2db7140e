"""Video files: what is written is read back, whatever the size and the times; files that are no videos say so."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from psf.errors import UserError
from psf.output import Camera, TimedFrame, VideoFile, VideoWriter

av = pytest.importorskip("av")


def colour(rgb: tuple[int, int, int], height: int = 48, width: int = 64) -> np.ndarray:
    return np.broadcast_to(np.array(rgb, np.uint8), (height, width, 3)).copy()


def round_trip(path: Path, frames: list[TimedFrame], rate: Fraction = Fraction(25)) -> list[TimedFrame]:
    with VideoWriter(path, rate) as writer:
        for frame in frames:
            writer.write(frame)
    with VideoFile(path) as video:
        return list(video)


def test_writes_what_every_player_plays(tmp_path):
    rate = Fraction(30000, 1001)
    round_trip(tmp_path / "a.mp4", [TimedFrame(colour((200, 30, 60)), float(i / rate)) for i in range(7)], rate)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.frames, stream.average_rate) == (7, rate)
    with VideoFile(tmp_path / "a.mp4") as video:
        assert (video.num_frames, video.rate) == (7, rate)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "mov"])
def test_colours_and_times_come_back(tmp_path, ending):
    colours = [(200, 30, 60), (20, 180, 40), (10, 20, 220)]
    times = [0.0, 0.2, 2.0]  # unequal steps, as phones and slow cameras have them
    frames = round_trip(tmp_path / f"a.{ending}", [TimedFrame(colour(c), t) for c, t in zip(colours, times)])
    assert np.allclose([frame.seconds for frame in frames], times, atol=2e-3)
    for frame, rgb in zip(frames, colours, strict=True):
        assert np.abs(frame.image_rgb.mean(axis=(0, 1)) - rgb).max() < 5


@pytest.mark.parametrize("size", [(48, 64), (33, 47), (33, 48), (1, 1), (17, 400)])
def test_odd_sides_grow_by_one(tmp_path, size):
    (frame,) = round_trip(tmp_path / "a.mp4", [TimedFrame(colour((200, 30, 60), *size), 0.0)])
    height, width, _ = frame.image_rgb.shape
    assert (height, width) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert np.abs(frame.image_rgb.astype(int) - (200, 30, 60)).max() < 12  # the new row is a copy, not black


def test_times_that_repeat_or_run_back_are_taken(tmp_path):
    frames = round_trip(tmp_path / "a.mp4", [TimedFrame(colour((0, 0, 0)), t) for t in (0.0, 0.1, 0.1, 0.05, 0.2)])
    assert len(frames) == 5


def test_a_late_start_is_time_zero(tmp_path):
    frames = round_trip(tmp_path / "a.mp4", [TimedFrame(colour((0, 0, 0)), t) for t in (5.0, 5.5)])
    assert np.allclose([frame.seconds for frame in frames], [0, 0.5], atol=1e-3)


def test_without_frames_there_is_no_file(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", Fraction(25)):
        pass
    assert not list(tmp_path.iterdir())


def test_an_exception_leaves_a_playable_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4", Fraction(25)) as writer:
        writer.write(TimedFrame(colour((0, 0, 0)), 0.0))
        raise KeyboardInterrupt
    with VideoFile(tmp_path / "a.mp4") as video:
        assert len(list(video)) == 1


def test_files_without_times_are_played_at_their_rate(tmp_path):
    with av.open(str(tmp_path / "a.h264"), "w") as container:
        stream = container.add_stream("h264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(colour((0, 0, 0)), format="rgb24")))
        container.mux(stream.encode(None))
    with VideoFile(tmp_path / "a.h264") as video:
        assert np.allclose([frame.seconds for frame in video], np.arange(3) / 25)


@pytest.mark.skipif(not hasattr(av.VideoStream, "set_display_rotation"), reason="this PyAV cannot write rotated videos")
# The corner (row, column) where the marked upper left one is seen after a turn, counter-clockwise.
@pytest.mark.parametrize(("degrees", "corner"), [(0, (0, 0)), (90, (-1, 0)), (180, (-1, -1)), (-90, (0, -1))])
def test_frames_are_upright(tmp_path, degrees, corner):
    image = colour((0, 0, 0))
    image[:16, :16] = 255
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("h264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.set_display_rotation(degrees)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    with VideoFile(tmp_path / "a.mp4") as video:
        (frame,) = video
    assert frame.image_rgb.shape[:2] == ((64, 48) if degrees % 180 else (48, 64))
    bright = [(row, column) for row in (0, -1) for column in (0, -1) if frame.image_rgb[row, column].min() > 200]
    assert bright == [corner]


@pytest.mark.parametrize("content", [b"", b"no video", None])
def test_what_is_no_video_is_named(tmp_path, content):
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.mp4: cannot be opened"):
        VideoFile(path)


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(UserError, match=r"a\.wav: contains no video"):
        VideoFile(tmp_path / "a.wav")


@pytest.mark.parametrize("name", ["a.txt", "a.gif", "a", "no_folder/a.mp4"])
def test_where_no_video_can_be_written(tmp_path, name):
    with pytest.raises(UserError, match=f"{name}: "), VideoWriter(tmp_path / name, Fraction(25)) as writer:
        writer.write(TimedFrame(colour((0, 0, 0)), 0.0))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_full_disk_is_an_error(tmp_path):
    (tmp_path / "a.mp4").symlink_to("/dev/full")
    noise = np.random.default_rng(0).integers(0, 256, (30, 120, 160, 3), dtype=np.uint8)
    with (
        pytest.raises(UserError, match=r"a\.mp4: cannot be written"),
        VideoWriter(tmp_path / "a.mp4", Fraction(25)) as w,
    ):
        for index, image in enumerate(noise):
            w.write(TimedFrame(image, index / 25))


def test_without_pyav_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for build in (lambda: VideoFile(tmp_path / "a.mp4"), lambda: VideoWriter(tmp_path / "a.mp4", Fraction(25))):
        with pytest.raises(UserError, match=r"panoptic-segformer\[video\]"):
            build()


def test_camera_that_is_not_there():
    with pytest.raises(UserError, match="camera 99"):
        Camera(99)

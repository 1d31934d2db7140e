"""Video files: what is written is read back, whatever the size and the times; files that are no videos say so."""

from __future__ import annotations

import struct
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from psf.errors import UserError
from psf.output import Camera, TimedFrame, VideoFile, VideoWriter
from psf.output.video import Clock

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


def encode(
    path: Path,
    images: list[np.ndarray],
    *,
    rate: int = 25,
    pixel_aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    title: str = "",
) -> Path:
    """A file of other software: constant rate, any container."""
    with av.open(str(path), "w") as container:
        container.metadata["title"] = title
        stream = container.add_stream("h264", rate=rate, options=options or {"bf": "0"})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


# (a, b, c, d): the pixel (x, y) is shown at (a x + c y, b x + d y), up to a shift.
@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((1, 0, 0, 1), lambda image: image),
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),  # x -> y, y -> -x: clockwise
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, -1, 1, 0), np.rot90),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda image: np.rot90(image, 2).transpose(1, 0, 2)),
    ],
)
def test_frames_are_upright(tmp_path, matrix, shown):
    image = colour((0, 0, 0))
    image[:24, :32], image[:24, 32:], image[24:, :32] = (250, 20, 20), (20, 250, 20), (20, 20, 250)
    path = encode(tmp_path / "a.mp4", [image])
    # The track header of an .mp4 stores the matrix as 9 numbers in 16.16 and 2.30; encoders write the identity.
    one, content = 1 << 16, path.read_bytes()
    identity = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    at = content.index(identity, content.index(b"tkhd"))
    a, b, c, d = (number * one for number in matrix)
    changed = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:at] + changed + content[at + len(changed) :])
    with VideoFile(path) as video:
        (frame,) = video
    expected = shown(image)
    assert frame.image_rgb.shape == expected.shape
    corners = np.ix_((4, -5), (4, -5))
    assert np.abs(frame.image_rgb[corners].astype(int) - expected[corners]).max() < 25


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_titles_in_any_encoding(tmp_path, suffix):
    path = encode(tmp_path / f"a.{suffix}", [colour((0, 0, 0))], title="Strasse")
    path.write_bytes(path.read_bytes().replace(b"Strasse", b"Stra\xdfe!"))  # Latin-1
    with VideoFile(path) as video:
        assert len(list(video)) == 1


@pytest.mark.parametrize(("aspect", "width"), [((2, 1), 128), ((3, 4), 48), ((12, 1), 64)])
def test_pixels_become_square(tmp_path, aspect, width, caplog):
    image = colour((0, 0, 0))
    image[:, :32] = 250
    path = encode(tmp_path / "a.mp4", [image], pixel_aspect=Fraction(*aspect))
    with VideoFile(path) as video:
        (frame,) = video
    assert frame.image_rgb.shape == (48, width, 3)
    assert frame.image_rgb[:, : width // 2 - 4].min() > 200 and frame.image_rgb[:, width // 2 + 4 :].max() < 50
    assert ("pixel aspect ratio of 12" in caplog.text) == (aspect == (12, 1))


def test_joined_recordings_follow_each_other(tmp_path):
    """Two recordings of 10 frames at 10 a second, each with times from its own start."""
    parts = [encode(tmp_path / f"{i}.ts", [colour((0, 0, 0))] * 10, rate=10).read_bytes() for i in range(2)]
    (tmp_path / "a.ts").write_bytes(b"".join(parts))
    with VideoFile(tmp_path / "a.ts") as video:
        seconds = [frame.seconds for frame in video]
    assert np.allclose(seconds, np.arange(20) / 10, atol=1e-3)


@pytest.mark.parametrize(
    ("in_file", "expected"),
    [
        ([5, 5.1, 5.3], [0, 0.1, 0.3]),
        ([None, None, 7, 7.1], [0, 0.1, 0.2, 0.3]),
        ([1, 1.1, None, None, 1.4], [0, 0.1, 0.2, 0.3, 0.4]),
        ([1, 1.1, None, None, 1.2, 1.5], [0, 0.1, 0.2, 0.3, 0.3, 0.5]),  # the guesses were too late
        ([2, 2.1, 2.9, 0, 0.1, None], [0, 0.1, 0.9, 1.0, 1.1, 1.2]),  # another recording
        ([2, 2.3, 0, 0.3, 0], [0, 0.3, 0.4, 0.7, 0.8]),  # and a third
        ([0, 0.2, 0.1, 0.3, 0.4], [0, 0.2, 0.2, 0.3, 0.4]),  # the wrong order: no other recording
        ([0, 0.1, 30.0, 30.1], [0, 0.1, 0.2, 0.3]),  # another recording that starts later
        ([0, 0.1, 9.0], [0, 0.1, 9.0]),  # a slow camera
    ],
)
def test_times_by_hand(in_file, expected):
    clock = Clock(0.1, max_gap=10.0)
    assert [clock.seconds(time) for time in in_file] == pytest.approx(expected)


def test_long_steps_are_kept_where_files_are_not_joined(tmp_path):
    frames = round_trip(tmp_path / "a.mkv", [TimedFrame(colour((0, 0, 0)), t) for t in (0.0, 60.0)])
    assert [frame.seconds for frame in frames] == pytest.approx([0, 60], abs=2e-3)


@pytest.mark.parametrize("times", [np.arange(20) / 10, [0.0, 0.1, 0.1, 0.12, 0.5]])
def test_containers_of_a_constant_rate(tmp_path, times):
    """.avi has no times: frames get the nearest free multiple of 1/10 s."""
    with VideoWriter(tmp_path / "a.avi", Fraction(10)) as writer:
        for seconds in times:
            writer.write(TimedFrame(colour((0, 0, 0)), seconds))
    with VideoFile(tmp_path / "a.avi") as video:
        assert video.rate == 10
        expected = times if len(times) == 20 else [0, 0.1, 0.2, 0.3, 0.5]
        assert [frame.seconds for frame in video] == pytest.approx(list(expected))


@pytest.mark.parametrize("num_b_frames", [0, 2])
def test_avi_of_other_software(tmp_path, num_b_frames):
    pictures = [colour((20 * i, 20 * i, 20 * i)) for i in range(12)]
    path = encode(tmp_path / "a.avi", pictures, rate=10, options={"bf": str(num_b_frames)})
    with VideoFile(path) as video:
        frames = list(video)
    assert [frame.seconds for frame in frames] == pytest.approx(list(np.arange(12) / 10))
    assert [round(float(frame.image_rgb.mean()) / 20) for frame in frames] == list(range(12))


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "ts"])
def test_repeated_times_in_any_container(tmp_path, ending):
    frames = round_trip(tmp_path / f"a.{ending}", [TimedFrame(colour((0, 0, 0)), t) for t in (0.0, 0.1, 0.1, 0.1, 0.2)])
    assert len(frames) == 5


def test_frames_of_another_size_are_resized(tmp_path):
    pictures = [colour((200, 30, 60), *size) for size in ((48, 64), (32, 96), (47, 63))]
    frames = round_trip(tmp_path / "a.mp4", [TimedFrame(image, i / 25) for i, image in enumerate(pictures)])
    assert [frame.image_rgb.shape for frame in frames] == [(48, 64, 3)] * 3


@pytest.mark.parametrize("content", [b"", b"no video", None])
def test_what_is_no_video_is_named(tmp_path, content):
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.mp4: cannot be opened"):
        VideoFile(path)


def test_a_stream_without_a_decoder(tmp_path):
    path = tmp_path / "a.mp4"
    round_trip(path, [TimedFrame(colour((200, 30, 60)), i / 25) for i in range(2)])
    content = path.read_bytes()
    assert content.count(b"avc1") >= 1
    path.write_bytes(content.replace(b"avc1", b"zzzz"))
    with pytest.raises(UserError, match=r"a\.mp4: its video stream is in a format that .* does not know"):
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

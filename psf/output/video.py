"""Read frames with their times from a video file or a camera, and write videos in a common format.

Video files need PyAV (`pip install panoptic-segformer[video]`), imported on first use; cameras need OpenCV.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from psf.errors import UserError

__all__ = ["Camera", "TimedFrame", "VideoFile", "VideoWriter"]

_DEFAULT_RATE = Fraction(25)  # frames per second, if the source has no rate
_TICK = Fraction(1, 90_000)  # seconds; the usual unit of time in video files
_BT709, _LIMITED_RANGE = 1, 1  # FFmpeg's numbers of the usual colour space, and of luma in 16..235


class TimedFrame(NamedTuple):
    """One frame: (H, W, 3) uint8 in RGB order, and its time in seconds since the first."""

    image_rgb: np.ndarray
    seconds: float


class VideoFile:
    """The frames of a video file, rotated as the file specifies; a context manager to iterate over once.

    Attributes:
        rate: frames per second, on average.
        num_frames: from the file's header; None if it is not there.

    Raises:
        ImportError: without PyAV.
        UserError: if the file is not a video; while iterating, at the first damaged frame.
    """

    def __init__(self, path: str | Path) -> None:
        self._av = _import_av()
        self._path = path
        try:
            self._container = self._av.open(str(path))
        except self._av.FFmpegError as error:
            raise UserError(f"{path}: cannot be opened as a video ({error})") from error
        if not self._container.streams.video:
            self._container.close()
            raise UserError(f"{path}: contains no video stream")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.rate: Fraction = self._stream.average_rate or self._stream.guessed_rate or _DEFAULT_RATE
        self.num_frames: int | None = self._stream.frames or None

    def __iter__(self) -> Iterator[TimedFrame]:
        start = None
        try:
            for index, frame in enumerate(self._container.decode(self._stream)):
                seconds = float(index / self.rate) if frame.time is None else frame.time
                start = seconds if start is None else start
                image = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                yield TimedFrame(np.ascontiguousarray(image), seconds - start)
        except self._av.FFmpegError as error:
            raise UserError(f"{self._path}: cannot be decoded further ({error})") from error

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()


class Camera:
    """The frames of a camera until it stops; a context manager with the attributes of `VideoFile`.

    Args:
        index: OpenCV's number of the camera, from 0.

    Raises:
        UserError: if the camera does not exist or cannot be used.
    """

    def __init__(self, index: int) -> None:
        import cv2

        self._capture = cv2.VideoCapture(index)
        if not self._capture.isOpened():
            raise UserError(f"camera {index} cannot be opened: it is not connected, or access is denied")
        self.rate = _DEFAULT_RATE
        self.num_frames: int | None = None

    def __iter__(self) -> Iterator[TimedFrame]:
        start = time.monotonic()
        while True:
            is_read, image_bgr = self._capture.read()
            if not is_read:
                return
            yield TimedFrame(np.ascontiguousarray(image_bgr[:, :, ::-1]), time.monotonic() - start)

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()


class VideoWriter:
    """Writes frames as H.264, yuv420p; a context manager that leaves a playable file, also after an error.

    yuv420p needs even sides: an odd side gets one more row or column, a copy of the last. Without frames, no file is
    written.

    Args:
        path: the file; its suffix determines the container (.mp4, .mkv, .mov).
        rate: nominal frames per second; each frame is shown at its own time.

    Raises:
        ImportError: without PyAV.
        UserError: at the first frame, if the suffix is not that of a container for H.264.
        OSError: if the file cannot be written.
    """

    def __init__(self, path: str | Path, rate: Fraction) -> None:
        self._av = _import_av()
        self._path = path
        self._rate = rate
        self._container: Any = None
        self._stream: Any = None
        self._last_tick = -1

    def write(self, frame: TimedFrame) -> None:
        """Add a frame; all frames must have the same size."""
        height, width = frame.image_rgb.shape[:2]
        even = np.pad(frame.image_rgb, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._container is None:
            self._open(*even.shape[:2])
        picture = self._av.VideoFrame.from_ndarray(even, format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709")
        # Some files repeat times; encoders refuse repeated times.
        self._last_tick = max(self._last_tick + 1, round(frame.seconds / _TICK))
        picture.pts, picture.time_base = self._last_tick, _TICK
        with self._writing():
            self._container.mux(self._stream.encode(picture))

    def _open(self, height: int, width: int) -> None:
        with self._writing():
            try:
                container = self._av.open(str(self._path), "w")
                stream = container.add_stream("h264", rate=self._rate)
            except ValueError as error:
                raise UserError(
                    f"{self._path}: this suffix is not that of a container for H.264 video ({error})"
                ) from error
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            codec = stream.codec_context
            codec.time_base = _TICK
            # Without these, players guess the colour space from the picture size, and colours shift.
            codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
            codec.color_range = _LIMITED_RANGE
            container.start_encoding()
        self._container, self._stream = container, stream

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except self._av.FFmpegError as error:
            raise UserError(f"{self._path}: cannot be written ({error})") from error

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._container is not None:
            with self._writing():
                self._container.mux(self._stream.encode(None))
                self._container.close()


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise UserError("video files need PyAV: pip install panoptic-segformer[video]") from error
    return av

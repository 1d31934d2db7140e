"""Read frames with their times from a video file or a camera, and write videos in a common format.

Video files need PyAV (`pip install panoptic-segformer[video]`), imported on first use; cameras need OpenCV.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from psf.data.files import check_regular
from psf.data.images import check_pixels
from psf.errors import UserError

__all__ = ["Camera", "TimedFrame", "VideoFile", "VideoWriter"]

logger = logging.getLogger("psf.video")

_DEFAULT_RATE = Fraction(25)  # frames per second, if the source has no rate
_TICK = Fraction(1, 90_000)  # seconds; the usual unit of time in video files
_JOINS_ARE_USUAL, _HAS_TIMES = 0x200, 0x400  # FFmpeg's flags of formats, AVFMT_TS_DISCONT and AVFMT_VARIABLE_FPS
_MAX_PIXEL_ASPECT = 8  # real pixels are at most about twice as wide as high; more is a damaged header
_MAX_GAP = 10.0  # seconds, in formats where joined recordings are usual; FFmpeg's threshold
_BT709, _LIMITED_RANGE = 1, 1  # FFmpeg's numbers of the usual colour space, and of luma in 16..235


class TimedFrame(NamedTuple):
    """One frame: (H, W, 3) uint8 in RGB order, and its time in seconds since the first."""

    image_rgb: np.ndarray
    seconds: float


class VideoFile:
    """The frames of a video file as players show them; a context manager to iterate over once.

    Frames are rotated and mirrored by the file's display matrix, and widened or narrowed to square pixels. Times never
    decrease: where they start again (joined recordings), the next frame follows the last one by 1 / `rate`.

    Attributes:
        rate: frames per second, on average.
        num_frames: from the file's header; None if it is not there.

    Raises:
        ImportError: without PyAV.
        UserError: if the file is not a video; while iterating, at the first frame that is damaged or larger than
            INPUT.PSF_MAX_PIXELS.
    """

    def __init__(self, path: str | Path) -> None:
        self._av = _import_av()
        self._path = path
        check_regular(path)
        try:
            self._container = self._av.open(str(path), metadata_errors="replace")
        except self._av.FFmpegError as error:
            raise UserError(f"{path}: cannot be opened as a video ({error})") from error
        if not self._container.streams.video:
            self._container.close()
            raise UserError(f"{path}: contains no video stream")
        self._stream = self._container.streams.video[0]
        if self._stream.codec_context is None:
            self._container.close()
            raise UserError(f"{path}: its video stream is in a format that this build of FFmpeg does not know")
        self._stream.thread_type = "AUTO"
        self.rate: Fraction = self._stream.average_rate or self._stream.guessed_rate or _DEFAULT_RATE
        self.num_frames: int | None = self._stream.frames or None
        self._pixel_aspect = self._read_pixel_aspect()

    def _read_pixel_aspect(self) -> Fraction:
        """Width of a pixel divided by its height."""
        aspect: Fraction = self._stream.sample_aspect_ratio or Fraction(1)
        if not Fraction(1, _MAX_PIXEL_ASPECT) <= aspect <= _MAX_PIXEL_ASPECT:
            logger.warning("%s: ignoring a pixel aspect ratio of %s", self._path, aspect)
            return Fraction(1)
        return aspect

    def __iter__(self) -> Iterator[TimedFrame]:
        check_pixels(str(self._path), self._stream.height, self._stream.width)
        has_joins = int(self._container.format.flags) & _JOINS_ARE_USUAL
        clock = Clock(float(1 / self.rate), _MAX_GAP if has_joins else math.inf)
        try:
            for frame in self._container.decode(self._stream):
                yield TimedFrame(self._upright(frame), clock.seconds(self._time_in_file(frame)))
        except self._av.FFmpegError as error:
            raise UserError(f"{self._path}: cannot be decoded further ({error})") from error

    def _time_in_file(self, frame: Any) -> float | None:
        if self._container.format.name != "avi":
            time: float | None = frame.time
            return time
        # .avi stores when frames are decoded; FFmpeg numbers frames that are shown in another order wrongly.
        return None if frame.dts is None else float(frame.dts * frame.time_base)

    def _upright(self, frame: Any) -> np.ndarray:
        """The pixels of a frame, (H, W, 3), as players show them."""
        width = max(1, round(frame.width * self._pixel_aspect))
        check_pixels(f"{self._path}: a frame", frame.height, width)
        image = frame.reformat(width=width, format="rgb24").to_ndarray()
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return np.ascontiguousarray(image)
        # A pixel (x, y) is shown at (a x + c y, b x + d y), up to a shift.
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(int)
        if abs(b) + abs(c) > abs(a) + abs(d):  # x and y are exchanged
            image, a, d = image.transpose(1, 0, 2), c, b
        return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()


class Clock:
    """Times of frames since the first, which never decrease, from the times in a file, which may.

    Args:
        length: seconds from a frame to the next, where the file does not tell.
        max_gap: a longer step is a join of two recordings.
    """

    def __init__(self, length: float, max_gap: float) -> None:
        self._length = length
        self._max_gap = max_gap
        self._last = -length
        self._last_in_file: float | None = None
        self._offset = 0.0

    def seconds(self, in_file: float | None) -> float:
        """The time of the next frame, which the file shows at `in_file`; None: the file does not tell."""
        following = self._last + self._length
        if in_file is None:
            self._last = following
            return following
        if self._is_join(in_file):
            self._offset = following - in_file
        self._last_in_file = in_file
        self._last = max(self._last, in_file + self._offset)
        return self._last

    def _is_join(self, in_file: float) -> bool:
        if self._last_in_file is None:
            return True
        step = in_file - self._last_in_file
        # Frames that come a little too early are in the wrong order, which is no new recording.
        return step < -2.5 * self._length or step > self._max_gap


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

    yuv420p needs even sides: an odd side gets one more row or column, a copy of the last. Frames of another size are
    resized to that of the first. Without frames, no file is written.

    Args:
        path: the file; its suffix determines the container (.mp4, .mkv, .mov).
        rate: nominal frames per second. Each frame is shown at its own time; in containers of a constant rate (.avi),
            at the nearest multiple of 1 / `rate` that is free.

    Raises:
        ImportError: without PyAV.
        UserError: if the suffix is not that of a container for H.264, or the file cannot be written.
    """

    def __init__(self, path: str | Path, rate: Fraction) -> None:
        self._av = _import_av()
        self._path = path
        self._rate = rate
        self._container: Any = None
        self._stream: Any = None
        self._tick = _TICK  # seconds
        self._last_tick = -1
        with tempfile.TemporaryDirectory() as folder:  # a wrong suffix is found before any work
            self._new_container(Path(folder, "probe").with_suffix(Path(path).suffix))[0].close()

    def write(self, frame: TimedFrame) -> None:
        """Add a frame."""
        height, width = frame.image_rgb.shape[:2]
        even = np.pad(frame.image_rgb, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._container is None:
            self._open(*even.shape[:2])
        picture = self._av.VideoFrame.from_ndarray(even, format="rgb24")
        picture = picture.reformat(self._stream.width, self._stream.height, "yuv420p", dst_colorspace="ITU709")
        # Some files repeat times; encoders refuse repeated times.
        self._last_tick = max(self._last_tick + 1, round(frame.seconds / self._tick))
        picture.pts, picture.time_base = self._last_tick, self._tick
        with self._writing():
            self._container.mux(self._stream.encode(picture))

    def _open(self, height: int, width: int) -> None:
        with self._writing():
            container, stream = self._new_container(self._path)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            codec = stream.codec_context
            if not int(container.format.flags) & _HAS_TIMES:
                self._tick = 1 / self._rate
                codec.options = {"bf": "0"}  # such containers store no order of display
            codec.time_base = self._tick
            # Without these, players guess the colour space from the picture size, and colours shift.
            codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
            codec.color_range = _LIMITED_RANGE
            container.start_encoding()
        self._container, self._stream = container, stream

    def _new_container(self, path: str | Path) -> tuple[Any, Any]:
        """A container at a path, and its stream."""
        try:
            container = self._av.open(str(path), "w")
            return container, container.add_stream("h264", rate=self._rate)
        except ValueError as error:
            suffix = Path(self._path).suffix
            raise UserError(
                f"{self._path}: {suffix!r} is not the suffix of a container for H.264 video ({error}); use .mp4, .mkv "
                "or .mov"
            ) from error

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

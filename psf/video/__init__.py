"""Moving pictures: frames in and out of files, and from a camera."""

from psf.video.frames import Camera, TimedFrame, VideoFile, VideoWriter

__all__ = ["Camera", "TimedFrame", "VideoFile", "VideoWriter"]

"""Image files of any common format, and what other files are."""

from psf.data.images.reading import (
    as_image_array,
    as_picture,
    check_pixels,
    convert_image,
    image_bands,
    image_size,
    image_suffixes,
    in_format,
    is_deep,
    is_turned,
    limit_pixels,
    load_array,
    open_image,
    opencv_bands,
    read_image,
    read_picture,
)

__all__ = [
    "as_image_array",
    "as_picture",
    "check_pixels",
    "convert_image",
    "image_bands",
    "image_size",
    "image_suffixes",
    "in_format",
    "is_deep",
    "is_turned",
    "limit_pixels",
    "load_array",
    "open_image",
    "opencv_bands",
    "read_image",
    "read_picture",
]

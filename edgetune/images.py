"""
Bytes to a checked, upright, 8-bit RGB image, and that image to the model's input.

This is the only decode and the only resize in the program: the inbox, serving and training all use it, so what a
model is trained on and what it is asked about cannot differ. Nothing here trusts its input.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# The plugins are imported by name: with the formats given to `Image.open`, Pillow then never loads its forty others.
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
    features,
)

from edgetune.errors import ImageError
from edgetune.types import Preprocess
from edgetune.units import show

FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        BmpImagePlugin.BmpImageFile,
        GifImagePlugin.GifImageFile,
        TiffImagePlugin.TiffImageFile,
    )
)

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WEBP_SIDE_MAX = 16383  # of the format
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What is refused before it is decoded."""

    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000


_DEFAULT_LIMITS = ImageLimits()


def digest(data: bytes) -> str:
    """Name these bytes: lower-case hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def decode(data: bytes, limits: ImageLimits = _DEFAULT_LIMITS) -> Image.Image:
    """
    Read an image of any supported kind as upright 8-bit RGB.

    The first frame counts; the EXIF orientation is applied; transparency is laid on white; grey, palette, CMYK and
    16-bit images are converted (16-bit by its high byte).

    Args:
        data: a whole JPEG, PNG, WebP, BMP, GIF or TIFF file.
        limits: checked against the bytes and against the size in the header, before any pixel is decoded.

    Raises:
        ImageError: empty, too large, unsupported, cut off or damaged; the message says which.
    """
    if not data:
        raise ImageError("the file is empty")
    if len(data) > limits.max_bytes:
        raise ImageError(
            f"the file has {show(len(data), 'bytes')}, more than the {show(limits.max_bytes, 'bytes')} allowed"
        )
    image = _open(data)
    _check_size(image, limits)
    try:
        image.load()
        return _to_rgb(_upright(image))
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged input
        raise ImageError(f"the image is cut off or damaged ({_reason(error)})") from error


def to_input(image: Image.Image, preprocess: Preprocess) -> NDArray[np.uint8]:
    """
    Resize a decoded image to the model's input: uint8 [H, W, 3], RGB, not normalised (the graph does that).

    An image of exactly the model's size is not touched, so storing the result of `encode` loses nothing.
    """
    resized = _resize(image if image.mode == "RGB" else image.convert("RGB"), preprocess)
    return np.array(resized, dtype=np.uint8)


def encode(image: Image.Image, preprocess: Preprocess | None) -> bytes:
    """
    Write an image without loss, at the model's size, or at its own when `preprocess` is None.

    Returns:
        WebP; PNG where Pillow was built without WebP or a side is longer than WebP can hold (16383).
    """
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    resized = rgb if preprocess is None else _resize(rgb, preprocess)
    # Without EXIF and colour profile: `decode` of the result must not turn it a second time.
    clean = Image.frombytes("RGB", resized.size, resized.tobytes())
    out = io.BytesIO()
    if max(clean.size) <= _WEBP_SIDE_MAX and features.check("webp"):
        clean.save(out, "WEBP", lossless=True, quality=0, method=0)
    else:
        clean.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(_not_an_image(data)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"the image has too many pixels ({_reason(error)})") from error
    except Exception as error:  # Pillow's parsers raise nearly anything on damaged input
        raise ImageError(f"the image's header is damaged ({_reason(error)})") from error


def _not_an_image(data: bytes) -> str:
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        return "HEIC and AVIF images are not supported; save it as JPEG, PNG or WebP"
    if not data.strip(b"\0"):
        return "the file holds nothing but zero bytes"
    return "not a JPEG, PNG, WebP, BMP, GIF or TIFF image"


def _check_size(image: Image.Image, limits: ImageLimits) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"the image is {width} x {height} pixels")
    if width * height > limits.max_pixels:
        allowed = show(limits.max_pixels, "pixels")
        raise ImageError(f"the image is {width} x {height} pixels, more than the {allowed} allowed")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # noqa: BLE001  a damaged EXIF block is no reason to refuse the pixels
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # Pillow's own conversion clips instead of scaling in some versions, and before 10.3 a 16-bit PNG is mode "I".
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError("images with 32 bits a channel are not supported; save it with 8 or 16")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        opaque = image if image.mode != "La" else image.convert("LA")
        layer = opaque.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer).convert("RGB")
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _resize(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    size = (preprocess.width, preprocess.height)
    if image.size == size:
        return image
    box = (0.0, 0.0, float(image.width), float(image.height))
    if preprocess.resize == "center_crop":
        scale = min(image.width / preprocess.width, image.height / preprocess.height)
        # Clamped: a rounding error of 1e-16 beyond the edge is an error to Pillow.
        left = max(0.0, (image.width - preprocess.width * scale) / 2)
        top = max(0.0, (image.height - preprocess.height * scale) / 2)
        right = min(float(image.width), left + preprocess.width * scale)
        bottom = min(float(image.height), top + preprocess.height * scale)
        box = (left, top, right, bottom)
    elif preprocess.resize != "stretch":
        raise ImageError(f"unknown resize {preprocess.resize!r}: expected 'stretch' or 'center_crop'")
    return image.resize(size, Image.Resampling.BILINEAR, box=box)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__

"""The one decode and the one resize."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgetune.errors import ImageError
from edgetune.images import ImageLimits, decode, digest, encode, to_input
from edgetune.types import Preprocess

RNG = np.random.default_rng(7)


def noise(width: int = 40, height: int = 30, channels: int = 3) -> np.ndarray:
    """Random pixels."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """The file that Pillow writes."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A small file whose header speaks of a huge image."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(10_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_a_lossless_file_decodes_to_its_pixels(kind: str) -> None:
    """What a lossless format stores is what comes out."""
    pixels = noise()
    assert np.array_equal(np.asarray(decode(saved(Image.fromarray(pixels), kind))), pixels)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
def test_a_lossy_file_decodes_to_nearly_its_pixels(kind: str, options: dict[str, int]) -> None:
    """JPEG and lossy WebP come out in RGB order and close to the original."""
    smooth = Image.fromarray(noise(4, 3)).resize((64, 48), Image.Resampling.BICUBIC)
    out = np.asarray(decode(saved(smooth, kind, **options))).astype(int)
    assert np.abs(out - np.asarray(smooth).astype(int)).mean() < 4


def test_the_first_frame_of_a_gif_counts() -> None:
    """An animation is its first picture."""
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, lambda a: a), (2, np.fliplr), (3, lambda a: np.rot90(a, 2)), (4, np.flipud),
     (5, lambda a: np.swapaxes(a, 0, 1)), (6, lambda a: np.rot90(a, -1)),
     (7, lambda a: np.rot90(np.swapaxes(a, 0, 1), 2)), (8, lambda a: np.rot90(a, 1))],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_each_exif_orientation_is_undone(kind: str, orientation: int, turn) -> None:  # noqa: ANN001  numpy functions
    """All eight orientations come out upright, once and not twice."""
    pixels = noise()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(Image.fromarray(pixels), kind, exif=exif.tobytes() if kind != "TIFF" else exif, **options)
    assert np.array_equal(np.asarray(decode(data)), turn(pixels))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_is_no_reason_to_refuse() -> None:
    """The pixels are good: they are taken as they lie."""
    data = saved(Image.fromarray(noise()), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40)
    assert decode(data).size == (40, 30)


def test_grey_becomes_three_equal_channels() -> None:
    """A greyscale image keeps its values in each channel."""
    grey = noise(channels=1)
    out = np.asarray(decode(saved(Image.fromarray(grey), "PNG")))
    assert all(np.array_equal(out[..., c], grey) for c in range(3))


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    """Pillow's own conversion turns all above 255 white in some versions."""
    values = (np.arange(1200, dtype=np.uint16) * 54).reshape(30, 40)
    out = np.asarray(decode(saved(Image.fromarray(values), "PNG")))
    assert np.array_equal(out[..., 0], (values >> 8).astype(np.uint8))


def test_transparency_lies_on_white() -> None:
    """A clear pixel is white, an opaque one keeps its colour, half is half."""
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 255, 128)):
        image.putpixel((x, 0), (200, 0, 0, alpha))
    out = np.asarray(decode(saved(image, "PNG"))).astype(int)[0]
    assert out[0].tolist() == [255, 255, 255]
    assert out[1].tolist() == [200, 0, 0]
    assert np.abs(out[2] - [227, 127, 127]).max() <= 1


@pytest.mark.parametrize("mode", ["LA", "P", "1", "L"])
def test_other_modes_and_their_transparency_become_rgb(mode: str) -> None:
    """Palette, bilevel, grey with alpha, and grey or palette with one clear colour."""
    image = Image.fromarray(noise(channels=1)).convert(mode)
    options = {"transparency": 0} if mode in ("P", "L") else {}
    assert decode(saved(image, "PNG", **options)).mode == "RGB"


def test_cmyk_becomes_rgb() -> None:
    """A print-shop JPEG comes out with its colours the right way round."""
    red = Image.new("RGB", (16, 16), (250, 10, 10)).convert("CMYK")
    pixel = decode(saved(red, "JPEG", quality=95)).getpixel((8, 8))
    assert pixel[0] > 200
    assert max(pixel[1:]) < 60


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "empty"), (bytes(100), "zero bytes"), (b"hello, world" * 9, "not a JPEG"), (b"%PDF-1.7" + bytes(9), "not a"),
     (b"\0\0\0\x18ftypheic" + bytes(20), "HEIC"), (b"\x89PNG\r\n\x1a\n", "")],
)  # fmt: skip
def test_what_is_no_image_is_refused_in_words(data: bytes, words: str) -> None:
    """The operator reads what the file is, or is not."""
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert words in caught.value.message


@pytest.mark.parametrize("mode", ["F", "I"])
def test_32_bits_a_channel_are_refused(mode: str) -> None:
    """No guess is made about the range of such values."""
    with pytest.raises(ImageError, match="32 bits"):
        decode(saved(Image.new(mode, (4, 4)), "TIFF"))


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_file_cut_anywhere_is_refused_or_whole(kind: str) -> None:
    """A half-written file raises ImageError and nothing else; a cut that only loses the trailer may pass."""
    data = saved(Image.fromarray(noise()), kind)
    with pytest.raises(ImageError):
        decode(data[: len(data) // 2])
    for cut in range(0, len(data), max(1, len(data) // 60)):
        try:
            assert decode(data[:cut]).size == (40, 30)
        except ImageError:
            continue


@settings(max_examples=150)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"]),
    st.integers(0, 2**30),
    st.binary(min_size=1, max_size=8),
)
def test_damaged_bytes_raise_image_error_or_decode(kind: str, where: int, junk: bytes) -> None:
    """Whatever is in a file, decode answers with an image or with ImageError."""
    data = bytearray(saved(Image.new("RGB", (20, 20), (3, 99, 200)), kind))
    at = where % len(data)
    data[at : at + len(junk)] = junk
    try:
        assert decode(bytes(data), ImageLimits(max_pixels=10_000)).mode == "RGB"
    except ImageError:
        return


def test_a_small_file_of_huge_pixels_is_refused_undecoded() -> None:
    """A decompression bomb is recognised by its header, below and above Pillow's own bound."""
    for side in (8_000, 30_000):
        with pytest.raises(ImageError, match=r"pixels"):
            decode(huge_png(side, side))


def test_too_many_bytes_are_refused() -> None:
    """The byte limit holds whatever is in them."""
    with pytest.raises(ImageError, match="more than the 100B allowed"):
        decode(saved(Image.fromarray(noise()), "PNG"), ImageLimits(max_bytes=100))


@given(
    st.integers(1, 50),
    st.integers(1, 50),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["stretch", "center_crop"]),
)
def test_storing_at_the_models_size_loses_nothing(width: int, height: int, to_w: int, to_h: int, resize: str) -> None:
    """What training reads from the buffer is exactly what serving makes of the original."""
    image = Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))
    preprocess = Preprocess(height=to_h, width=to_w, resize=resize)
    direct = to_input(image, preprocess)
    stored = decode(encode(image, preprocess))
    assert direct.shape == (to_h, to_w, 3)
    assert direct.dtype == np.uint8
    assert np.array_equal(to_input(stored, preprocess), direct)


def test_storing_at_its_own_size_keeps_the_pixels() -> None:
    """Without a model an image is kept as it is."""
    pixels = noise()
    assert np.array_equal(np.asarray(decode(encode(Image.fromarray(pixels), None))), pixels)


def test_an_image_longer_than_webp_can_hold_is_kept_too() -> None:
    """WebP ends at 16383 pixels; such a strip becomes a PNG."""
    strip = Image.fromarray(noise(16_400, 1))
    assert np.array_equal(np.asarray(decode(encode(strip, None))), np.asarray(strip))


def test_center_crop_keeps_the_middle_and_the_aspect() -> None:
    """The sides of a wide image are cut off, nothing is squeezed."""
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, 10:20] = 255
    assert to_input(Image.fromarray(pixels), Preprocess(height=10, width=10, resize="center_crop")).min() == 255
    assert to_input(Image.fromarray(pixels), Preprocess(height=10, width=10)).min() == 0


def test_an_unknown_resize_is_refused() -> None:
    """A manifest of a later version is not guessed at."""
    with pytest.raises(ImageError, match="zoom"):
        to_input(Image.new("RGB", (9, 9)), Preprocess(height=4, width=4, resize="zoom"))


def test_the_digest_is_sha256() -> None:
    """The name of the empty bytes is the one that everybody knows."""
    assert digest(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

"""Every image format against pixels made by hand, and damaged files."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from detr_jax.data.images import covered, decode, ignore_pillow_warnings, orientation_matters
from detr_jax.data.source import DataError, SizeMismatch


def read_image(file, name=None, **options):
    """[H, W, 3] uint8."""
    return np.asarray(decode(file, name, **options))


@pytest.fixture
def pixels(rng):
    """[30, 40, 3] random levels."""
    return rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)


def encoded(picture, form="PNG", **options):
    """The content of a file."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def photograph(rng, height, width, **options):
    """A JPEG of smooth colours, which compression changes little, and its pixels as Pillow decodes them."""
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    content = encoded(coarse.resize((width, height), Image.Resampling.BICUBIC), "JPEG", quality=90, **options)
    return content, np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_colours_are_kept_and_a_path_is_read_as_its_content(pixels, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(pixels))
    for file in (tmp_path / "a.png", encoded(pixels)):
        found = read_image(file)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, pixels)


def test_grey_and_black_and_white_images_have_three_equal_channels(pixels):
    grey = pixels[..., 0]
    np.testing.assert_array_equal(read_image(encoded(grey)), np.stack([grey] * 3, axis=-1))
    bits = grey > 127
    expected = np.stack([bits * np.uint8(255)] * 3, axis=-1)
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(bits))), expected)


@pytest.mark.parametrize("transparency", [None, 3, bytes([0, 100, 255])])
def test_palettes_become_colours_without_their_transparency(rng, transparency):
    palette = rng.integers(0, 256, (256, 3), dtype=np.uint8)
    indices = rng.integers(0, 256, (30, 40), dtype=np.uint8)
    picture = Image.fromarray(indices, "P")
    picture.putpalette(palette.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    with warnings.catch_warnings(record=True) as said:
        found = read_image(encoded(picture, **options))
    np.testing.assert_array_equal(found, palette[indices])
    assert not said


def test_transparency_is_dropped(rng, pixels):
    alpha = rng.integers(0, 256, (30, 40, 1), dtype=np.uint8)
    np.testing.assert_array_equal(read_image(encoded(np.concatenate([pixels, alpha], axis=-1))), pixels)
    grey = np.concatenate([pixels[..., :1], alpha], axis=-1)
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(grey, "LA"))), np.repeat(pixels[..., :1], 3, -1))


def test_cmyk_is_converted(rng):
    cmyk = rng.integers(0, 256, (30, 40, 4), dtype=np.uint8)
    found = read_image(encoded(Image.fromarray(cmyk, "CMYK"), "TIFF"))
    ink = cmyk.astype(float)
    expected = (255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255
    assert np.abs(found - expected).max() <= 1
    flat = np.full((32, 32, 4), [30, 60, 90, 20], np.uint8)
    found = read_image(encoded(Image.fromarray(flat, "CMYK"), "JPEG", quality=100))
    assert np.abs(found - (255 - flat[..., :3].astype(float)) * 235 / 255).max() <= 4, "Adobe's inverted inks"


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(rng, form):
    levels = rng.integers(0, 2**16, (30, 40)).astype(np.uint16)
    levels[0, :4] = 0, 128, 129, 65535
    found = read_image(encoded(levels, form))
    expected = np.round(levels / 257)
    np.testing.assert_array_equal(found, np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize("bits", [9, 12])
def test_significant_bits_of_a_png_change_nothing_because_its_levels_are_scaled_to_16_bits(rng, bits):
    content = encoded(rng.integers(0, 2**16, (30, 40)).astype(np.uint16))
    chunk = b"sBIT" + bytes([bits])
    chunk = struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk))
    marked = content[:33] + chunk + content[33:]  # after the header
    np.testing.assert_array_equal(read_image(marked), read_image(content))


@pytest.mark.parametrize(
    ("dtype", "highest"), [(np.uint16, 4095), (np.int32, 255), (np.int32, 70_000), (np.float32, 1.0)]
)
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_the_highest_level_can_be_given(rng, dtype, highest, form):
    if form == "PNG" and dtype != np.uint16:
        pytest.skip("PNG has no such levels")
    levels = (rng.random((30, 40)) * highest).astype(dtype)
    expected = np.rint(levels.astype(np.float64) * 255 / highest)
    found = read_image(encoded(levels, form), max_level=highest)
    np.testing.assert_array_equal(found, np.stack([expected] * 3, axis=-1))
    with pytest.raises(DataError, match=r"x\.png has levels from .* data\.max_level"):
        read_image(encoded(levels, form), "x.png", max_level=highest / 2)


def test_a_tiff_may_state_its_highest_level(rng):
    levels = rng.integers(0, 1001, (30, 40)).astype(np.int32)
    content = encoded(levels, "TIFF", tiffinfo={341: 1000})
    np.testing.assert_array_equal(read_image(content)[..., 0], np.rint(levels * 0.255))


def test_the_error_names_an_image_with_levels_of_unknown_range(rng):
    for levels in (rng.integers(0, 256, (4, 4)).astype(np.int32), rng.random((4, 4)).astype(np.float32)):
        with pytest.raises(DataError, match=r"odd\.tif has (32-bit|decimal) levels .* set data\.max_level"):
            read_image(encoded(levels, "TIFF"), "odd.tif")
    with pytest.raises(DataError, match=r"odd\.tif has levels from -1 to"):
        read_image(encoded(np.full((4, 4), -1, np.int32), "TIFF"), "odd.tif", max_level=255)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_read(form):
    frames = [Image.new("RGB", (40, 30), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    found = read_image(encoded(frames[0], form, save_all=True, append_images=frames[1:], **options))
    assert found.shape == (30, 40, 3)
    assert (found == [255, 0, 0]).all()


ROTATED = {  # the image that a viewer shows, by the EXIF specification
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", ROTATED)
@pytest.mark.parametrize("height", [48, 64])
def test_the_rule_decides_if_an_exif_orientation_is_applied(rng, orientation, height):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content, stored = photograph(rng, height, 64, exif=exif)
    displayed = ROTATED[orientation](stored)
    turned = displayed.shape[:2] != stored.shape[:2]
    np.testing.assert_array_equal(read_image(content), displayed)
    np.testing.assert_array_equal(read_image(content, exif="apply"), displayed)
    np.testing.assert_array_equal(read_image(content, exif="ignore"), stored)
    np.testing.assert_array_equal(read_image(content, size=displayed.shape[:2]), displayed)
    np.testing.assert_array_equal(read_image(content, size=stored.shape[:2]), stored if turned else displayed)
    said = orientation_matters(content, stored.shape[:2])
    assert said == (None if orientation == 1 else "stored" if turned else "open")
    if turned:
        assert orientation_matters(content, displayed.shape[:2]) == "displayed"
        for rule, size in (("apply", stored.shape[:2]), ("ignore", displayed.shape[:2])):
            with pytest.raises(SizeMismatch, match=r"x\.jpg has 48 x 64 pixels"):
                read_image(content, "x.jpg", size=size, exif=rule)


def test_another_size_than_annotated_is_refused_before_a_pixel_is_decoded(pixels):
    content = encoded(pixels)[:500]  # little more than the header
    with pytest.raises(SizeMismatch, match="30 x 40"):
        read_image(content, size=(30, 41))
    with pytest.raises(DataError, match="decoded"):
        read_image(content, size=(30, 40))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_the_error_names_a_truncated_file(rng, tmp_path, form):
    noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encoded(noise, form)
    path = tmp_path / "cut.image"
    for length in (0, 3, len(content) // 3, len(content) * 2 // 3):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"cut\.image cannot be decoded"):
            read_image(path)


def test_images_of_too_many_pixels_are_refused_before_they_take_memory(monkeypatch):
    """The file of a PNG of zeros is a thousand times smaller than its pixels."""
    ignore_pillow_warnings()
    bomb = encoded(Image.new("L", (12_000, 12_000)), compress_level=1)
    with pytest.raises(DataError, match=r"bomb\.png has 12000 x 12000 pixels, which is more than the limit"):
        read_image(bomb, "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # Pillow itself refuses only twice the limit
    with pytest.raises(DataError, match=r"bomb\.png cannot be decoded"):
        read_image(encoded(Image.new("L", (200, 200))), "bomb.png")


def test_the_error_names_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(DataError, match=r"none\.jpg does not exist"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(DataError, match="cannot be decoded"):
        read_image(tmp_path)


def test_scaled_decoding_gives_the_same_picture_and_never_less_than_the_minimum_size(rng):
    content, stored = photograph(rng, 300, 401)
    small = Image.fromarray(stored).resize((40, 30), Image.Resampling.BILINEAR)
    for min_size, expected, extent in (
        ((150, 200), (150, 201), (150, 200.5)),
        ((151, 200), (300, 401), (300, 401)),
        ((30, 40), (38, 51), (37.5, 50.125)),
    ):
        picture = decode(content, size=(300, 401), min_size=min_size)
        assert (picture.height, picture.width) == expected
        assert covered(picture, (300, 401)) == extent
        found = picture.resize((40, 30), Image.Resampling.BILINEAR, box=(0, 0, extent[1], extent[0]))
        assert np.abs(np.asarray(found, float) - np.asarray(small)).mean() < 1.5
    png = decode(encoded(stored), size=(300, 401), min_size=(30, 40))
    assert png.size == (401, 300)
    exif = Image.Exif()
    exif[0x0112] = 6
    content, stored = photograph(rng, 300, 400, exif=exif)
    rotated = decode(content, size=(400, 300), min_size=(20, 15))
    np.testing.assert_array_equal(np.asarray(rotated), np.rot90(stored, -1))


def mutated(rng, content):
    """The bytes of a file after one or more random kinds of damage."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        kind, place = rng.integers(6), int(rng.integers(len(data)))
        if kind == 0:  # bytes flip
            for at in rng.integers(0, len(data), rng.integers(1, 20)):
                data[at] = rng.integers(256)
        elif kind == 1:  # the end is lost
            del data[max(place, 1) :]
        elif kind == 2:  # a piece is lost or doubled
            piece = data[place : place + int(rng.integers(1, 200))]
            data[place : place + len(piece) * int(rng.integers(2))] = piece * int(rng.integers(3))
            data = data or bytearray(b"\xff")
        elif kind == 3:  # a marker becomes another one
            markers = [at for at in range(len(data) - 1) if data[at] == 0xFF and data[at + 1] not in (0, 0xFF)]
            if markers:
                data[rng.choice(markers) + 1] = rng.integers(0xC0, 0xFF)
        elif kind == 4:  # the header has another size
            at = data.find(b"\xff\xc0")
            if 0 <= at < len(data) - 9:
                data[at + 5 : at + 9] = rng.integers(0, 256, 4, dtype=np.uint8).tobytes()
        else:  # zeros, as after a crash
            length = min(int(rng.integers(1, 400)), len(data) - place)
            data[place : place + length] = bytes(length)
    return bytes(data)


def test_a_thousand_damaged_jpegs_give_an_image_of_the_right_size_or_an_error(rng):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = [{}, {"progressive": True}, {"exif": exif}, {"restart_marker_blocks": 4}, {"subsampling": 0}]
    originals = [photograph(rng, 60, 80, **one)[0] for one in options]
    images, sentences = 0, []
    with warnings.catch_warnings(record=True) as said:
        ignore_pillow_warnings()  # pytest resets the filters
        for number in range(1000):
            content = mutated(rng, originals[number % len(originals)])
            try:
                image = read_image(content, "damaged.jpg", size=(60, 80))
            except DataError as error:
                sentences.append(str(error))
                continue
            assert image.shape == (60, 80, 3)
            assert image.dtype == np.uint8
            images += 1
    assert 100 < images < 900, "both happen"
    assert all("damaged.jpg" in sentence and "\n" not in sentence for sentence in sentences)
    assert not said

"""Files that a public page is fed: whole, cut, mislabelled, oversized, odd, and no photos at all."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from pillow_heif import register_heif_opener

register_heif_opener()

ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
ENDINGS |= {"TIFF": "tif", "AVIF": "avif", "MPO": "mpo", "HEIF": "heic"}


def stored(image: Image.Image, image_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def png_of(width: int, height: int, pixels: bytes = b"") -> bytes:
    """Return a grey PNG that claims a size, whatever pixels it has."""
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0),
        b"IDAT": zlib.compress(pixels, 9),
        b"IEND": b"",
    }
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def odd_files(folder: Path, photo: Image.Image) -> dict[str, bool]:
    """Write them into the folder; return of each name whether it is a photo that has to be answered."""
    files: dict[str, tuple[bytes, bool]] = {}
    frames = [photo, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    grey = photo.convert("L")
    for image_format, ending in ENDINGS.items():
        more = {"save_all": True, "append_images": frames[1:]} if image_format == "MPO" else {}
        whole = stored(photo, image_format, **more)
        files[f"whole.{ending}"] = whole, True
        files[f"{ending}-without-ending"] = whole, True
        files[f"{ending}-as-text.txt"] = whole, True
        files[f"{ending}-with-more-behind.{ending}"] = whole + b"<script>alert(1)</script>" * 100, True
        files[f"cut.{ending}"] = whole[: len(whole) // 3], False
        files[f"beginning-only.{ending}"] = whole[:20], False
        files[f"zero-bytes.{ending}"] = b"", False
        files[f"noise.{ending}"] = bytes(np.random.default_rng(0).integers(0, 256, 3000, np.uint8)), False
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files[f"exif-{orientation}.jpg"] = stored(photo, "JPEG", exif=exif), True
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    half = photo.copy()
    half.putalpha(128)
    files |= {
        "one-bit.png": (stored(photo.convert("1"), "PNG"), True),
        "palette.png": (stored(photo.quantize(), "PNG"), True),
        "palette-with-transparency.png": (stored(photo.quantize(), "PNG", transparency=bytes(range(256))), True),
        "grey.jpg": (stored(grey, "JPEG"), True),
        "grey-alpha.png": (stored(grey.convert("LA"), "PNG"), True),
        "rgba.png": (stored(half, "PNG"), True),
        "rgba.heic": (stored(half, "HEIF"), True),
        "16-bit.png": (stored(deep, "PNG"), True),
        "16-bit.tif": (stored(deep, "TIFF"), True),
        "32-bit.tif": (stored(grey.convert("I"), "TIFF"), True),
        "float.tif": (stored(grey.convert("F"), "TIFF"), True),
        "cmyk.jpg": (stored(photo.convert("CMYK"), "JPEG"), True),
        "cmyk.tif": (stored(photo.convert("CMYK"), "TIFF"), True),
        "lab.tif": (stored(photo.convert("LAB"), "TIFF"), True),
        "animated.gif": (stored(photo, "GIF", save_all=True, append_images=frames), True),
        "animated.png": (stored(photo, "PNG", save_all=True, append_images=frames), True),
        "animated.webp": (stored(photo, "WEBP", save_all=True, append_images=frames), True),
        "animated.avif": (stored(photo, "AVIF", save_all=True, append_images=frames), True),
        "one-pixel.png": (stored(photo.resize((1, 1)), "PNG"), True),
        "one-pixel-high.png": (stored(photo.resize((5000, 1)), "PNG"), True),
        "one-pixel-wide.jpg": (stored(photo.resize((1, 5000)), "JPEG"), True),
        "too-many-pixels.png": (png_of(10_000, 10_000, bytes(10_001 * 10_000)), False),  # Pillow only warns of these
        "bomb.png": (png_of(20_000, 20_000, bytes(20_001 * 20_000)), False),
        "claims-4-billion.png": (png_of(65_000, 65_000), False),
        "claims-most.png": (png_of(2**31 - 1, 2**31 - 1), False),
        "claims-nothing.png": (png_of(0, 0), False),
        "claims-much.gif": (b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0) + bytes(60), False),
        "claims-much.bmp": (
            b"BM" + struct.pack("<IHHIIiiHHI", 99, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0) + bytes(60),
            False,
        ),
        "page.html": (b"<html><script>alert(1)</script></html>", False),
        "page.jpg": (b"<html><script>alert(1)</script></html>", False),
        "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', False),
        "text.png": (b"a dog", False),
        "archive.zip": (b"PK\x03\x04" + bytes(100), False),
        "pickle.jpg": (b"\x80\x04cos\nsystem\n(S'true'\ntR.", False),
        "document.eps": (stored(photo, "EPS"), False),
        "document.pdf": (stored(photo, "PDF"), False),
        "not-on-the-list.ppm": (stored(photo, "PPM"), False),
        "not-on-the-list.ico": (stored(photo, "ICO"), False),
        "not-on-the-list.tga": (stored(photo, "TGA"), False),
    }
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    return {name: good for name, (_, good) in files.items()}

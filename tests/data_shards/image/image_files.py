"""Small image files of every format and depth, made by Pillow or byte by byte."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

H, W = 11, 14
Y, X = np.mgrid[:H, :W]
RGB = np.stack([X * 17 % 256, Y * 23 % 256, X * Y % 256], -1).astype(np.uint8)
DEEP = np.stack([X * 4681, Y * 6007, X * Y * 450 + 77], -1).astype(np.uint16)  # 0 ... 64427
GRAY = DEEP[:, :, 2]
MODES = ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr")


def saved(kind: str, mode: str = "RGB", **options: object) -> bytes:
    """RGB converted to `mode` and saved by Pillow."""
    file = io.BytesIO()
    Image.fromarray(RGB).convert(mode).save(file, kind, **options)
    return file.getvalue()


def saved_array(kind: str, values: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind, **options)
    return file.getvalue()


def animation(kind: str) -> bytes:
    """RGB, and two more frames."""
    first = Image.fromarray(RGB)
    others = [first.rotate(180), first.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    file = io.BytesIO()
    first.save(file, kind, save_all=True, append_images=others)
    return file.getvalue()


def samples() -> dict[str, bytes]:
    """Every allowed format, most in several forms."""
    compressions = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    return {
        "JPEG": saved("JPEG"),
        "JPEG gray": saved("JPEG", "L"),
        "JPEG progressive": saved("JPEG", progressive=True),
        "JPEG CMYK": saved("JPEG", "CMYK"),
        "PNG": saved("PNG"),
        "PNG palette": saved("PNG", "P"),
        "PNG 16": png(DEEP, 2, 16, interlaced=True),
        "WebP": saved("WEBP"),
        "WebP lossless": saved("WEBP", "RGBA", lossless=True),
        "WebP animated": animation("WEBP"),
        "GIF": saved("GIF", "P"),
        "GIF animated": animation("GIF"),
        "BMP": saved("BMP"),
        "BMP palette": saved("BMP", "P"),
        "TIFF": saved("TIFF"),
        "TIFF 16": tiff(DEEP),
        "TIFF group4": saved("TIFF", "1", compression="group4"),
        **{f"TIFF {name}": saved("TIFF", compression=name) for name in compressions},
        "AVIF": saved("AVIF"),
        "AVIF alpha": saved("AVIF", "RGBA"),
        **{f"P{kind}": anymap(kind) for kind in range(1, 7)},
        "P6 1023": anymap(6, DEEP >> 6, 1023),
    }


def anymap(kind: int, values: np.ndarray | None = None, maxval: int = 255) -> bytes:
    """A PNM of integers (H, W) or (H, W, 3); of RGB or its green channel where no values are given."""
    if values is None:
        values = RGB if kind in (3, 6) else RGB[:, :, 1] // (128 if kind in (1, 4) else 1)
    head = f"P{kind}\n# a comment\n{values.shape[1]} {values.shape[0]}\n"
    head += "" if kind in (1, 4) else f"{maxval}\n"
    if kind <= 3:
        return head.encode() + "\n".join(" ".join(map(str, row.ravel())) for row in values).encode() + b"\n"
    if kind == 4:
        return head.encode() + np.packbits(values.astype(bool), axis=1).tobytes()
    return head.encode() + values.astype(">u2" if maxval > 255 else np.uint8).tobytes()


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    values: np.ndarray,
    color: int,
    depth: int,
    *,
    interlaced: bool = False,
    palette: bytes = b"",
    **parts: bytes,
) -> bytes:
    """A PNG of integers (H, W) or (H, W, C) without filters; `parts`: its `stream`, and `extra` chunks."""
    passes = [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]
    lines = b""
    for left, top, across, down in passes if interlaced else [(0, 0, 1, 1)]:
        part = values[top::down, left::across]
        if part.size:
            lines += b"".join(b"\0" + _packed(row.ravel(), depth) for row in part)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, color, 0, 0, interlaced)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + parts.get("extra", b"")
    start += chunk(b"PLTE", palette) if palette else b""
    return start + chunk(b"IDAT", parts.get("stream", zlib.compress(lines))) + chunk(b"IEND", b"")


def _packed(row: np.ndarray, depth: int) -> bytes:
    if depth >= 8:
        return row.astype(f">u{depth // 8}").tobytes()
    bits = (row[:, None] >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.ravel().astype(np.uint8)).tobytes()


def tiff(
    values: np.ndarray,
    *,
    order: str = "<",
    deflated: bool = False,
    separate: bool = False,
    photometric: int | None = None,
    bits: int | None = None,
    rows: int | None = None,
    extra: int = 2,
) -> bytes:
    """A TIFF of (H, W) or (H, W, C) in strips; integers or floats, in either byte order."""
    channels = 1 if values.ndim == 2 else values.shape[2]
    stored = values.astype(values.dtype.newbyteorder(order))
    planes = [stored[..., c] for c in range(channels)] if separate and channels > 1 else [stored]
    rows = rows or len(values)
    strips = [plane[at : at + rows].tobytes() for plane in planes for at in range(0, len(values), rows)]
    strips = [zlib.compress(strip) for strip in strips] if deflated else strips
    kinds = {"u": 1, "i": 2, "f": 3}
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [values.shape[1]]),
        257: ("I", [values.shape[0]]),
        258: ("H", [bits or 8 * values.dtype.itemsize] * channels),
        259: ("H", [8 if deflated else 1]),
        262: ("H", [photometric if photometric is not None else 1 if channels == 1 else 2]),
        273: ("I", [0] * len(strips)),
        277: ("H", [channels]),
        278: ("I", [rows]),
        279: ("I", [len(strip) for strip in strips]),
        284: ("H", [2 if separate else 1]),
        339: ("H", [kinds[values.dtype.kind]] * channels),
    }
    if channels == 4 and photometric is None:
        tags[338] = ("H", [extra])
    start = len(_directory(tags, order))
    tags[273] = ("I", [start + sum(map(len, strips[:i])) for i in range(len(strips))])
    return _directory(tags, order) + b"".join(strips)


def _directory(tags: dict[int, tuple[str, list[int]]], order: str) -> bytes:
    entries, behind, base = b"", b"", 8 + 2 + 12 * len(tags) + 4
    for tag, (code, numbers) in sorted(tags.items()):
        data = struct.pack(order + code * len(numbers), *numbers)
        entries += struct.pack(order + "HHI", tag, {"H": 3, "I": 4}[code], len(numbers))
        if len(data) > 4:
            entries += struct.pack(order + "I", base + len(behind))
            behind += data + b"\0" * (len(data) % 2)
        else:
            entries += data.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(tags))
    return head + entries + b"\0" * 4 + behind

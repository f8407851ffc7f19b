"""The kind of a file by its first bytes, for the message when its name is wrong."""

HEAD_BYTES = 512
KINDS = (
    (b"\x1f\x8b", "a gzip file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"\x04\x22\x4d\x18", "an LZ4 file"),
    (b"PK", "a zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"\x89HDF", "an HDF5 file"),
    (b"PAR1", "a Parquet file"),
    (b"version https://git-lfs", "a Git LFS pointer (run: git lfs pull)"),
)
COMPRESSED = tuple(kind for _, kind in KINDS[:5])
HTML = (b"<!doctype html", b"<html", b"<head", b"<body")


def kind_of(head: bytes) -> str:
    """A file's kind, with its article, by its first bytes `head`; "" when they are unknown."""
    if not head:
        return "an empty file"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(HTML):
        return "an HTML page (an error page of the download?)"
    if text.startswith((b"<?xml", b"<error")):
        return "an XML text (an error of the download?)"
    if head[257:262] == b"ustar":
        return "a tar"
    if not head.strip(b"\x00"):
        return "a file of zeros"
    return next((kind for magic, kind in KINDS if head.startswith(magic)), "")

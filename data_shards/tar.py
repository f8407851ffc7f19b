"""The part of USTAR (POSIX.1-1988) that a shard is written in: equal samples give equal bytes.

    | header of KEY.jpg | body, padded | header of KEY.cls | ASCII label, padded | ... | 1024 zeros |

Headers are 512 bytes; bodies are padded with zeros to multiples of 512.

`tarfile` and `webdataset` read it; only this layout lets a sample be checked from its index record alone.
"""

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)
CHECKSUM = slice(148, 156)


def padded(size: int) -> int:
    """`size` bytes rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def header(name: str, size: int) -> bytes:
    """The 512-byte header of a plain file of `size` bytes: mode 0644, owner 0, time 0."""
    block = bytearray(BLOCK)
    fields = {0: name.encode("ascii"), 100: b"0000644", 108: b"0000000", 116: b"0000000"}
    fields |= {124: b"%011o" % size, 136: b"%011o" % 0, 156: b"0", 257: b"ustar\x0000"}
    for start, value in fields.items():
        block[start : start + len(value)] = value
    block[CHECKSUM] = b"%06o\x00 " % header_sum(block)
    return bytes(block)


def header_sum(block: bytes | bytearray) -> int:
    """The sum of a header's bytes with its checksum field counted as spaces, as POSIX defines it."""
    return sum(block) - sum(block[CHECKSUM]) + 8 * ord(" ")


def member(name: str, body: bytes) -> bytes:
    """A whole file as it stands in a tar: header, body and padding."""
    return header(name, len(body)) + body + bytes(padded(len(body)) - len(body))


def parse_header(block: bytes) -> tuple[str, int]:
    """The name and the size in bytes of a header; ValueError when its checksum or a field is damaged."""
    if len(block) < BLOCK:
        raise ValueError("the tar ends before this header")
    if int(block[CHECKSUM].rstrip(b"\x00 ") or b"0", 8) != header_sum(block):
        raise ValueError("damaged tar header")
    return block[:100].rstrip(b"\x00").decode("ascii"), int(block[124:135], 8)

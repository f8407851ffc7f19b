"""Which files are images, by their names: in folders, in zip archives, in tars, in webdataset streams."""

from dataclasses import dataclass, field

IMAGE_SUFFIXES = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"),
    *("ppm", "pgm", "pbm", "pnm"),
)
"""The suffixes of the formats that are decoded, in lower case. No other module lists them."""
_ENDINGS = tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES)
SYSTEM_NAMES = frozenset(
    {
        *("__macosx", "icon\r"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
        *("@eadir", "#recycle", "#snapshot", "lost+found"),
    }
)
"""Names that macOS, Windows, network storage and file systems add to a directory, in lower case."""
HIDDEN = "hidden or system files or directories"


def is_image(name: str) -> bool:
    """Whether a file name has the suffix of an image, in upper or lower case."""
    return name.lower().endswith(_ENDINGS)


def is_hidden(path: str) -> bool:
    """Whether a part of a relative path, other than "." and "..", begins with a dot or is a system name."""
    return any(
        part in SYSTEM_NAMES or (part[:1] == "." and part not in (".", ".."))
        for part in path.lower().split("/")
    )


@dataclass
class Skipped:
    """The files that a source skips: for every kind, in the plural, their number and the first of them."""

    kinds: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, kind: str, example: str, count: int = 1) -> None:
        """Count `count` more of a kind."""
        before, first = self.kinds.get(kind, (0, example))
        self.kinds[kind] = before + count, first

    def merge(self, other: "Skipped") -> None:
        """Count everything that `other` counted."""
        for kind, (count, example) in other.kinds.items():
            self.add(kind, example, count)

    def notes(self, location: str) -> list[str]:
        """A sentence for every kind, which the command prints."""
        return [
            f"{location}: skipped {kind}: {count}, such as {example}"
            for kind, (count, example) in self.kinds.items()
        ]

"""Which member of a tar made by others belongs to which field, by its extension: all after the first dot.

    an extension that the field names (mask=seg.png)     that field
    an image suffix; cls                                 the fields image and label
    NAME.EXT, where EXT is one of the codec              any other field called NAME
    EXT alone                                            the only field whose codec has it
    json, txt                                            the label

The first rule that fits decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from data_shards.codecs.registry import codec_of
from data_shards.format.fields import IMAGE_AND_LABEL, Field

LABELS = ("cls", "json", "txt")
NO_LABEL, NO_IMAGE = "an image without a label", "a label without an image"


class TarMember(NamedTuple):
    """A member of a tar: where its bytes lie, or the `problem` why they cannot be read."""

    name: str
    offset: int
    size: int
    problem: str = ""


@dataclass
class Group:
    """The members of one key: by field, and by extension."""

    parts: dict[str, dict[str, TarMember]] = field(default_factory=dict)

    def add(self, name: str, extension: str, part: TarMember) -> bool:
        """Add a member of the field `name`; False when there is one already."""
        parts = self.parts.setdefault(name, {})
        alternative = name == "label" and extension in LABELS
        if extension in parts or (parts and not alternative):
            return False
        parts[extension] = part
        return True

    def part(self, name: str) -> TarMember | None:
        """The member of a field; of several labels, .cls precedes .json and .json precedes .txt."""
        parts = self.parts.get(name, {})
        first = next((parts[extension] for extension in LABELS if extension in parts), None)
        return first or next(iter(parts.values()), None)

    def lacks(self, fields: Sequence[Field], endings: "Extensions") -> str:
        """What the key lacks, "" for nothing."""
        if tuple(fields) == IMAGE_AND_LABEL and len(self.parts) < 2:
            return NO_LABEL if "image" in self.parts else NO_IMAGE
        missing = [item for item in fields if item.name not in self.parts]
        texts = [f"{item.name} ({endings.shown(item)})" for item in missing]
        return f"has no member {', no '.join(texts)}" if texts else ""


class Extensions:
    """The fields by the extensions of their members."""

    def __init__(self, fields: Sequence[Field]) -> None:
        named = {item.extension: item.name for item in fields if item.extension}
        others = {item: tuple(codec_of(item).extensions) for item in fields if not item.extension}
        prefixed = {
            f"{item.name}.{end}": item.name
            for item, ends in others.items()
            if item not in IMAGE_AND_LABEL
            for end in ends
        }
        natural = {end: item.name for item, ends in others.items() if item in IMAGE_AND_LABEL for end in ends}
        alone: dict[str, list[str]] = {}
        for item, ends in others.items():
            for end in ends if item not in IMAGE_AND_LABEL else ():
                alone.setdefault(end, []).append(item.name)
        only = {end: names[0] for end, names in alone.items() if len(names) == 1}
        labels = dict.fromkeys(LABELS, "label") if IMAGE_AND_LABEL[1] in others else {}
        self._fields: dict[str, str] = labels | only | natural | prefixed | named

    def field_of(self, extension: str) -> str:
        """The name of the field; "" for a member of none."""
        return self._fields.get(extension, "")

    def shown(self, item: Field) -> str:
        """The extensions of a field, for a message."""
        found = [f".{extension}" for extension, name in self._fields.items() if name == item.name]
        return " ".join(found[:3]) + (" ..." if len(found) > 3 else "")

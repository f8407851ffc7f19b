"""The commands of README.md, as a reader would type them, read from the page itself.

A block of indented lines is one of three:

- Python, if it begins with an import;
- the transcript of a session, if it begins with a program of .venv/bin: its commands begin so;
- otherwise shell commands.

In the text, `swin-moe ...` and `make ...` between backticks are commands too.
"""

import re
from collections.abc import Iterator

from tests.checkout import ROOT

PAGE = ROOT / "README.md"
TRANSCRIPT = ".venv/bin/"
HEREDOC = re.compile(r"<<(\w+)")


def blocks(text: str) -> list[str]:
    """The blocks of code of a page, without their indentation; blank lines may stand inside."""
    found = re.findall(r"(?:^ {4}.*\n(?:[ \t]*\n(?= {4}))*)+", text, re.MULTILINE)
    return [re.sub(r"^ {4}", "", block, flags=re.MULTILINE).rstrip() for block in found]


def is_python(block: str) -> bool:
    """Whether a block is a script in Python."""
    return block.startswith(("import ", "from "))


def scripts(text: str) -> list[str]:
    """The blocks in Python."""
    return [block for block in blocks(text) if is_python(block)]


def commands(text: str) -> list[str]:
    """The commands of a page, in its order: those of its blocks, then those between backticks."""
    shell = [block for block in blocks(text) if not is_python(block)]
    inline = re.findall(r"`((?:swin-moe|make) [^`]+)`", re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE))
    return list(dict.fromkeys([*(command for block in shell for command in _commands_of(block)), *inline]))


def _commands_of(block: str) -> Iterator[str]:
    """Without the comments behind them; one with a document (<<END) has its lines too."""
    lines = iter(block.splitlines())
    is_transcript = block.startswith(TRANSCRIPT)
    for line in lines:
        if is_transcript and not line.startswith(TRANSCRIPT):
            continue
        command = re.sub(r"\s+#.*$", "", line).strip()
        if match := HEREDOC.search(command):
            command += "".join(f"\n{inner}" for inner in _until(lines, match[1]))
        if command:
            yield command


def _until(lines: Iterator[str], end: str) -> Iterator[str]:
    for line in lines:
        yield line
        if line == end:
            return

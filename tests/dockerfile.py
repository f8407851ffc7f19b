"""A Dockerfile read without Docker, and its steps run in a directory in place of an image.

Read is what ours has: ARG with a default, FROM, WORKDIR, COPY inside the context, RUN, ENV, USER, ENTRYPOINT
and CMD; comments, lines that go on after a backslash, and ${NAME}. Anything else is an error.
"""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

WORDS = ("ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "ENTRYPOINT", "CMD")
VARIABLE = re.compile(r"\$\{(\w+)\}")


class Step(NamedTuple):
    """An instruction, with the values of the build arguments that a shell does not expand itself."""

    word: str
    text: str
    arguments: Mapping[str, str]  # every ARG so far, which are variables of a RUN

    @property
    def command(self) -> list[str]:
        """The words of an ENTRYPOINT or a CMD, which must be a list in JSON: a shell would keep signals."""
        found = json.loads(self.text)
        if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
            raise ValueError(f"{self.word} {self.text}: must be a list of strings")
        return found


def read_steps(text: str, **given: str) -> list[Step]:
    """The instructions of a Dockerfile.

    Args:
        text: of the file.
        given: what `docker build --build-arg` would set.
    """
    steps, values = [], dict[str, str]()
    for line in _logical_lines(text):
        word, _, rest = line.partition(" ")
        if word not in WORDS:
            raise ValueError(f"{line}: not among the instructions that are read here")
        if word == "ARG":
            name, _, default = rest.partition("=")
            values[name] = given.get(name, default)
        if word in ("FROM", "WORKDIR", "COPY", "USER"):
            rest = VARIABLE.sub(lambda match: values[match[1]], rest)
        steps.append(Step(word, rest.strip(), dict(values)))
    return steps


def _logical_lines(text: str) -> Iterator[str]:
    """Without comments; a line that ends with a backslash goes on with the next."""
    parts: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#") or not line.strip():
            continue
        parts.append(line.strip().removesuffix("\\").strip())
        if not line.rstrip().endswith("\\"):
            yield " ".join(parts)
            parts = []
    if parts:
        raise ValueError(f"{parts[-1]}: the last line goes on")


def is_sent(path: str, ignored: str) -> bool:
    """Whether a path is in the context: the last line that matches it or a folder above it decides.

    Args:
        path: of a file, relative to the context.
        ignored: the text of .dockerignore.
    """
    sent = True
    above = [str(folder) for folder in [PurePosixPath(path), *PurePosixPath(path).parents]][:-1]
    for line in filter(None, map(str.strip, ignored.splitlines())):
        if not line.startswith("#"):
            pattern = line.removeprefix("!").removesuffix("/")
            if any(_matches(folder, pattern) for folder in above):
                sent = line.startswith("!")
    return sent


def _matches(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatchcase(PurePosixPath(path).name, pattern[3:])
    return path.count("/") == pattern.count("/") and fnmatchcase(path, pattern)


class Directory:
    """A directory that stands for the root of an image.

    Absolute paths of `moved` lie below it; in the commands of RUN they are replaced. Whatever else a command
    does, it does on this machine: the caller chooses the steps.

    Args:
        root: the directory.
        context: what COPY copies from.
        files: the files of the context, relative to it.
        moved: paths of the image, such as /opt.
    """

    def __init__(self, root: Path, context: Path, files: Sequence[str], moved: Sequence[str]) -> None:
        self.root, self.context, self.files, self.moved = root, context, files, moved
        self.place = root

    def inside(self, text: str) -> str:
        """The paths of the image in a text, below the root."""
        pattern = "|".join(map(re.escape, self.moved))
        return re.sub(rf"(?<![\w.])({pattern})(?=[/\s:]|$)", rf"{self.root}\1", text)

    def take(self, step: Step, environment: Mapping[str, str]) -> None:
        """Carry out a WORKDIR, a COPY or a RUN; CalledProcessError when a command fails."""
        if step.word == "WORKDIR":
            self.place = Path(self.inside(step.text))
            self.place.mkdir(parents=True, exist_ok=True)
        elif step.word == "COPY":
            *sources, _ = shlex.split(step.text)
            for source in sources:
                self._copy(source)
        elif step.word == "RUN":
            command = ["sh", "-ec", self.inside(step.text)]
            subprocess.run(command, cwd=self.place, env={**environment, **step.arguments}, check=True)

    def _copy(self, source: str) -> None:
        """To the working directory; a folder gives what is in it."""
        top = "" if source == "." else f"{source}/"
        for file in self.files:
            if file == source or file.startswith(top):
                target = self.place / (Path(file).name if file == source else file.removeprefix(top))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.context / file, target)

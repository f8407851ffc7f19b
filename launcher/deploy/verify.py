"""The check of an artifact by its own runtime, in a process that knows nothing of how it was made.

python -m launcher.deploy.verify FOLDER < request.json > report.json
"""

import json
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from launcher.deploy import golden
from launcher.deploy.artifact import load_artifact
from launcher.deploy.card import ArtifactError
from launcher.deploy.split import Judged, Split
from launcher.process.user_errors import USER_ERRORS
from swin_moe.options import from_tree


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the runtime computed."""

    differences: dict[str, float | None]  # by the size of a batch; None is NaN
    chosen: tuple[int, ...] = ()
    labels: tuple[int, ...] = ()

    @property
    def difference(self) -> float:
        """The largest one; infinite where a logit is NaN."""
        return max(float("inf") if value is None else value for value in self.differences.values())

    @property
    def judged(self) -> Judged:
        """What the program said of the split."""
        return Judged(torch.tensor(self.chosen), torch.tensor(self.labels))


def in_new_process(folder: Path, split: Split | None) -> Report:
    """Run an artifact in a new process, on its golden images and a split.

    Args:
        folder: of the artifact.
        split: whose images are classified; None classifies none.

    Raises:
        ArtifactError: it does not run.
    """
    request = json.dumps(asdict(split) if split else None)
    line = [sys.executable, "-m", "launcher.deploy.verify", str(folder)]
    ended = subprocess.run(line, input=request, stdout=subprocess.PIPE, text=True)
    try:
        answer = json.loads(ended.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise ArtifactError(
            f"its runtime ended with status {ended.returncode} before it had run the golden images"
        ) from None
    if error := answer.get("error"):
        raise ArtifactError(error)
    return from_tree(Report, answer)


def in_this_process(folder: Path, split: Split | None) -> Report:
    """What `in_new_process` does, in this process."""
    artifact = load_artifact(folder)
    images = golden.read_golden(folder)
    sizes = golden.batches(artifact.batch)
    found = {str(size): golden.difference(artifact, images, size) for size in sizes}
    differences = {size: None if value != value else value for size, value in found.items()}
    if split is None:
        return Report(differences=differences)
    judged = split.judge("artifact", lambda x: artifact.run(x).logits, artifact.batch[1])
    return Report(
        differences=differences, chosen=tuple(judged.chosen.tolist()), labels=tuple(judged.labels.tolist())
    )


def main() -> None:
    """Read a request, and print the report or the error as JSON in one line."""
    try:
        request = json.load(sys.stdin)
        split = from_tree(Split, request) if request else None
        answer = asdict(in_this_process(Path(sys.argv[1]), split))
    except USER_ERRORS as error:
        answer = {"error": str(error)}
    except KeyboardInterrupt:  # its parent got it too, and says so
        sys.exit(128 + signal.SIGINT)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

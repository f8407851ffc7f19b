"""What tasks with a frozen teacher say of its options. No torch.

The teacher's digest is in the checkpoints of a run, so that its weights may move but not change.
"""

from collections.abc import Mapping, Sequence

from launcher.tasks.spec import Kind

TEACHER_PATHS: Sequence[str] = ("teacher.weights", "teacher.model")
MAY_MOVE: Mapping[str, Kind] = {"teacher.weights": "free"}

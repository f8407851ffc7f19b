"""A run of a few steps, with everything that a resume could lose, and what it must equal."""

from pathlib import Path

from tests.launcher.running import CONFIG, EXACT, EXACT_EVAL, evaluations, only, overrides, steps

DURATION = 12


def line(shards: Path, run_dir: Path, *more: str, ep_size: int = 2) -> list[str]:
    """The command: 12 steps, evaluated and saved on the way."""
    options = (
        f"train.duration={DURATION} steps",
        "train.eval_every=5 steps",
        "checkpoint.every=4 steps",
        "checkpoint.keep_last=9",
        "parallel.collective_timeout_s=60",
        f"parallel.ep_size={ep_size}",
    )
    return ["train", str(CONFIG), "--resume", "auto", *overrides(shards, run_dir, *options, *more)]


def assert_same(run: Path, reference: Path) -> None:
    """Every step and evaluation exactly once, with the very same figures."""
    assert [record["step"] for record in steps(run)] == [record["step"] for record in steps(reference)]
    for found, wanted in zip(steps(run), steps(reference), strict=True):
        assert only(found, EXACT) == only(wanted, EXACT)
    assert [only(found, EXACT_EVAL) for found in evaluations(run)] == [
        only(wanted, EXACT_EVAL) for wanted in evaluations(reference)
    ]

"""What Slurm says of one job; without torch."""

import subprocess


def squeue(job: str, form: str, deadline_s: float = 20.0) -> subprocess.CompletedProcess[str] | None:
    """Ask `squeue` about a job; None where there is none, or it does not answer in time.

    Args:
        job: its number.
        form: what to print: %T the state, %L the time left.
        deadline_s: for the answer.
    """
    command = ["squeue", "--noheader", f"--jobs={job}", f"--format={form}"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=deadline_s)
    except (OSError, subprocess.TimeoutExpired):
        return None

"""A deployment that is ended leaves nothing, and what a killed one left is removed by the next."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from launcher.deploy.folder import remove_stale, unfinished_folder

HOST = socket.gethostname()


def ended_by(number: int, out: Path) -> int:
    """The status of a process that is sent a signal while its folder has a file."""
    if (child := os.fork()) == 0:
        status = 99  # it went on
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)  # nohup ignores SIGHUP
        try:
            with unfinished_folder(out) as folder:
                (folder / "model.bin").write_text("half")
                os.kill(os.getpid(), number)
                time.sleep(60)
        except BaseException as error:
            status = int(error.code or 0) if isinstance(error, SystemExit) else 98
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing(number: int, tmp_path: Path) -> None:
    assert ended_by(number, tmp_path / "out") == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """Of this host and dead; what others make, or another host, stays."""
    assert ended_by(signal.SIGKILL, tmp_path / "out") == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    assert left.name.startswith(f".out.{HOST}.")
    (tmp_path / f".out.elsewhere.{left.name.split('.')[-2]}.tmp").mkdir()
    (tmp_path / f".out.{HOST}.1.tmp").mkdir()  # the first process of this machine is alive
    (tmp_path / f".notes.{HOST}.{left.name.split('.')[-2]}.txt").mkdir()
    (tmp_path / f".card.json.{HOST}.{left.name.split('.')[-2]}.tmp").write_text("a file of another program")
    kept = {path.name for path in tmp_path.iterdir()} - {left.name}
    with unfinished_folder(tmp_path / "out") as folder:
        assert {path.name for path in tmp_path.iterdir()} == kept | {folder.name}
        remove_stale(tmp_path)  # this process holds the lock of its own
        assert folder.is_dir()
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_handlers_are_as_before(tmp_path: Path) -> None:
    taken = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: taken.append(number))
    try:
        with unfinished_folder(tmp_path / "out"):  # a handler of the program's own stays
            os.kill(os.getpid(), signal.SIGTERM)
        assert taken == [signal.SIGTERM]
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with pytest.raises(SystemExit) as ended, unfinished_folder(tmp_path / "out"):
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.code == 128 + signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert list(tmp_path.iterdir()) == []

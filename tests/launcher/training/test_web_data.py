"""Shards on a web server that ignores ranges: `check` says so in one line, and a cache makes them usable."""

import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import torch

from data_shards.pack.sources.registry import synthetic
from data_shards.pack.write import pack
from launcher.cli.program import main
from launcher.config.load import load_config
from launcher.preflight import data
from launcher.preflight.report import ProbeContext
from parallel.ranks.rank import Ranks
from tests.launcher.running import CONFIG, overrides
from tests.web import Patient

pytest.importorskip("aiohttp", reason="pip install 'swin-moe[remote]'")


class Quiet(SimpleHTTPRequestHandler):
    """As `python -m http.server` is: whole files alone."""

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    source = synthetic(64, 16, num_classes=10, image_size=28, seed=0)
    for split in source.splits:
        pack(source, split, tmp_path / "shards" / split)
    return tmp_path / "shards"


@pytest.fixture
def url(shards: Path) -> Iterator[str]:
    httpd = Patient(("127.0.0.1", 0), partial(Quiet, directory=os.fspath(shards)))
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def fix(url: str, split: str) -> str:
    return (
        f"data.{split}: {url}/{split}/*: the server ignores HTTP Range requests, without which no sample can "
        "be read by itself: use a server that answers them, or set data.cache and data.cache_gib, so that "
        "whole shards are fetched"
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_check_and_preflight_refuse_it_without_a_cache(
    split: str, url: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = overrides(shards, tmp_path / "run", f"data.{split}={url}/{split}")
    for command in ("check", "train"):
        assert main([command, str(CONFIG), *options]) == 2
        assert capsys.readouterr().err == f"ConfigError: one thing to correct:\n  {fix(url, split)}\n"
    assert not (tmp_path / "run").exists()
    cached = [*options, f"data.cache={tmp_path}/cache", "data.cache_gib=0.1"]
    assert main(["check", str(CONFIG), *cached]) == 0
    ranks = Ranks(rank=0, world_size=1, local_rank=0, local_world_size=1)
    for arguments, error in ((options, fix(url, split).partition(": ")[2]), (cached, None)):
        config = load_config(str(CONFIG), arguments)
        context = ProbeContext(config=config, ranks=ranks, device=torch.device("cpu"), met_s=0, token="")
        found = data.probe(context)
        assert found is not None
        assert found[f"data.{split}"].get("error") == error
        assert found[f"data.{split}"].get("fatal") is (True if error else None)

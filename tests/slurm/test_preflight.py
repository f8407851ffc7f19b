"""Preflight under srun, on nodes that Slurm tells apart though they are one machine."""

import json
import sys
from pathlib import Path

import pytest

from tests.slurm.conftest import Cluster, run

pytestmark = pytest.mark.slurm

SWIN_MOE = str(Path(sys.executable).with_name("swin-moe"))


def test_links_in_and_between_nodes(cluster: Cluster, tmp_path: Path) -> None:
    sizes = ("--synthetic-train", "256", "--synthetic-val", "64")
    run(SWIN_MOE, "shards", "pack", "--source", "synthetic", "--out", str(tmp_path / "shards"), *sizes)
    data = [f"data.{split}={tmp_path}/shards/{split}" for split in ("train", "val")]
    options = [*data, f"run_dir={tmp_path}/run", "--megabytes=1", f"--json={tmp_path}/found.json"]
    four = ("--nodes=2", "--ntasks=4", "--ntasks-per-node=2", "--time=10")
    said = cluster.run("srun", *four, SWIN_MOE, "preflight", "configs/debug.yaml", *options)
    found = json.loads((tmp_path / "found.json").read_text())
    first, second = found["nodes"][0], found["nodes"][2]
    assert found["nodes"] == [first, first, second, second]
    assert first != second
    pairs = {tuple(rate["ranks"]): rate["scope"] for rate in found["links"] if rate["what"] == "neighbours"}
    inside, between = "in a node", "between nodes"
    assert pairs == {(0, 1): inside, (2, 3): inside, (0, 2): between, (1, 3): between}
    assert 0 < found["checks"]["time limit"]["by_rank"][0]["left_s"] <= 600
    assert f"clocks         {found['checks']['clocks']['message']}" in said

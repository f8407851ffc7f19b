"""Slurm's lists of nodes: as `scontrol show hostnames` prints them, and forms that it does not know."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from parallel.ranks.node_list import expand, hosts
from parallel.ranks.variables import LaunchError
from tests.messages import assert_names

# list, and what scontrol 22.05.8 prints of it
RECORDED = {
    "gpu[07-09,12]": "gpu07 gpu08 gpu09 gpu12",
    "gpu[12,07-09]": "gpu12 gpu07 gpu08 gpu09",
    "gpu7": "gpu7",
    "n1-3": "n1-3",
    "node-a.cluster": "node-a.cluster",
    "n[3]": "n3",
    "n[001]": "n001",
    "n[8-10]": "n8 n9 n10",
    "n[08-10]": "n08 n09 n10",
    "n[099-101]": "n099 n100 n101",
    "n[99-101]": "n99 n100 n101",
    "n[0099-0101]": "n0099 n0100 n0101",
    "n[01-3]": "n01 n02 n03",
    "n[9-011]": "n9 n10 n11",
    "n[0-0]": "n0",
    "n[5,03-04]": "n5 n03 n04",
    "a1,b[2-3],c[08-10]": "a1 b2 b3 c08 c09 c10",
    "a[1-2,5],b": "a1 a2 a5 b",
    "a.b,c.d": "a.b c.d",
    "rack[1-2]n[01-03]": "rack1n01 rack1n02 rack1n03 rack2n01 rack2n02 rack2n03",
    "rack[1,3]-n[1-2],login": "rack1-n1 rack1-n2 rack3-n1 rack3-n2 login",
    "r[0-1]c[2]n[7-8]": "r0c2n7 r0c2n8 r1c2n7 r1c2n8",
    "[1-2]": "1 2",
    "n1, n2": "n1 n2",
    "n[1-2] m": "n1 n2 m",
    " n1": "n1",
    "n1,": "n1",
    "n,,m": "n m",
    "n[2,1]": "n2 n1",
}
# text behind the last bracket, of which that scontrol prints nothing
SUFFIXED = {
    "gpu[01-04]-ib": "gpu01-ib gpu02-ib gpu03-ib gpu04-ib",
    "n[1-2].cluster.local": "n1.cluster.local n2.cluster.local",
    "rack[1-2]n[01-02]-ib": "rack1n01-ib rack1n02-ib rack2n01-ib rack2n02-ib",
    "n[1-2].a,m[3].b,x": "n1.a n2.a m3.b x",
    "a[1-2]b[3]c": "a1b3c a2b3c",
    "n-[1-2]_x": "n-1_x n-2_x",
}
MALFORMED = {
    "n[1-": "'n[1-' is no name with brackets of numbers",
    "n[1-2": "'n[1-2' is no name with brackets of numbers",
    "n1]": "'n1]' is no name with brackets of numbers",
    "n[[1]]": "'n[[1]]' is no name with brackets of numbers",
    "n[1-2]]": "'n[1-2]]' is no name with brackets of numbers",
    "n[a-b]": "'n[a-b]' is no name with brackets of numbers",
    "n[0A-0C]": "'n[0A-0C]' is no name with brackets of numbers",
    "n[3-1]": "[3-1] holds '3-1', which is no number or rising range",
    "n[1-2-3]": "[1-2-3] holds '1-2-3', which is no number or rising range",
    "n[-1]": "[-1] holds '-1', which is no number or rising range",
    "n[1,,2]": "[1,,2] holds '', which is no number or rising range",
    "n[]": "[] holds '', which is no number or rising range",
    "n[1-999999999]": "[1-999999999] has more than 65536 numbers",
    "n[1-1000]m[1-1000]": "'n[1-1000]m[1-1000]' has more than 65536 names",
    "(null)": "'(null)' is no name with brackets of numbers",
    "ok,n;rm": "'n;rm' is no name with brackets of numbers",
    "": "it is empty",
    " , ": "it is empty",
}


@pytest.fixture
def without_scontrol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")


@pytest.mark.usefixtures("without_scontrol")
@pytest.mark.parametrize(("text", "names"), [*RECORDED.items(), *SUFFIXED.items()])
def test_every_form_without_scontrol(text: str, names: str) -> None:
    assert hosts(text, "X") == names.split()


def test_a_list_over_several_lines_of_brackets() -> None:
    assert expand("n[1, 3-4]", "X") == ["n1", "n3", "n4"]  # scontrol makes n03 and n04 of this one
    assert len(expand("r[1-16]n[001-128]", "X")) == 2048


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_list_is_one_line(text: str) -> None:
    with pytest.raises(LaunchError) as error:
        hosts(text, "SLURM_STEP_NODELIST")
    assert_names(str(error.value), f"SLURM_STEP_NODELIST ({text!r})", MALFORMED[text], "MASTER_ADDR")


def scontrol(directory: Path, body: str) -> None:
    """A scontrol that runs a line of shell."""
    (directory / "scontrol").write_text(f"#!/bin/sh\n{body}\n")
    (directory / "scontrol").chmod(0o755)


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ('[ "$*" = "show hostnames n[1-2]" ] && printf "b\\na\\n"', ["b", "a"]),  # Slurm's order is Slurm's
        ("exit 1", ["n1", "n2"]),
        ("true", ["n1", "n2"]),
        ("echo 'n]'", ["n1", "n2"]),
        ("echo scontrol: error: no configuration source", ["n1", "n2"]),
        ("exec sleep 60", ["n1", "n2"]),
    ],
)
def test_scontrol_is_asked_and_its_failure_does_not_matter(
    body: str, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol(tmp_path, body)
    monkeypatch.setattr("parallel.ranks.node_list.SCONTROL_S", 0.5)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert hosts("n[1-2]", "X") == names


@pytest.mark.skipif(shutil.which("scontrol") is None, reason="apt-get install slurm-client")
def test_scontrol_of_this_machine_prints_the_same(tmp_path: Path) -> None:
    """With a configuration of its own, which needs no cluster."""
    configuration = tmp_path / "slurm.conf"
    configuration.write_text("ClusterName=test\nSlurmctldHost=localhost\nNodeName=n1\n")
    for text, names in RECORDED.items():
        command = ["scontrol", "show", "hostnames", text]
        done = subprocess.run(
            command, env={**os.environ, "SLURM_CONF": str(configuration)}, capture_output=True, text=True
        )
        assert done.stdout.split() == names.split(), text

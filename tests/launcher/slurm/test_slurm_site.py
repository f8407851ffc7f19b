"""The file of a site: every error at once, and what wins over what."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.config.load import ConfigError
from launcher.config.time_limits import limit_s
from launcher.slurm.site import ContainerConfig, SiteConfig, load_site
from launcher.slurm.submission import Submission, dump_submission, merged, read_submission


def site_of(tmp_path: Path, text: str) -> SiteConfig:
    (tmp_path / "site.yaml").write_text(text)
    return load_site({"SWIN_MOE_SITE": str(tmp_path / "site.yaml")})


def test_all_errors_at_once_with_the_nearest_option(tmp_path: Path) -> None:
    text = "partitoin: gpu\nsignal_s: 5 s\ngpu_directive: gpus\ncontainer: {runtime: docker}\nmodules: cuda\n"
    with pytest.raises(ConfigError) as error:
        site_of(tmp_path, text)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{tmp_path}/site.yaml is not a valid SiteConfig:"
    assert lines[1] == "  partitoin: no such option; did you mean partition?"
    for name in ("signal_s", "gpu_directive", "container.runtime", "modules"):
        assert any(line.startswith(f"  {name}: ") for line in lines), name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("signal_s: 10", "signal_s (10) must be at least 30"),
        ("requeue_limit: -1", "requeue_limit (-1) must be at least 0"),
        ("cpus_per_rank: 0", "cpus_per_rank (0) must be at least 1"),
        ("signal_s: 70000", "signal_s (70000) must be at most 65535"),
        ("time: 1.5", "time: Input should be a valid"),
        ("time: true", "time: Input should be a valid"),
        ("time: 1 day", "time ('1 day') must be a time limit of Slurm: 30, 30:00, 2:00:00, 3-12, 3-12:00"),
        ("mem: lots", "mem ('lots') must be memory of a node, such as 200G, 2048M, or 0 for all of it"),
        ("mem: -1", "mem (-1) must be memory of a node"),
        ("environment: {'A;B': x}", "'A;B' cannot be the name of a variable"),
        ("sbatch: [exclusive]", "'exclusive' must be a long option"),
        ("environment: {A: 1}", "environment.A: Input should be a valid string (got 1)"),
        ("- a", "must hold a mapping of options"),
    ],
)
def test_rules(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        site_of(tmp_path, text)
    assert message in str(error.value)


# a limit as it stands in site.yaml, as Slurm's directive has it, and its seconds; sbatch(1), --time
LIMITS = [
    ("30", "00:30:00", 1800),
    ("90:30", "01:30:30", 5460),  # Slurm keeps whole minutes
    ("1:30:00", "01:30:00", 5400),  # YAML 1.1 would read 5400
    ("24:00:00", "1-00:00:00", 86400),
    ("0:90:00", "01:30:00", 5400),
    ("1-2", "1-02:00:00", 93600),
    ("1-2:3", "1-02:03:00", 93780),
    ("1-02:03:04", "1-02:03:04", 93840),
    ("'2:00:00'", "02:00:00", 7200),
    ("unlimited", "UNLIMITED", math.inf),
    ("INFINITE", "UNLIMITED", math.inf),
    ("0", "UNLIMITED", math.inf),
    ("-1", "UNLIMITED", math.inf),
    ("null", None, math.inf),
]


@pytest.mark.parametrize(("text", "directive", "seconds"), LIMITS)
def test_every_form_of_a_time_limit(tmp_path: Path, text: str, directive: str | None, seconds: float) -> None:
    site = site_of(tmp_path, f"time: {text}")
    assert (site.time, limit_s(site.time)) == (directive, seconds)
    assert replace(site, partition="gpu").time == directive  # as `resume` reads it back


@pytest.mark.parametrize(
    "text", ["", "1:2:3:4", "1-2-3", "1:", ":30", "1-", "-5", "abc", "1 day", "1e3", "１"]
)
def test_what_is_no_time_limit(text: str) -> None:
    with pytest.raises(ValueError, match="must be a time limit of Slurm"):
        SiteConfig(time=text)


@pytest.mark.parametrize(
    ("signal_s", "time", "passes"),
    [
        (120, "3", True),
        (120, "2:01", True),  # three minutes, to Slurm
        (120, "2", False),
        (60, "2", True),
        (60, "1", False),
        (7200, "2:00:00", False),
        (7200, "UNLIMITED", True),
        (7200, None, True),
    ],
)
def test_a_limit_leaves_time_before_the_signal(signal_s: int, time: str | None, passes: bool) -> None:
    submission = Submission(config="c", directory="d", site=SiteConfig(time=time, signal_s=signal_s))
    if passes:
        submission.check(Path("/runs/a"))
        return
    with pytest.raises(ConfigError, match=rf"--time \(.*\) must be at least .* signal_s \({signal_s} s\)"):
        submission.check(Path("/runs/a"))


@pytest.mark.parametrize(
    ("text", "directive"),
    [("200G", "200G"), ("2048m", "2048M"), ("2GB", "2G"), ("4000", "4000M"), ("0", "0"), ("1T", "1T")],
)
def test_memory(tmp_path: Path, text: str, directive: str) -> None:
    assert site_of(tmp_path, f"mem: {text}").mem == directive


def test_where_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_site({}) == SiteConfig()
    place = tmp_path / ".config" / "swin-moe" / "site.yaml"
    place.parent.mkdir(parents=True)
    place.write_text("partition: home\n")
    assert load_site({}).partition == "home"
    assert site_of(tmp_path, "") == SiteConfig()
    with pytest.raises(ConfigError, match="none.yaml"):
        load_site({"SWIN_MOE_SITE": str(tmp_path / "none.yaml")})


def test_the_command_line_wins_over_the_site_and_the_site_over_the_defaults(tmp_path: Path) -> None:
    site = site_of(
        tmp_path, "partition: gpu\nmem: 10G\nmodules: [a]\ncontainer: {runtime: pyxis, image: x}\n"
    )
    given = {"partition": "cpu", "mem": None, "container": "y", "nodes": "3", "elastic": None}
    found = merged(given, Submission(config="c", directory="d", site=site))
    assert (found.site.partition, found.site.mem, found.site.signal_s) == ("cpu", "10G", 120)
    assert found.site.container == ContainerConfig(runtime="pyxis", image="y")
    assert (found.nodes, found.elastic, found.site.modules) == ("3", False, ("a",))


@pytest.mark.parametrize(("image", "runtime"), [("a/b.sif", "apptainer"), ("nvcr.io#x", "pyxis")])
def test_an_image_without_a_runtime(image: str, runtime: str) -> None:
    found = merged({"container": image}, Submission(config="c", directory="d")).site.container
    assert found is not None
    assert (found.runtime, found.image) == (runtime, image)


def test_a_submission_is_read_back_but_for_its_secrets(tmp_path: Path) -> None:
    site = SiteConfig(environment={"KEY": "secret"}, modules=("a b",), time="1:00:00", container=None)
    whole = Submission(config="c", directory="d", nodes="2-4", elastic=True, site=site, tasks=(("a=1",),))
    text = dump_submission(whole)
    assert "secret" not in text
    (tmp_path / "submission.json").write_text(text)
    found = read_submission(tmp_path / "submission.json")
    assert found == merged({}, found)
    assert (found.nodes, found.tasks, found.site.time) == ("2-4", (("a=1",),), "01:00:00")


@pytest.mark.parametrize(
    ("nodes", "elastic", "wanted"), [("4", False, (4, 4)), ("4", True, (4, 4)), ("2-4", True, (2, 4))]
)
def test_numbers_of_nodes(nodes: str, elastic: bool, wanted: tuple[int, int]) -> None:
    assert Submission(config="c", directory="d", nodes=nodes, elastic=elastic).node_range == wanted


@pytest.mark.parametrize("nodes", ["2-4", "0", "4-2", "a", "", "1,3"])
def test_no_numbers_of_nodes(nodes: str) -> None:
    with pytest.raises(ConfigError, match="--nodes"):
        print(Submission(config="c", directory="d", nodes=nodes).node_range)

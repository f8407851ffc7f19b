"""The file of a site: every error at once, and what wins over what."""

from pathlib import Path

import pytest

from launcher.config import ConfigError
from launcher.slurm.site import ContainerConfig, SiteConfig, load_site
from launcher.slurm.submission import Submission, dump_submission, ordered, read_submission


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
        ("environment: {'A;B': x}", "'A;B' cannot be the name of a variable"),
        ("sbatch: [exclusive]", "'exclusive' must be a long option"),
        ("environment: {A: 1}", "environment: Input should be a valid string (got 1)"),
        ("- a", "must hold a mapping of options"),
    ],
)
def test_rules(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        site_of(tmp_path, text)
    assert message in str(error.value)


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
    found = ordered(given, Submission(config="c", directory="d", site=site))
    assert (found.site.partition, found.site.mem, found.site.signal_s) == ("cpu", "10G", 120)
    assert found.site.container == ContainerConfig(runtime="pyxis", image="y")
    assert (found.nodes, found.elastic, found.site.modules) == ("3", False, ("a",))


@pytest.mark.parametrize(("image", "runtime"), [("a/b.sif", "apptainer"), ("nvcr.io#x", "pyxis")])
def test_an_image_without_a_runtime(image: str, runtime: str) -> None:
    found = ordered({"container": image}, Submission(config="c", directory="d")).site.container
    assert found is not None
    assert (found.runtime, found.image) == (runtime, image)


def test_a_submission_is_read_back_but_for_its_secrets(tmp_path: Path) -> None:
    site = SiteConfig(environment={"KEY": "secret"}, modules=("a b",), time="1:00", container=None)
    whole = Submission(config="c", directory="d", nodes="2-4", elastic=True, site=site, tasks=(("a=1",),))
    text = dump_submission(whole)
    assert "secret" not in text
    (tmp_path / "submission.json").write_text(text)
    found = read_submission(tmp_path / "submission.json")
    assert found == ordered({}, found)
    assert (found.nodes, found.tasks, found.site.time) == ("2-4", (("a=1",),), "1:00")  # 1:00 is no number


@pytest.mark.parametrize(
    ("nodes", "elastic", "wanted"), [("4", False, (4, 4)), ("4", True, (4, 4)), ("2-4", True, (2, 4))]
)
def test_numbers_of_nodes(nodes: str, elastic: bool, wanted: tuple[int, int]) -> None:
    assert Submission(config="c", directory="d", nodes=nodes, elastic=elastic).node_range == wanted


@pytest.mark.parametrize("nodes", ["2-4", "0", "4-2", "a", "", "1,3"])
def test_no_numbers_of_nodes(nodes: str) -> None:
    with pytest.raises(ConfigError, match="--nodes"):
        print(Submission(config="c", directory="d", nodes=nodes).node_range)

"""What is found out on the login node, so that a run that cannot start never reaches the queue."""

from pathlib import Path

from launcher.config.load import ConfigError
from launcher.config.schema import RunConfig
from launcher.slurm.submission import Submission
from launcher.validation.elastic import replan
from launcher.validation.resume import check_resume
from launcher.validation.rules import check


def fitted(config: RunConfig, submission: Submission, nodes: int) -> RunConfig:
    """The configuration as the ranks of so many nodes will train it."""
    if not submission.elastic:
        return config
    return replan(config, submission.ranks_a_node * nodes, submission.ranks_a_node)[0]


def node_counts(config: RunConfig, submission: Submission) -> list[int]:
    """The numbers of nodes, ascending, on which the run can train.

    An elastic run must fit at both ends of its range; between them counts what fits.

    Raises:
        ConfigError: with all that is wrong at the most nodes, or at the fewest.
    """
    low, high = submission.node_range
    for nodes in dict.fromkeys((high, low)):
        _check(config, submission, nodes)
    between = [nodes for nodes in range(low + 1, high) if _fits(config, submission, nodes)]
    return sorted({low, *between, high})


def check_earlier(config: RunConfig, submission: Submission) -> None:
    """Raise ConfigError where the run directory holds checkpoints of another configuration."""
    check_resume(config, Path(config.run_dir) / "checkpoints", allow=submission.allow_change)


def layout(config: RunConfig, submission: Submission) -> str:
    """How the run will lie on its nodes, for one line."""
    low, high = submission.node_range
    world_size = high * submission.ranks_a_node
    config = fitted(config, submission, high)
    ep_size, train = config.parallel.ep_size, config.train
    nodes = f"{high} node{'s' * (high > 1)}" if low == high else f"{low} to {high} nodes"
    ranks = f"{submission.ranks_a_node} rank{'s' * (submission.ranks_a_node > 1)}"
    at_most = "" if low == high else f"on {high}: "
    accumulation = train.grad_accum_steps(world_size)
    return (
        f"{nodes} x {ranks}; {at_most}world {world_size} = expert-parallel {ep_size} x data-parallel "
        f"{world_size // ep_size}, {accumulation} x micro-batch {train.micro_batch_size} a step"
    )


def _check(config: RunConfig, submission: Submission, nodes: int) -> None:
    try:
        ranks = [submission.ranks_a_node] * nodes
        check(fitted(config, submission, nodes), sum(ranks), ranks)
    except ValueError as error:
        at = f"on {nodes} nodes: " if submission.elastic else ""
        raise ConfigError(f"{at}{error}") from error


def _fits(config: RunConfig, submission: Submission, nodes: int) -> bool:
    try:
        _check(config, submission, nodes)
    except ConfigError:
        return False
    return True

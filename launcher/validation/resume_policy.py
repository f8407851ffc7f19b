"""What may change when a run goes on from a checkpoint: every option of a configuration is in a class.

    fixed      the checkpoint is of this model and this order of samples; a run with another is another run
    training   changes what the next steps compute: needs `--allow-change`, and is said
    free       changes no result, but for the rounding of sums: layout, intervals, threads, places

An entry stands for an option, or for all below it that have no entry of their own. The options of a task
are in the classes that its spec gives them, else fixed.
`tests/launcher/validation/test_changes.py` walks over every option, so that a new one must be given its
class here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from launcher.config.schema import RunConfig
from launcher.config.task_sections import config_class, is_task_section
from launcher.tasks.registry import task_spec
from launcher.tasks.spec import Kind
from parallel.checkpoint.commit import committed, latest
from parallel.checkpoint.manifest import MANIFEST, CheckpointError, read_manifest
from swin_moe.renamed import RenamedError, current_names
from swin_moe.sizes import sides
from swin_moe.yaml_files import YamlError, parse_yaml

Tree = Mapping[str, Any]

FIXED = """
    task seed
    model.image_size model.patch_size model.in_chans model.num_classes model.embed_dim model.depths
    model.num_heads model.window_size model.frames model.patch_frames model.window_frames
    model.window_padding model.pretrained_window_sizes model.mlp_ratio
    model.qkv_bias model.mlp_fc2_bias model.attention model.position_bias model.norm
    model.extra_norm_period model.local_relation model.lr_net
    model.moe model.moe.blocks model.moe.num_experts model.moe.top_k model.moe.router
    model.moe.batch_prioritized model.moe.normalize_gates model.moe.compat model.moe.slots_per_expert
    model.moe.expert_activation model.moe.shared_expert
"""
TRAINING = """
    optim
    model.drop_rate model.head_dropout model.drop_path_rate
    model.lr_net.norm_group_images model.lr_net.norm_frozen
    model.moe.capacity_factor model.moe.eval_capacity_factor model.moe.routing_group_images
    model.moe.gate_noise model.moe.balance_loss model.moe.load_balance_weight model.moe.z_loss_weight
    model.moe.bias_update_rate model.moe.expert_dropout
    data.crop_scale data.crop_ratio data.flip_probability data.eval_crop data.mean data.std data.augment
    train.duration train.global_batch_size train.precision train.ema_decay
    train.ema_warmup train.ema_warmup_gamma train.ema_warmup_power
    train.spike_factor train.spike_action
    parallel.expert_exchange.communication_dtype
"""
FREE = """
    run_dir
    model.init_std model.activation_checkpoint_every model.attention_chunk
    model.moe.recompute_activation model.moe.backend
    data.train data.val data.match_classes data.decode_threads data.fetch_threads data.bad_samples
    data.retry_s data.cache data.cache_gib
    train.micro_batch_size train.eval_batch_size train.eval_every train.eval_first train.early_stop
    train.moe_load_every train.compile train.profile train.max_skipped_steps
    train.pretrained train.pretrained_head train.pretrained_require train.upcycle_noise
    parallel checkpoint tracking deepspeed
"""
CLASSES: dict[Kind, str] = {"fixed": FIXED, "training": TRAINING, "free": FREE}
KINDS: dict[str, Kind] = {name: kind for kind, names in CLASSES.items() for name in names.split()}


@dataclass(frozen=True)
class OptionChange:
    """One option that a checkpoint has otherwise."""

    name: str
    before: Any
    now: Any

    @property
    def kind(self) -> Kind:
        """What the change needs; an option that this version does not know has had some effect."""
        return kind_of(self.name) or "training"

    def __str__(self) -> str:
        return f"{self.name}: {shown(self.before)} in the checkpoint, {shown(self.now)} now"


def kind_of(name: str) -> Kind | None:
    """The class of an option, by its own entry or by that of a section above it."""
    section, _, option = name.partition(".")
    if is_task_section(section):
        return task_spec(section).on_change.get(option, "fixed")
    while name:
        if name in KINDS:
            return KINDS[name]
        name = name.rpartition(".")[0]
    return None


def changed_options(before: Tree, now: Tree) -> list[OptionChange]:
    """The options that differ between two configurations; one that the first does not know has its default.

    An optional section that only one of them has is one change. Sections of other tasks do not count.

    Raises:
        TaskError: the task of the second one is not here.
    """
    kind = config_class(str(now.get("task", RunConfig.task)))
    known = {field.name for field in fields(kind)}
    before = {key: value for key, value in before.items() if key in known or not is_task_section(key)}
    return list(_differences(kind, before, now, ""))


def configuration(manifest: Mapping[str, Any]) -> Tree:
    """The configuration of the run that wrote a checkpoint.

    Raises:
        CheckpointError: the manifest has none, or one that cannot be read.
    """
    try:
        tree = current_names(parse_yaml(manifest["config"]), notice=False)
    except (KeyError, TypeError, YamlError, RenamedError) as error:
        raise CheckpointError(f"the manifest holds no configuration of its run ({error})") from None
    if not isinstance(tree, dict):
        raise CheckpointError("the configuration in the manifest is no mapping of options")
    return tree


def recorded_classes(manifest: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes that a checkpoint's model was trained on; None where it does not say.

    Raises:
        CheckpointError: they are no list of names.
    """
    names = manifest.get("classes")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError("the classes in the manifest are no list of names")
    return tuple(names)


def newest_manifest(checkpoints: Path) -> tuple[Path, dict[str, Any]] | None:
    """The manifest of the checkpoint that a run would go on from: the newest that can be read."""
    try:
        paths = [latest(checkpoints)]
    except CheckpointError:
        paths = []
    paths += reversed(committed(checkpoints))
    for path in paths:
        if path is not None and (path / MANIFEST).is_file():
            try:
                return path, read_manifest(path)
            except CheckpointError:
                continue
    return None


def _differences(section: type, before: Tree, now: Tree, prefix: str) -> Iterator[OptionChange]:
    hints, known = get_type_hints(section), {field.name: field for field in fields(section)}
    for key in [*known, *(key for key in before if key not in known)]:
        name, new = f"{prefix}{key}", now.get(key)
        old = before[key] if key in before else _default(section, key)
        below = section_of(hints.get(key))
        if below and isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(below, old, new, f"{name}.")
        elif not _is_same(name, old, new):
            yield OptionChange(name, old, new)


def _is_same(name: str, old: Any, new: Any) -> bool:
    """Whether two values of an option mean the same; a square may be written as one number or as two."""
    is_size = name == "model.image_size" and None not in (old, new)
    return bool(old == new or (is_size and sides(old) == sides(new)))


def _default(section: type, key: str) -> Any:
    """What an option meant before there was one: as YAML gives it, a tuple is a list."""
    field = next(field for field in fields(section) if field.name == key)
    value = field.default_factory() if callable(field.default_factory) else field.default
    if is_dataclass(value):
        return {f.name: _default(type(value), f.name) for f in fields(value)}
    return list(value) if isinstance(value, tuple) else value


def section_of(hint: Any) -> type | None:
    """The dataclass that a type is, or may be."""
    return next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None)  # type: ignore[return-value]


def shown(value: Any) -> str:
    """A value for one line; a whole section by its name."""
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return str(list(value))
    return "none" if value is None else str(value)

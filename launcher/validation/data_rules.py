"""What the data of a run must have: members, parts, a cache that holds a shard, classes."""

from data_shards.errors import DataError
from data_shards.format.fields import IMAGE_AND_LABEL, Field
from data_shards.format.index import Manifest
from data_shards.order.sampling import TrainSampling
from data_shards.order.weighted import check_alike
from data_shards.storage.cache import least_bytes
from data_shards.storage.manifest import checked_manifest
from data_shards.stream.mixed import share_out
from data_shards.stream.patterns import expand, redacted
from data_shards.stream.transform import Transform
from launcher.config.schema import RunConfig
from launcher.tasks.registry import task_spec
from launcher.tasks.spec import DataSpec
from launcher.validation.label_spaces import class_errors
from launcher.validation.run_rules import task_errors
from launcher.validation.train_sets import mixture_of


def train_sampling(config: RunConfig) -> TrainSampling:
    """The order and the batches of a run's training stream."""
    return TrainSampling(
        seed=config.seed,
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
    )


def data_errors(config: RunConfig) -> tuple[list[str], int | None]:
    """What is wrong with the shards, and the images of an epoch, where they are known."""
    data, spec = config.data, task_spec(config.task)
    try:
        trained = spec.train_data(config)
        evaluated = spec.eval_data(config) if data.val_places else trained
    except DataError as error:  # of options that make no transform; the rules of the task name them
        return [] if task_errors(config) else [f"task={config.task}: {error}"], None
    errors, manifests = _mix_errors(config, trained), dict[str, Manifest]()
    for option, place in {**data.train_places, **data.val_places}.items():
        of_task = trained if option in data.train_places else evaluated
        try:
            if data.trains_on_tars and option in data.train_places:
                expand(place)
                errors += _tar_errors(config, of_task)
                continue
            manifests[option] = _manifest(config, place, of_task.transform, of_task.members)
            errors += _cache_errors(config, option, manifests[option])
        except DataError as error:
            errors.append(f"{option}: {error}")
    errors += [*class_errors(config, manifests), *spec.check_data(config, manifests)]
    train = {option: manifests[option] for option in data.train_places if option in manifests}
    if data.trains_on_tars or len(train) < len(data.train_places):
        return errors, None
    more, num_samples = _weight_errors(config, train, trained)
    return errors + more, num_samples


def _weight_errors(
    config: RunConfig, train: dict[str, Manifest], of_task: DataSpec
) -> tuple[list[str], int | None]:
    """Why the training sets cannot stand in one batch, classes aside, and the images of an epoch."""
    try:
        check_alike(train, of_task.transform.fields, None)
        return [], mixture_of(config.data, train).samples
    except DataError as error:
        return [f"data.train: {error}"], None


def _manifest(
    config: RunConfig, split: str, transform: Transform, wanted: tuple[Field, ...] = IMAGE_AND_LABEL
) -> Manifest:
    """The manifest of a split whose samples have what the task reads; DataError otherwise."""
    manifest = checked_manifest(split, cached=config.data.cache is not None, wanted=wanted)
    manifest.check_members(transform.fields, redacted(split), f"task={config.task}")
    return manifest


def _mix_errors(config: RunConfig, data: DataSpec) -> list[str]:
    """What is wrong with the splits that are trained on beside data.train."""
    if not data.beside:
        return []
    errors = _share_errors(config, data)
    if config.data.trains_on_tars:
        (place,) = config.data.train_places.values()
        errors.append(
            f"data.train ({redacted(place)}) must be shards with a manifest, as "
            f"task={config.task} reads {', '.join(data.beside)} beside it; `swin-moe shards index` writes one"
        )
    for part in data.beside.values():
        try:
            errors += _cache_errors(config, part.option, _manifest(config, part.split, part.transform))
        except DataError as error:
            errors.append(f"{part.option}: {error}")
    return errors


def _share_errors(config: RunConfig, data: DataSpec) -> list[str]:
    """The shares must divide a micro-batch, and routing groups the samples of each part in it."""
    try:
        parts = share_out(train_sampling(config), data.shares)
    except DataError as error:
        return [f"train.{error}"]
    moe, micro = config.model.moe, config.train.micro_batch_size
    groups = moe.routing_group_images if moe else 1
    return [
        f"model.moe.routing_group_images ({groups}) must divide the {part.micro_batch_size} samples of "
        f"{name} in a micro-batch of {micro}"
        for name, part in parts.items()
        if part.micro_batch_size % groups
    ]


def _tar_errors(config: RunConfig, data: DataSpec) -> list[str]:
    """Tars without a manifest must have the members that the task reads."""
    known = [field.name for field in data.members]
    (place,) = config.data.train_places.values()
    return [
        f"data.train ({redacted(place)}): task={config.task} reads the member {name!r}, which it "
        "does not find in tars without a manifest: `swin-moe shards index` writes one"
        for name in data.transform.fields
        if name not in known
    ]


def _cache_errors(config: RunConfig, option: str, manifest: Manifest) -> list[str]:
    """The cache must hold a shard."""
    least, gib = least_bytes(manifest), config.data.cache_gib
    if config.data.cache is None or int(gib * 2**30) >= least:
        return []
    return [f"data.cache_gib ({gib}) must be at least {least / 2**30:.3g}, the largest shard of {option}"]

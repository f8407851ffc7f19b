"""A teacher beside the engine: the moving average worked out in plain PyTorch, at every stage and layout.

Every layout trains the same steps of SGD, of which one is skipped. What a checkpoint holds is the same bits
on every layout, and so is what the same layout makes of it. Masters of different layouts differ by the
rounding of summed gradients, and the averages with them.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parallel.checkpoint.load import load_checkpoint, load_weights, missing_kinds
from parallel.checkpoint.manifest import CheckpointError
from parallel.experts.names import EMA, MASTER, TEACHER
from parallel.experts.placement import experts_of
from parallel.ranks.collectives import gather_objects
from parallel.ranks.mesh import Mesh, ParallelDims, build_mesh
from parallel.zero import state_gather
from parallel.zero.errors import TeacherError
from parallel.zero.master_weights import MasterWeights
from parallel.zero.memory import teacher_bytes
from parallel.zero.teacher import (
    FrozenTeacher,
    MovingAverageTeacher,
    weights_digest,
)
from swin_moe.backbone.model import build_model
from tests.distributed import run_on_ranks
from tests.models import randn, randomize
from tests.parallel.checkpoint.saving import save_checkpoint
from tests.parallel.resuming import state_of
from tests.parallel.training import (
    BATCH,
    CLASSES,
    DTYPES,
    EXPERTS,
    Layout,
    Run,
    batch,
    by_global_name,
    gather_tensors,
    model_config,
    replaced,
)

STEPS, SKIPPED, SAVED = 5, 2, 3
ONE = Layout(micro=16, optimizer="sgd")
TWO = replace(ONE, world=2, micro=4)
FIRST, LAST = replace(TWO, ep=2, stage=1), replace(TWO, ep=2, stage=3, always_cut=True)
LAYOUTS = [ONE, FIRST, replace(TWO, ep=1, stage=2, precision="bf16")]
RESUMED = [(FIRST, FIRST), (FIRST, LAST), (FIRST, ONE)]  # saved by, resumed by; the matrix has the others
MATRIX = [
    *(replace(ONE, stage=stage) for stage in (1, 2, 3)),
    *(replace(TWO, ep=ep, stage=stage) for ep in (1, 2) for stage in (0, 1, 2, 3)),
    *(replace(TWO, world=4, ep=ep, stage=stage) for ep in (1, 2, 4) for stage in (0, 1, 2, 3)),
    *(replace(TWO, world=4, ep=4, slices=2, stage=stage) for stage in (1, 3)),
    *(replace(TWO, ep=2, stage=stage, precision="bf16") for stage in (0, 1, 2, 3)),
]
SAVES = replace(TWO, world=4, ep=2, stage=2)  # of the matrix


def momentum(step: int) -> float:
    return 0.4 + 0.1 * step


@dataclass(frozen=True, kw_only=True)
class Found:
    """What rank 0 saw of a run; every tensor by its global name."""

    saved: dict[str, Tensor]  # the fp32 average after `SAVED` steps, of a run that saved or was resumed
    after: dict[str, Tensor]  # at the end
    moved: list[bool]  # by each step
    logits: Tensor  # of the teacher for one batch, at the end


class Student:
    """A run with a teacher, and the moving average of this rank's parameters in plain PyTorch, in fp64."""

    def __init__(self, layout: Layout) -> None:
        self.run = Run.start(layout, accept=lambda norm: self.run.next_step != SKIPPED)
        ema = (lambda step: 0.5) if layout == LAST else None  # both averages beside each other
        self.masters = MasterWeights(self.run.engine.deepspeed, ema)
        module = build_model(model_config(), seed=99, mesh=self.run.mesh, exchange=layout.exchange)
        with replaced(state_gather, "GATHER_BYTES", 10_000):  # several chunks
            self.teacher = MovingAverageTeacher(module, self.run.engine, self.masters, momentum)
        self.values = self.read()
        self.plain = [values[MASTER].double() for values in self.values]  # it starts at the masters

    def read(self) -> list[dict[str, Tensor]]:
        """Master and average of each parameter; copies."""
        parameters = self.run.engine.module.parameters()
        read = [self.masters.read(parameter, (MASTER, TEACHER)) for parameter in parameters]
        return [{kind: value.clone() for kind, value in values.items()} for values in read]

    def train(self, steps: int) -> list[bool]:
        """Take steps and follow them; returns whether each moved the average."""
        moved = []
        for step in range(self.run.next_step, self.run.next_step + steps):
            before = self.values
            self.run.engine.train()
            self.run.train(1)
            self.teacher.update(step + 1)
            self.masters.update_ema(step + 1)
            self.values = self.read()
            self.check(step)
            pairs = zip(before, self.values, strict=True)
            moved.append(any(not torch.equal(one[TEACHER], two[TEACHER]) for one, two in pairs))
        return moved

    def check(self, step: int) -> None:
        """The average is the plain one, and the teacher's weights are the average in its precision."""
        names = [name for name, _ in self.run.engine.module.named_parameters()]
        own = dict(self.teacher.module.named_parameters())
        for name, plain, value in zip(names, self.plain, self.values, strict=True):
            if step != SKIPPED:
                plain.lerp_(value[MASTER].double(), 1 - momentum(step + 1))
            torch.testing.assert_close(value[TEACHER].double(), plain, rtol=0, atol=1e-6, msg=name)
            assert torch.equal(own[name], value[TEACHER].to(own[name].dtype)), name

    def averages(self) -> dict[str, Tensor]:
        return of_kind(state_of(self.masters), TEACHER)

    def logits(self) -> Tensor:
        """Of all ranks, each for its part of a batch."""
        images, _, keys = batch(STEPS)
        layout, count = self.run.layout, BATCH // self.run.layout.world
        rows = slice(self.run.mesh.rank * count, (self.run.mesh.rank + 1) * count)
        logits = self.teacher(images[rows].to(DTYPES[layout.precision]), keys[rows]).logits
        assert not self.teacher.module.training
        assert not logits.requires_grad
        return torch.cat(gather_objects(logits.float()))


def whole(module: nn.Module) -> dict[str, Tensor]:
    """All parameters of a model by global name; the ranks that hold the same one agree."""
    mine: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        mine |= by_global_name(name, parameter, parameter)
    found: dict[str, Tensor] = {}
    for part in gather_tensors(mine):
        for name, value in part.items():
            assert torch.equal(value, found.setdefault(name, value)), name
    return found


def of_kind(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.partition("/")[2]: value for name, value in state.items() if name.startswith(f"{kind}/")}


def follow(layouts: list[Layout], saves: Layout, directory: Path, resumes: list[Layout]) -> list[Found]:
    """Train each layout; save one after `SAVED` steps; resume what it saved by others."""
    found = []
    for layout in layouts:
        student = Student(layout)
        moved, saved = student.train(SAVED), {}
        if layout == saves:
            saved = student.averages()
            record = {"state": {"teacher": student.teacher.state_dict()}}
            save_checkpoint(directory, SAVED, student.masters, student.run.mesh, record)
        found.append(found_in(student, saved, moved))
    for layout in resumes:
        student = Student(layout)
        manifest = load_checkpoint(directory / f"step-{SAVED:08d}", student.masters, EXPERTS)
        student.teacher.load_state_dict(manifest["state"]["teacher"])
        student.run.next_step = manifest["step"]
        student.values = student.read()
        student.plain = [values[TEACHER].double() for values in student.values]
        student.check(SKIPPED)  # of its weights alone
        found.append(found_in(student, student.averages(), []))
    return found


def found_in(student: Student, saved: dict[str, Tensor], moved: list[bool]) -> Found:
    """Take the steps that are left."""
    moved = moved + student.train(STEPS - SAVED)
    return Found(saved=saved, after=student.averages(), moved=moved, logits=student.logits())


Runs = tuple[dict[Layout, Found], dict[Layout, Found]]  # from the beginning, resumed


def runs_of(layouts: list[Layout], saves: Layout, directory: Path, resumes: list[Layout]) -> Runs:
    runs: Runs = ({}, {})
    for world in sorted({layout.world for layout in layouts}, reverse=True):
        own, again = ([one for one in some if one.world == world] for some in (layouts, resumes))
        found = run_on_ranks(follow, world, own, saves, directory, again, timeout_s=600)[0]
        runs[0].update(zip(own, found, strict=False))
        runs[1].update(zip(again, found[len(own) :], strict=True))
    return runs


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def runs(checkpoints: Path) -> Runs:
    return runs_of(LAYOUTS, FIRST, checkpoints, [target for _, target in RESUMED])


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return runs_of(MATRIX, SAVES, tmp_path_factory.mktemp("matrix"), MATRIX)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_teacher_is_a_plain_moving_average_of_the_masters(layout: Layout, runs: Runs) -> None:
    check_average(runs[0][layout], layout, runs[0][ONE])


@pytest.mark.slow
@pytest.mark.parametrize("layout", MATRIX, ids=str)
def test_the_teacher_is_the_same_on_every_layout(layout: Layout, matrix: Runs, runs: Runs) -> None:
    check_average(matrix[0][layout], layout, runs[0][ONE])
    check_resumed(matrix[1][layout], layout, SAVES, matrix)


def check_average(found: Found, layout: Layout, reference: Found) -> None:
    """Beside what `Student.check` has held on every rank."""
    assert found.moved == [step != SKIPPED for step in range(STEPS)]
    if layout.precision == "fp32":
        assert close(found.after, reference.after)
        torch.testing.assert_close(found.logits, reference.logits, rtol=1e-4, atol=1e-5)


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Within 1e-6: the summed gradients of two layouts are rounded differently."""
    assert found.keys() == expected.keys()
    return all(torch.allclose(found[name], expected[name], rtol=0, atol=1e-6) for name in expected)


def test_it_computes_with_the_average(runs: Runs) -> None:
    images, _, keys = batch(STEPS)
    plain, average = build_model(model_config(), seed=7).eval(), runs[0][FIRST].after
    for name, parameter in plain.named_parameters():
        pieces = by_global_name(name, parameter, parameter)
        values = [average[piece] for piece in pieces]
        parameter.data = values[0] if experts_of(parameter) is None else torch.stack(values)
    torch.testing.assert_close(runs[0][FIRST].logits, plain(images, keys).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("source", "target"), RESUMED, ids=str)
def test_a_checkpoint_carries_the_teacher_to_any_layout(source: Layout, target: Layout, runs: Runs) -> None:
    check_resumed(runs[1][target], target, source, runs)


def check_resumed(found: Found, layout: Layout, source: Layout, runs: Runs) -> None:
    original = runs[0][source]
    assert all(torch.equal(found.saved[name], value) for name, value in original.saved.items())
    if layout == source:
        assert all(torch.equal(found.after[name], value) for name, value in original.after.items())
        assert torch.equal(found.logits, original.logits)
    elif layout.precision == "fp32":
        assert close(found.after, original.after)


def test_its_weights_load_into_a_model_alone(checkpoints: Path, runs: Runs) -> None:
    model = build_model(model_config(), seed=7)
    path = checkpoints / f"step-{SAVED:08d}"
    load_weights(path, model, EXPERTS, kind=TEACHER)
    average = runs[0][FIRST].saved
    assert all(torch.equal(value, average[name]) for name, value in whole(model).items())
    with pytest.raises(
        CheckpointError, match=r"holds no moving average: train.ema_decay was 0; leave out --ema"
    ):
        load_weights(path, model, EXPERTS, kind=EMA)


def start_without_an_average(directory: Path) -> None:
    plain = Run.start(ONE)
    masters = MasterWeights(plain.engine.deepspeed)
    plain.engine.train()
    plain.train(2)
    save_checkpoint(directory, 2, masters, plain.mesh, {})
    student = Student(ONE)
    student.train(1)  # its average is not the checkpoint's masters
    manifest = load_checkpoint(directory / "step-00000002", student.masters, EXPERTS)
    assert missing_kinds(student.masters, manifest) == [TEACHER]
    student.teacher.load_state_dict({})
    own = dict(student.teacher.module.named_parameters())
    for name, parameter in student.run.engine.module.named_parameters():
        values, wanted = student.masters.read(parameter, (MASTER, TEACHER)), masters_of(plain, masters, name)
        assert torch.equal(values[TEACHER], wanted), name
        assert torch.equal(own[name], wanted), name


def masters_of(run: Run, masters: MasterWeights, name: str) -> Tensor:
    return masters.read(dict(run.engine.module.named_parameters())[name], (MASTER,))[MASTER]


def test_a_checkpoint_without_an_average_starts_it_at_the_masters(tmp_path: Path) -> None:
    run_on_ranks(start_without_an_average, 1, tmp_path)


# --- a teacher of a part of the student


class WithPredictor(nn.Module):
    """A student with a layer that its teacher has not."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.predictor = encoder, nn.Linear(CLASSES, CLASSES)
        self.register_buffer("centre", torch.zeros(CLASSES))

    def forward(self, images: Tensor, keys: Tensor) -> Any:
        output = self.encoder(images, keys)
        return output._replace(logits=self.predictor(output.logits))


def teach_a_part() -> list[str]:
    """The errors of teachers that do not fit; one that does follows a student with a frozen weight."""

    def change(model: nn.Module, layout: Layout) -> nn.Module:
        model.patch_embed.proj.weight.requires_grad_(False)
        return WithPredictor(model)

    run = Run.start(replace(ONE, stage=1), change)
    masters = MasterWeights(run.engine.deepspeed)
    errors = []
    other = build_model(replace(model_config(), num_classes=3))
    with_state = nn.BatchNorm1d(CLASSES, affine=False)
    for module, name in ((other, "encoder."), (build_model(model_config()), ""), (with_state, "encoder.")):
        with pytest.raises(TeacherError) as error:
            MovingAverageTeacher(
                module, run.engine, masters, momentum, student_name=lambda own, name=name: name + own
            )
        errors.append(str(error.value))
    assert TEACHER not in masters.kinds
    teacher = MovingAverageTeacher(
        build_model(model_config(), seed=99),
        run.engine,
        masters,
        lambda step: 0.0,  # the teacher is the student
        student_name=lambda own: f"encoder.{own}",
    )
    images, labels, keys = batch(0)
    run.engine.backward(run.engine(images, keys).logits.square().mean())
    run.engine.step(0.1)
    teacher.update(1)
    student = run.engine.module.encoder
    pairs = zip(teacher.module.parameters(), student.parameters(), strict=True)
    assert all(torch.equal(own, theirs) for own, theirs in pairs)
    shared = dict(student.named_buffers())
    assert shared
    assert all(buffer is shared[name] for name, buffer in teacher.module.named_buffers())
    return errors


def test_a_teacher_of_a_part_of_the_student() -> None:
    other_shape, no_parameter, no_buffer = run_on_ranks(teach_a_part, 1)[0]
    assert (
        "the teacher's parameter head.weight has shape [3, 24] and experts None, the student's" in other_shape
    )
    assert "the teacher's parameter patch_embed.proj.weight: the student has no patch_embed" in no_parameter
    assert "the teacher's buffer running_mean [10]: the student has no encoder.running_mean" in no_buffer


# --- a frozen teacher


def digests(dims: list[ParallelDims]) -> list[str]:
    found = []
    for each in dims:
        mesh = build_mesh(each)
        teacher = FrozenTeacher(build_model(model_config(), seed=3, mesh=mesh), "bf16", mesh, name="a")
        assert {parameter.dtype for parameter in teacher.module.parameters()} == {torch.bfloat16}
        found.append(teacher.digest)
    with pytest.raises(TeacherError, match=r"master/weight of a frozen teacher differs between ranks"):
        weights_digest(randomize(nn.Linear(2, 3), seed=mesh.rank), mesh)
    return found


def test_the_digest_of_a_frozen_teacher_does_not_depend_on_the_layout() -> None:
    dims = [ParallelDims(world_size=2), ParallelDims(world_size=2, ep_size=2)]
    dims.append(ParallelDims(world_size=2, ep_size=2, expert_tensor_parallel_size=2))
    alone = weights_digest(build_model(model_config(), seed=3), Mesh(dims=ParallelDims()))
    assert run_on_ranks(digests, 2, dims) == [[alone] * 3] * 2
    assert weights_digest(build_model(model_config(), seed=4), Mesh(dims=ParallelDims())) != alone


def test_a_frozen_teacher_of_another_architecture_is_known_by_its_weights() -> None:
    def teacher(seed: int, name: str) -> FrozenTeacher:
        module = randomize(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.9)), seed=seed)
        return FrozenTeacher(module.train(), "fp32", Mesh(dims=ParallelDims()), name=name)

    first, same, other = teacher(1, "a.pth"), teacher(1, "b.pth"), teacher(2, "c.pth")
    inputs = randn(5, 4)
    assert torch.equal(first(inputs), first(inputs))  # no dropout
    assert not first(inputs).requires_grad
    before = first.digest
    first.update(1)
    assert weights_digest(first.module, Mesh(dims=ParallelDims())) == before
    same.load_state_dict(first.state_dict())
    with pytest.raises(TeacherError) as error:
        other.load_state_dict(first.state_dict())
    assert str(error.value) == (
        f"the frozen teacher c.pth has weights of digest {other.digest[:12]}; that of the checkpoint was "
        f"a.pth, digest {first.digest[:12]}: give its weights, or start another run"
    )
    with pytest.raises(TeacherError, match=r"that of the checkpoint was none"):
        other.load_state_dict({})
    module = nn.Linear(2, 3)
    module.bias.ds_id = 0  # as DeepSpeed marks what it has partitioned
    with pytest.raises(TeacherError, match=r"bias is partitioned: build it with sharded=False"):
        FrozenTeacher(module, "fp32", Mesh(dims=ParallelDims()), name="d.pth")


def test_the_memory_of_a_teacher() -> None:
    # 1000 parameters on a rank, 300 of them in its partition of the masters
    assert teacher_bytes(1000, 300, "bf16") == (2000, 1200)
    assert teacher_bytes(1000, 0, "fp32") == (4000, 0)

"""A teacher: a second model beside the engine, frozen or a moving average of the fp32 master weights.

    teacher = MovingAverageTeacher(module, engine, masters, momentum=lambda step: 0.996)
    targets = teacher(images)            in eval mode, without gradients, in the precision of the engine
    teacher.update(step)                 after each optimizer step; a skipped one moves nothing
    teacher.load_state_dict(state)       after `load_checkpoint`

Every rank holds the teacher's parameters complete, and of its experts those that it holds of the student's,
at every ZeRO stage: a forward pass gathers nothing. The fp32 average is partitioned as the masters are: it is
one more state of the optimizer (`MasterWeights.keep_average`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from parallel.digest import joint_digest, tensor_digest
from parallel.experts.names import (
    MASTER,
    TEACHER,
    by_global_name,
    persistent_buffers,
    shape_of,
    to_stored_dtype,
)
from parallel.experts.placement import experts_of, sliced_of
from parallel.ranks.collectives import gather_objects
from parallel.ranks.mesh import Mesh
from parallel.zero.dtypes import DTYPES
from parallel.zero.engine import Engine
from parallel.zero.errors import TeacherError
from parallel.zero.master_weights import MasterWeights, Momentum
from parallel.zero.options import Precision
from parallel.zero.state_gather import StateGather


class Teacher:
    """A model that is never trained, in eval mode and without gradients whatever the engine's mode.

    It belongs to no module, so that neither DeepSpeed nor the student's `train` reaches it.

    Raises:
        TeacherError: the module is partitioned.

    Args:
        module: on its device; experts placed as the student's, nothing partitioned. It becomes the teacher's.
        precision: of its forward pass, the engine's.
    """

    def __init__(self, module: nn.Module, precision: Precision) -> None:
        _require_complete(module)
        self.module = module.requires_grad_(False).eval()
        for parameter in module.parameters():  # not the buffers, which DeepSpeed does not cast either
            parameter.data = parameter.data.to(DTYPES[precision])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the teacher's forward, with the arguments of its module."""
        if self.module.training:
            self.module.eval()
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def update(self, step: int) -> None:
        """Follow the student, after an optimizer step; a frozen teacher does not.

        Args:
            step: optimizer steps taken, with this one, as `after_step` of a task gets it.
        """

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint keeps besides tensors: JSON-able, the same on all ranks and layouts."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume, after the checkpoint was loaded into the master weights; every rank calls it together."""


class FrozenTeacher(Teacher):
    """A teacher of any architecture whose weights do not change; a checkpoint keeps a digest of them.

    Every rank makes it together.

    Raises:
        TeacherError: ranks have different weights.

    Args:
        module: with its weights, as `Teacher`.
        precision: as `Teacher`.
        mesh: the layout of its experts.
        name: of the weights, for messages: an option and its value, such as `teacher.weights (swin.pth)`.
    """

    def __init__(self, module: nn.Module, precision: Precision, mesh: Mesh, *, name: str) -> None:
        self.name, self.digest = name, weights_digest(module, mesh)
        super().__init__(module, precision)

    def state_dict(self) -> dict[str, Any]:
        """Identifies the weights, which no checkpoint holds."""
        return {"digest": self.digest, "name": self.name}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that the teacher is the one of the checkpoint.

        Raises:
            TeacherError: it has other weights, or the checkpoint is of a run without a frozen teacher.
        """
        if state.get("digest") != self.digest:
            before = f"{state['name']}, digest {state['digest'][:12]}" if "digest" in state else "none"
            raise TeacherError(
                f"the frozen teacher {self.name} has weights of digest {self.digest[:12]}; that of the "
                f"checkpoint was {before}: give its weights, or start another run"
            )


class MovingAverageTeacher(Teacher):
    """A teacher whose weights are a moving average of the student's masters, which it starts at.

    Its module's parameters are the student's of the same names, all or some of them: a student's predictor
    that the module does not have is left out. Its buffers are the student's own tensors, so that they are
    equal at every moment. A parameter of the student that is frozen stays as it is.

    Every rank makes it together, before a checkpoint is loaded: it adds a kind to the masters'.

    Raises:
        TeacherError: the student has no such parameter or buffer, or one of another shape or experts.

    Args:
        module: as `Teacher`; its weights are replaced.
        engine: of the student.
        masters: of the engine.
        momentum: m of average = m * average + (1 - m) * master, by the step that `update` gets.
        student_name: the name in the student of a parameter or buffer of the module.
    """

    def __init__(
        self,
        module: nn.Module,
        engine: Engine,
        masters: MasterWeights,
        momentum: Momentum,
        *,
        student_name: Callable[[str], str] = str,
    ) -> None:
        super().__init__(module, engine.options.precision)
        self._engine, self._masters, self._momentum = engine, masters, momentum
        self._pairs = _pairs(module, engine.module, student_name)
        _share_buffers(module, engine.module, student_name)
        masters.keep_average(TEACHER)
        # not `own.data`: what caches a function of the weights has to see in their version that they changed
        trained = {student: own.detach() for student, own in self._pairs if student.requires_grad}
        self._gather = StateGather(engine.deepspeed, engine.mesh, trained)
        self.load_state_dict({})

    def update(self, step: int) -> None:
        """Move the average and compute with it from now on, unless the engine skipped the step."""
        if not self._engine.skipped:
            self._masters.update_average(TEACHER, self._momentum(step))
            self._gather.copy(self._masters, TEACHER)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compute with the average that the masters have now."""
        self._gather.copy(self._masters, TEACHER)
        for student, own in self._pairs:
            if not student.requires_grad:
                own.detach().copy_(self._masters.read(student, [MASTER])[MASTER])


def _require_complete(module: nn.Module) -> None:
    """Refuse a module that `partitioned` (init.py) built: a teacher's forward pass gathers nothing."""
    for name, parameter in module.named_parameters():
        if hasattr(parameter, "ds_id"):
            raise TeacherError(f"the teacher's parameter {name} is partitioned: build it with sharded=False")


class _Pair(NamedTuple):
    student: nn.Parameter
    own: nn.Parameter


def _pairs(module: nn.Module, student: nn.Module, student_name: Callable[[str], str]) -> list[_Pair]:
    """Each parameter of a teacher with the student's."""
    known, pairs = dict(student.named_parameters()), []
    for name, own in module.named_parameters():
        other = known.get(student_name(name))
        if other is None:
            raise TeacherError(f"the teacher's parameter {name}: the student has no {student_name(name)}")
        found, wanted = ((list(shape_of(p)), experts_of(p), sliced_of(p)) for p in (own, other))
        if found != wanted:
            raise TeacherError(
                f"the teacher's parameter {name} has shape {found[0]} and experts {found[1]}, the student's "
                f"has shape {wanted[0]} and experts {wanted[1]}: build both with one configuration and mesh"
            )
        pairs.append(_Pair(other, own))
    return pairs


def _share_buffers(module: nn.Module, student: nn.Module, student_name: Callable[[str], str]) -> None:
    """Replace the buffers of a teacher by the student's; those computed from the configuration may stay."""
    known, state = dict(student.named_buffers()), persistent_buffers(module)
    for name, own in list(module.named_buffers()):
        other = known.get(student_name(name))
        if other is not None and other.shape == own.shape:
            path, _, leaf = name.rpartition(".")
            module.get_submodule(path)._buffers[leaf] = other
        elif name in state:
            raise TeacherError(
                f"the teacher's buffer {name} {list(own.shape)}: the student has no {student_name(name)} of "
                "that shape"
            )


def weights_digest(module: nn.Module, mesh: Mesh) -> str:
    """A digest of the parameters and persistent buffers of a complete model, the same on every layout.

    Every rank calls it together.

    Raises:
        TeacherError: ranks that hold the same tensor have different values.
    """
    _require_complete(module)
    mine: dict[str, str] = {}
    for name, parameter in module.named_parameters():
        tensors = by_global_name(MASTER, name, parameter, _with_complete_experts(parameter, mesh))
        mine |= {key: tensor_digest(to_stored_dtype(tensor)) for key, tensor in tensors.items()}
    for name, buffer in persistent_buffers(module).items():
        mine[f"buffer/{name}"] = tensor_digest(to_stored_dtype(buffer))
    whole: dict[str, str] = {}
    for of_rank in gather_objects(mine):
        for name, digest in of_rank.items():
            if whole.setdefault(name, digest) != digest:
                raise TeacherError(f"{name} of a frozen teacher differs between ranks: load one file on all")
    return joint_digest(whole)


def _with_complete_experts(parameter: nn.Parameter, mesh: Mesh) -> Tensor:
    """A parameter whose experts are complete, if they are sliced: the ranks of a block call it together."""
    sliced = sliced_of(parameter)
    if sliced is None or sliced.part.of == 1:
        return parameter.detach()
    group = mesh.exchange_groups[sliced.part.of].gather
    return torch.cat(gather_objects(parameter.detach().cpu(), group), dim=sliced.dim)

"""What the trainings of a run take, on disk and in memory, told from their parameters before the first node.

Everything is fp32. Not counted are activations, buffers, what saving a state copies, and the rows of a vocabulary that
is learned from the train texts; of weights without a built model all parameters are taken to train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from xmodal_kedro.config.captioning import CaptionerConfig
from xmodal_kedro.config.data import ImagesConfig
from xmodal_kedro.config.member import MemberConfig
from xmodal_kedro.data.findings import Report

if TYPE_CHECKING:
    from torch import nn

    from xmodal_kedro.models.backbone import Backbone

NUMBER = 4  # bytes of an fp32


class Size(NamedTuple):
    """Of a model; zeros where nothing is known."""

    parameters: int = 0
    trained: int = 0  # those of them that its training changes

    @classmethod
    def of(cls, model: nn.Module) -> Size:
        """Of a model, which may have shapes alone."""
        counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        return cls(sum(count for count, _ in counts), sum(count for count, trains in counts if trains))


@dataclass(frozen=True)
class Training:
    """One that a run does: of a member, or of a captioner."""

    name: str
    size: Size
    keeps_best: bool  # and with it a copy of what trains, as it was after the best epoch

    @property
    def checkpoint(self) -> int:
        """Bytes of its checkpoint, which holds all parameters."""
        return NUMBER * self.size.parameters

    @property
    def state(self) -> int:
        """Bytes of a state that an interrupted training goes on from: weights, two moments, the best weights."""
        return NUMBER * (3 + self.keeps_best) * self.size.trained

    def memory(self, *, on_gpu: bool) -> int:
        """Bytes of the machine's own memory: weights, gradients and two moments; the best weights always lie there."""
        return NUMBER * (self.size.parameters + (3 * (not on_gpu) + self.keeps_best) * self.size.trained)


def captioner_trainings(
    captioners: Mapping[str, CaptionerConfig], members: Mapping[str, MemberConfig], images: ImagesConfig, project: Path
) -> list[Training]:
    """What training captioners takes, each of them the whole model of its member and the parts of it that write.

    Args:
        captioners: Those that begin with a member, by name.
        members: Of the recipe, by name.
        images: How images are packed.
        project: Folder that relative paths start from.
    """
    from xmodal_kedro.captioning.checkpoint import begin_captioner
    from xmodal_kedro.data.architecture_checks import check_architecture
    from xmodal_kedro.data.weight_checks import check_member

    trainings = []
    models: dict[str, Backbone | None] = {}
    for name, captioner in captioners.items():
        assert captioner.member is not None
        assert captioner.train is not None
        member, already_said = members[captioner.member], Report()
        if captioner.member not in models and member.backbone.weights is None:
            models[captioner.member] = check_architecture(captioner.member, member.backbone, project, (), already_said)
        if (model := models.get(captioner.member)) is not None and model.writes:
            begin_captioner(model, captioner)
            size = Size.of(model)
        else:
            parameters = check_member(captioner.member, member, images, project, already_said).parameters
            size = Size(parameters, parameters)
        trainings.append(Training(name, size, captioner.train.keep == "best"))
    return trainings

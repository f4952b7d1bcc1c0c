"""What a training that was interrupted goes on from, to the bit: a directory that is there whole or not at all.

data/.training/<name>/<key>-<number>/
    model.safetensors        parameters that train and all buffers, also those that a checkpoint leaves out
    optimiser.safetensors    moments and step counts
    generators.safetensors   states of the generators that run on from epoch to epoch
    tensors.safetensors      whatever the loop adds, such as the best weights so far
    state.json               the key, the loop's facts, the settings of the optimiser's groups
    MANIFEST.json            written last: without it there is no state

The number grows with every save, and what came before goes after that: whenever the process is killed, the newest whole
state is there. It stays after the last epoch too, until the run that trained has ended well and `discard_states` is
called: where a run fails later, or in its next training, the one after it need not train again.

Of several processes rank 0 writes, and all read. torch's global generators are not in it, for their states differ
between processes: a loop sets them anew at each epoch, by `seed_epoch`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xmodal_kedro.data.manifest import MANIFEST, BrokenArtifactError, fingerprint, read_manifest, seal
from xmodal_kedro.losses.gather import rank
from xmodal_kedro.training.processes import averaged

KIND = "training"
FACTS = "state.json"
PARTS = ("model", "optimiser", "generators", "tensors")

log = logging.getLogger(__name__)


def seed_epoch(seed: int, epoch: int) -> None:
    """Set torch's global generators for one epoch in this process; call it where `seeded` gives them back later.

    Dropout then depends on the seed, the epoch and the rank, and not on what was drawn before: a training that goes on
    after an epoch draws in every process what it would have drawn.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, rank()]).generate_state(1, np.uint64)[0]))


def weights_fingerprint(model: nn.Module) -> str:
    """Hex digest of all parameters and buffers, for the key of a training that begins with them."""
    digest = hashlib.sha256()
    for name, tensor in _named(model).items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Saved:
    """What a loop gave to `save` beside model, optimiser and generators."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor]  # on the CPU


@dataclass(frozen=True)
class _Read:
    """A whole state in memory."""

    tensors: dict[str, dict[str, Tensor]]  # of each of PARTS
    facts: dict[str, Any]
    groups: list[dict[str, Any]]  # settings of the optimiser, without its parameters


def discard_states(directory: Path, names: Iterable[str]) -> None:
    """Delete the states of trainings: their checkpoints are written, and the run has ended."""
    for name in names:
        for state in (directory / name).glob("*-*"):
            _discard(state)
        shutil.rmtree(directory / name, ignore_errors=True)


class TrainingState:
    """Where one training keeps its state; every process of it has such an object and calls every method.

    The key stands for everything that the result depends on: config, data, weights at the beginning, processes. With
    another key training begins anew, and its first `save` removes the states of all others of the same name.
    """

    def __init__(self, directory: Path, name: str, key: str) -> None:
        """Look for states of a name (a file name) below a directory; nothing is made before the first `save`."""
        self.name, self.key = name, key
        self._home = directory / name
        self._prefix = fingerprint(key)[:16]

    def save(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        generators: Mapping[str, torch.Generator],
        facts: Mapping[str, Any],
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write where training is, after an epoch; where the disk refuses, training goes on with a warning.

        Args:
            model: Parameters that have two names are written once.
            optimiser: After its step; its settings are what JSON can hold.
            generators: By name; each is in the same state in every process.
            facts: What JSON can hold, such as epoch, step and history; numbers come back as they were, NaN too.
            tensors: By name.
        """
        if rank() > 0:
            return
        self._clear(whole=False)  # what a killed save left: it must not fill the disk
        packed = optimiser.state_dict()
        parts = {
            "model": _changing(model),
            "optimiser": {
                f"{number}.{name}": value for number, one in packed["state"].items() for name, value in one.items()
            },
            "generators": {name: generator.get_state() for name, generator in generators.items()},
            "tensors": tensors or {},
        }
        settings = [{name: value for name, value in one.items() if name != "params"} for one in packed["param_groups"]]
        told = json.dumps({"key": self.key, "facts": dict(facts), "optimiser": settings}, ensure_ascii=False)
        directory = self._home / f"{self._prefix}-{self._last_number() + 1:06d}"
        try:
            directory.mkdir(parents=True)
            for part in PARTS:
                # Copies: safetensors refuses tensors that share memory, as views of one buffer do.
                written = {
                    name: value.detach().to("cpu", copy=True).contiguous() for name, value in parts[part].items()
                }
                save_file(written, _file(directory, part))
            (directory / FACTS).write_text(told, encoding="utf-8")
            seal(directory, KIND, key=self._prefix)
        except (OSError, SafetensorError) as error:  # the latter is what safetensors makes of a full disk
            log.warning(
                "%s: the state of the training cannot be kept in %s (%s). Training goes on, but would begin anew if it "
                "were interrupted; make room, or set runtime.resume to false",
                *(self.name, self._home, error),
            )
            shutil.rmtree(directory, ignore_errors=True)
            return
        self._clear(but=directory)

    def load(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, generators: Mapping[str, torch.Generator]
    ) -> Saved | None:
        """Put everything back as it was at the last `save`.

        A state that cannot be used (files are cut or changed, or it is of another model) changes nothing: it is named
        in a warning, and training begins anew.

        Args:
            model: As it was built for the training, on its device.
            optimiser: As it was made for the training: the same parameters in the same groups.
            generators: Under their names of `save`.

        Returns:
            What else was saved; none if training begins anew, in all processes or in none.
        """
        read = self._read(model, optimiser, generators)
        if averaged({"there": torch.tensor(float(read is not None))})["there"] < 1.0 or read is None:
            return None
        with torch.no_grad():
            for name, tensor in _changing(model).items():
                tensor.copy_(read.tensors["model"][name])
        _restore(optimiser, read.tensors["optimiser"], read.groups)
        for name, generator in generators.items():
            generator.set_state(read.tensors["generators"][name])
        return Saved(read.facts, read.tensors["tensors"])

    def _clear(self, *, whole: bool = True, but: Path | None = None) -> None:
        """Delete the states of this name, those that are whole only if they are meant too."""
        for directory in self._home.glob("*-*"):
            if directory != but and (whole or not (directory / MANIFEST).is_file()):
                _discard(directory)

    def _last_number(self) -> int:
        """The highest number that a save took, finished or not; 0 before the first."""
        numbers = [path.name.rpartition("-")[2] for path in self._home.glob("*-*")]
        return max((int(number) for number in numbers if number.isdecimal()), default=0)

    def _read(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, generators: Mapping[str, torch.Generator]
    ) -> _Read | None:
        """The newest whole state, if there is one and it fits."""
        whole = sorted(path.parent for path in self._home.glob(f"*-*/{MANIFEST}"))
        own = [path for path in whole if path.name.startswith(f"{self._prefix}-")]
        if not own:
            if whole and rank() == 0:
                log.warning(
                    "%s: an interrupted training with other settings or data lies in %s; this one begins anew",
                    self.name,
                    self._home,
                )
            return None
        directory = own[-1]
        try:
            read_manifest(directory, KIND, hashes=True)
            tensors = {part: load_file(_file(directory, part)) for part in PARTS}
            told = json.loads((directory / FACTS).read_text(encoding="utf-8"))
            if told["key"] != self.key:
                raise BrokenArtifactError("it is of other settings or data")
            read = _Read(tensors, told["facts"], told["optimiser"])
            _check(read, model, optimiser, generators)
        except (BrokenArtifactError, SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            # Kinds of damage that a manifest itself may have are among these: it is JSON that nothing vouches for.
            log.warning("%s: training begins anew, its state in %s cannot be used: %s", self.name, directory, error)
            return None
        return read


def _file(directory: Path, part: str) -> Path:
    return directory / f"{part}.safetensors"


def _named(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a model, each once; state_dict would leave buffers out and give some tensors twice."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _changing(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: frozen parameters are as at the beginning, which the key stands for."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in _named(model).items() if name not in frozen}


def _check(
    read: _Read,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    generators: Mapping[str, torch.Generator],
) -> None:
    """Refuse what is of something else.

    Raises:
        BrokenArtifactError: Naming it.
    """
    _check_tensors("model", read.tensors["model"], _changing(model))
    _check_tensors(
        "generators", read.tensors["generators"], {name: one.get_state() for name, one in generators.items()}
    )
    if len(optimiser.param_groups) != len(read.groups):
        raise BrokenArtifactError(
            f"its optimiser has {len(read.groups)} groups of parameters, and there are {len(optimiser.param_groups)}"
        )
    wanted, parameters = {}, _parameters(optimiser)
    for name, value in read.tensors["optimiser"].items():
        number, _, moment = name.partition(".")
        if int(number) < len(parameters):
            wanted[name] = value if moment == "step" else parameters[int(number)]
    _check_tensors("optimiser", read.tensors["optimiser"], wanted)


def _check_tensors(part: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    of_given = {name: (tensor.shape, tensor.dtype) for name, tensor in given.items()}
    of_wanted = {name: (tensor.shape, tensor.dtype) for name, tensor in wanted.items()}
    names = of_given.keys() | of_wanted.keys()
    if wrong := sorted(name for name in names if of_given.get(name) != of_wanted.get(name)):
        raise BrokenArtifactError(
            f"{len(wrong)} tensors of its {part} are missing, too many or of another shape or type, such as "
            f"{', '.join(wrong[:3])}"
        )


def _restore(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], settings: list[dict[str, Any]]) -> None:
    """Put moments, step counts and settings into an optimiser of the same parameters."""
    parameters = _parameters(optimiser)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, _, moment = name.partition(".")
        like = parameters[int(number)]
        # In memory as its parameter is: fused AdamW goes through both side by side.
        laid = torch.empty_like(like, dtype=value.dtype).copy_(value) if value.ndim else value
        state.setdefault(int(number), {})[moment] = laid
    groups = optimiser.state_dict()["param_groups"]
    for group, saved in zip(groups, settings, strict=True):
        for name, setting in saved.items():
            group[name] = tuple(setting) if isinstance(setting, list) else setting  # JSON has no tuples
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def _parameters(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """In the order of their numbers in the optimiser's state."""
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _discard(directory: Path) -> None:
    (directory / MANIFEST).unlink(missing_ok=True)  # first: half a state must not look like a whole one
    shutil.rmtree(directory)

"""The state of a training: to the bit what was saved, whole or not there at all."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import xmodal_kedro.training.state as module
from xmodal_kedro.data.manifest import MANIFEST, seal
from xmodal_kedro.models.backbone import seeded
from xmodal_kedro.training.state import TrainingState, discard_states, seed_epoch, weights_fingerprint


class Model(nn.Module):
    """Convolutions in another layout, BatchNorm, dropout, a shared weight, a buffer that state_dict leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 8))
        self.tokens = nn.Embedding(8, 8)
        self.head = nn.Linear(8, 8, bias=False)
        self.head.weight = self.tokens.weight
        self.dropout = nn.Dropout(0.3)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("seen", torch.zeros(2, 2, dtype=torch.long), persistent=False)
        self.to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen += 1
        return self.head(self.dropout(self.image(pixels))) * self.scale + self.frozen.sum()


class Training:
    """A little training whose steps draw from a generator of its own and from torch's."""

    def __init__(self, seed: int = 0) -> None:
        with seeded(seed):
            self.model = Model().train()
        weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [one for one in weights if one.ndim > 1], "weight_decay": 0.1},
            {"params": [one for one in weights if one.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.98), fused=True)
        self.generators = {"views": torch.Generator().manual_seed(3)}

    def epoch(self, number: int) -> None:
        with seeded(99):
            seed_epoch(7, number)
            for step in range(3):
                pixels = torch.randn(5, 3, 4, 4, generator=self.generators["views"])
                pixels = pixels.contiguous(memory_format=torch.channels_last)
                self.optimiser.param_groups[0]["lr"] = 0.01 / (number + step + 1)
                self.optimiser.zero_grad()
                self.model(pixels).square().mean().backward()
                self.optimiser.step()

    def save(self, state: TrainingState, **more: Any) -> None:
        state.save(self.model, self.optimiser, self.generators, **{"facts": {}, **more})

    def load(self, state: TrainingState) -> Any:
        return state.load(self.model, self.optimiser, self.generators)

    def everything(self) -> dict[str, Any]:
        found: dict[str, Any] = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        for number, moments in self.optimiser.state_dict()["state"].items():
            found |= {f"{number} {name}": value for name, value in moments.items()}
        found |= {name: generator.get_state() for name, generator in self.generators.items()}
        found = {name: value.detach().clone() for name, value in found.items()}
        return {**found, "groups": self.optimiser.state_dict()["param_groups"]}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) and value.stride() == second[name].stride()
        if isinstance(value, Tensor)
        else value == second[name]
        for name, value in first.items()
    )


def trained(tmp_path: Path, epochs: int = 2) -> tuple[Training, TrainingState]:
    training, state = Training(), TrainingState(tmp_path / "states", "clip", "key")
    for epoch in range(1, epochs + 1):
        training.epoch(epoch)
        training.save(state, facts={"epoch": epoch})
    return training, state


def folders(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "states" / "clip").iterdir())


# --- what comes back


def test_training_goes_on_to_the_bit(tmp_path: Path) -> None:
    training, _ = trained(tmp_path)
    again = Training(seed=5)
    saved = again.load(TrainingState(tmp_path / "states", "clip", "key"))
    assert saved.facts == {"epoch": 2}
    assert saved.tensors == {}
    assert same(again.everything(), training.everything())
    assert again.model.head.weight is again.model.tokens.weight
    assert again.model.seen[0, 0] == 6
    torch.manual_seed(1)  # what happened in between is of no account
    for one in (training, again):
        one.epoch(3)
    assert same(again.everything(), training.everything())


def test_without_any_part_of_it_training_would_go_on_otherwise(tmp_path: Path) -> None:
    """Guard the test above: each part matters to what follows."""
    training, state = trained(tmp_path)

    def without(part: str) -> dict[str, Any]:
        again = Training(seed=5)
        kept = {"views": again.generators["views"].get_state(), "seen": again.model.seen.clone()}
        again.load(state)
        if part == "moments":
            again.optimiser.state.clear()
        elif part == "views":
            again.generators["views"].set_state(kept["views"])
        elif part == "seen":
            again.model.seen.copy_(kept["seen"])
        again.epoch(3)
        return again.everything()

    whole = without("nothing")
    training.epoch(3)
    assert same(whole, training.everything())
    assert not any(same(without(part), whole) for part in ("moments", "views", "seen"))


def test_facts_and_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    training, state = trained(tmp_path, 1)
    facts = {"history": [{"epoch": 0, "dev/x": 0.1 + 0.2}, {"loss": math.nan}], "best": -math.inf, "name": "狗"}
    base = torch.arange(6.0).reshape(2, 3)
    # Some share memory.
    tensors = {"best.a": base.T, "best.b": base, "best.c": base[0], "half": torch.tensor(1.5, dtype=torch.bfloat16)}
    training.save(state, facts=facts, tensors=tensors)
    saved = Training().load(state)
    assert saved.facts["history"][0] == facts["history"][0]  # type: ignore[index]
    assert math.isnan(saved.facts["history"][1]["loss"])
    assert (saved.facts["best"], saved.facts["name"]) == (-math.inf, "狗")
    assert saved.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(saved.tensors[name], tensor)
        assert saved.tensors[name].dtype == tensor.dtype


def test_before_the_first_step_there_are_no_moments(tmp_path: Path) -> None:
    fresh, state = Training(), TrainingState(tmp_path, "clip", "key")
    assert fresh.load(state) is None
    fresh.save(state)
    again = Training(seed=1)
    assert again.load(state) is not None
    assert same(again.everything(), fresh.everything())


def test_each_epoch_has_a_seed_of_its_own_and_each_process_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(seed: int, epoch: int, rank: int) -> float:
        monkeypatch.setattr("xmodal_kedro.training.state.rank", lambda: rank)
        with seeded(0):
            torch.rand(epoch)
            seed_epoch(seed, epoch)
            return torch.rand(()).item()

    draws = [draw(*one) for one in ((0, 1, 0), (0, 2, 0), (0, 1, 1), (1, 1, 0), (1, 0, 0), (0, 0, 1))]
    assert len(set(draws)) == len(draws)
    assert draws == [draw(*one) for one in ((0, 1, 0), (0, 2, 0), (0, 1, 1), (1, 1, 0), (1, 0, 0), (0, 0, 1))]


def test_other_weights_have_another_fingerprint() -> None:
    model = Model()
    changes = [
        lambda: None,
        lambda: model.scale.data.add_(1e-7),
        lambda: model.seen.add_(1),
        lambda: model.frozen.data.neg_(),
        lambda: model.to(torch.bfloat16),
    ]
    found = []
    for change in changes:
        change()
        found.append(weights_fingerprint(model))
    assert len(set(found)) == len(changes)
    assert found[-1] == weights_fingerprint(model)


# --- what is on disk


def test_one_state_is_kept_until_it_is_discarded(tmp_path: Path) -> None:
    training, state = trained(tmp_path, 3)
    assert len(folders(tmp_path)) == 1
    assert not list(folders(tmp_path)[0].glob("*.p*"))  # nothing that could be code
    other = TrainingState(tmp_path / "states", "blip", "key")
    training.save(other)
    discard_states(tmp_path / "states", ["clip", "none_of_this_name"])
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["blip"]
    assert Training().load(state) is None
    assert Training().load(other) is not None


def test_of_other_settings_nothing_is_taken_and_the_first_save_removes_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path)
    other, fresh = TrainingState(tmp_path / "states", "clip", "another"), Training(seed=2)
    before = fresh.everything()
    with caplog.at_level(logging.WARNING):
        assert fresh.load(other) is None
    assert "clip: an interrupted training with other settings or data" in caplog.text
    assert same(fresh.everything(), before)
    fresh.save(other, facts={"epoch": 1})
    assert len(folders(tmp_path)) == 1
    assert Training().load(other).facts == {"epoch": 1}
    assert Training().load(TrainingState(tmp_path / "states", "clip", "key")) is None


def _cut(folder: Path) -> None:
    file = folder / "optimiser.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def _flip(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def _lose(folder: Path) -> None:
    (folder / "state.json").unlink()


def _spoil_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("{")


def _other_key(folder: Path) -> None:
    """As if two keys had the same digest."""
    file, manifest = folder / "state.json", folder / MANIFEST
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "key": "foreign"}))
    manifest.unlink()
    seal(folder, "training")


@pytest.mark.parametrize("damage", [_cut, _flip, _lose, _spoil_manifest, _other_key])
def test_a_damaged_state_is_named_and_training_begins_anew(
    damage: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, state = trained(tmp_path)
    damage(folders(tmp_path)[0])
    fresh = Training(seed=2)
    before = fresh.everything()
    with caplog.at_level(logging.WARNING):
        assert fresh.load(state) is None
    assert "clip: training begins anew" in caplog.text
    assert str(folders(tmp_path)[0]) in caplog.text
    assert same(fresh.everything(), before)
    fresh.save(state)
    assert len(folders(tmp_path)) == 1
    assert Training().load(state) is not None


@pytest.mark.parametrize("what", ["model", "optimiser", "groups", "generators"])
def test_a_state_of_another_model_changes_nothing(what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, state = trained(tmp_path)
    fresh = Training(seed=2)
    if what == "model":
        fresh.model.tokens = nn.Embedding(9, 8)
    elif what == "optimiser":
        fresh.optimiser.param_groups[0]["params"].reverse()
    elif what == "groups":
        fresh.optimiser.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    else:
        fresh.generators["more"] = torch.Generator()
    before = fresh.everything()
    with caplog.at_level(logging.WARNING):
        assert fresh.load(state) is None
    assert "cannot be used" in caplog.text
    assert same(fresh.everything(), before)


def test_no_process_goes_on_where_another_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, state = trained(tmp_path)
    fresh = Training(seed=2)
    before = fresh.everything()
    monkeypatch.setattr("xmodal_kedro.training.state.averaged", lambda numbers: {"there": 0.5})
    assert fresh.load(state) is None
    assert same(fresh.everything(), before)
    monkeypatch.setattr("xmodal_kedro.training.state.rank", lambda: 1)
    fresh.save(state)
    assert len(folders(tmp_path)) == 1  # others than the first leave the disk alone


def test_what_killed_saves_left_goes_before_the_next_one_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, state = trained(tmp_path)
    whole, *_ = folders(tmp_path)
    for number in range(100, 103):
        (whole.with_name(f"{whole.name[:17]}{number:06d}")).mkdir()
        (whole.with_name(f"{whole.name[:17]}{number:06d}") / "model.safetensors").write_bytes(b"half")
    found: list[list[Path]] = []
    monkeypatch.setattr(module, "seal", lambda *_, **__: found.append(folders(tmp_path)))
    training.save(state)
    assert len(found[0]) == 2  # the whole one, and the one that is being written
    assert whole in found[0]


class Killed(BaseException):
    """Nothing catches it, as nothing catches a SIGKILL."""


def test_whenever_it_is_killed_one_whole_state_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {1: trained(tmp_path / "1", 1)[0].everything(), 2: trained(tmp_path / "2", 2)[0].everything()}
    found = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the disk need not really wait here
    for limit in range(1, 1000):
        home, calls = tmp_path / f"killed-{limit}", 0
        training, state = trained(home, 1)
        training.epoch(2)

        def counted(original: Any, limit: int = limit) -> Any:
            def call(*arguments: Any, **settings: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == limit:
                    raise Killed
                return original(*arguments, **settings)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(module, "save_file", counted(module.save_file))
            for owner, names in ((Path, "mkdir write_text replace unlink"), (os, "fsync unlink rmdir")):
                for name in names.split():
                    patch.setattr(owner, name, counted(getattr(owner, name)))
            with contextlib.suppress(Killed):
                training.save(state, facts={"epoch": 2})
        again = Training(seed=5)
        epoch = again.load(state).facts["epoch"]
        assert same(again.everything(), expected[epoch])
        again.save(state, facts={"epoch": epoch})  # and what was left of the save is no obstacle
        assert len(folders(home)) == 1
        found.append(epoch)
        if calls < limit:
            break
    assert found == sorted(found)
    assert 10 <= found.count(1) < len(found) - 3


def test_what_never_changes_is_not_written(tmp_path: Path) -> None:
    training = Training()
    training.epoch(1)
    training.save(TrainingState(tmp_path, "a", "key"))
    (file,) = tmp_path.glob("a/*/model.safetensors")
    written = set(module.load_file(file))
    assert "frozen" not in written
    assert {"scale", "seen", "image.1.running_mean"} <= written
    other = Training()
    assert other.load(TrainingState(tmp_path, "a", "key")) is not None
    assert torch.equal(other.model.scale, training.model.scale)


def test_a_disk_that_refuses_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    training, state = Training(), TrainingState(tmp_path, "a", "key")
    training.epoch(1)
    training.save(state, facts={"epoch": 1})

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "seal", full)
        training.save(state, facts={"epoch": 2})
    assert "cannot be kept" in caplog.text
    assert "No space left on device" in caplog.text
    assert len(list(tmp_path.glob("a/*"))) == 1  # the older state is there, nothing half written beside it
    assert Training().load(state).facts == {"epoch": 1}

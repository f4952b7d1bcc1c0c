"""Published files give their tensors and nothing else; a conversion is made once, and again when the file changes."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from xmodal_kedro.models.published import PublishedWeightsError, converted, load_published, read_published

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.float16)}


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return pytest.fail, ("a pickle was run",)


def keep(name: str) -> str:
    return name


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "content",
    [
        TENSORS,
        {"state_dict": TENSORS, "epoch": 3, "optimizer": {"lr": 0.1}},
        {"model": {f"module.{name}": value for name, value in TENSORS.items()}},
        {"epoch": 1, "state_dict": {"model": TENSORS}},
    ],
)
def test_tensors_are_found_under_the_keys_of_training_scripts(content: Any, zipped: bool, tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    assert equal(read_published(file), TENSORS)


def test_safetensors_are_read_as_they_are(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert equal(read_published(tmp_path / "model.safetensors"), TENSORS)
    (tmp_path / "model.safetensors").write_bytes(b"1234567890")
    with pytest.raises(PublishedWeightsError, match="is cut short or no safetensors file"):
        read_published(tmp_path / "model.safetensors")


def test_a_name_that_only_some_share_is_no_prefix(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "model.pt")
    assert set(read_published(tmp_path / "model.pt")) == {"module.a", "b"}


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(tmp_path: Path, zipped: bool) -> None:
    file = tmp_path / "model.bin"
    torch.save({"state_dict": TENSORS, "args": _Evil()}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(PublishedWeightsError, match=rf"{file} holds more than tensors \([\w.]+\)") as failure:
        read_published(file)
    assert "weights_only" not in str(failure.value)
    assert failure.value.__suppress_context__, "a traceback would show torch's advice to open it all the same"
    file.write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(PublishedWeightsError):
        read_published(file)


@pytest.mark.parametrize("content", [[torch.ones(1)], {"lr": 0.1, "steps": 5}, {}, torch.ones(2)])
def test_what_is_no_table_of_tensors_is_said(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(PublishedWeightsError, match="holds no table of tensors by name"):
        read_published(tmp_path / "model.pt")


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_file_that_is_cut_short_is_said(share: float, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save(TENSORS, file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(PublishedWeightsError, match=r"is cut short or no file of torch|holds more than tensors"):
        read_published(file)


def test_a_program_of_torch_is_said(tmp_path: Path) -> None:
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "ViT-B-32.pt")
    with pytest.raises(PublishedWeightsError, match="is a TorchScript program"):
        read_published(tmp_path / "ViT-B-32.pt")


def test_a_conversion_is_made_once_and_again_when_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    shared = torch.arange(4.0)
    torch.save({"model": {**TENSORS, "tied": shared, "same": shared, "queue": torch.ones(9)}}, file)

    def rename(name: str) -> str | None:
        return None if name == "queue" else f"new.{name}"

    target = converted(file, rename)
    assert target == tmp_path / "model.pth.safetensors"
    assert set(load_file(target)) == {"new.a.weight", "new.b", "new.tied", "new.same"}
    assert torch.equal(load_file(target)["new.a.weight"], TENSORS["a.weight"])
    assert load_file(target)["new.b"].dtype == torch.float16
    made = target.stat().st_mtime_ns
    assert converted(file, rename).stat().st_mtime_ns == made
    torch.save({"model": {"a": torch.zeros(1)}}, file)
    assert set(load_file(converted(file, rename))) == {"new.a"}
    target.write_bytes(b"cut")
    assert set(load_file(converted(file, rename))) == {"new.a"}
    assert {path.name for path in tmp_path.iterdir()} == {"model.pth", "model.pth.safetensors"}


def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.pth"
    torch.save(TENSORS, file)

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("xmodal_kedro.models.published.save_file", full)
    with pytest.raises(OSError, match="no space"):
        converted(file, keep)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_a_read_only_folder_is_said_and_its_weights_are_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.pth"
    torch.save(TENSORS, file)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.warns(UserWarning, match="is read-only: model.pth is converted again at each load"):
        assert equal(load_published(file, keep), TENSORS)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(PublishedWeightsError, match=r"cannot be written \(Permission denied\). Copy model.pth"):
        converted(file, keep)

"""What a library raises at files or sizes becomes one error of ours, and nothing else does."""

from __future__ import annotations

import pytest
import torch

from xmodal_kedro.data.manifest import BrokenArtifactError
from xmodal_kedro.models.weights import MissingWeightsError, library_errors


def broken(what: str) -> BrokenArtifactError:
    return BrokenArtifactError(f"./clip holds no model ({what})")


def test_what_a_library_raises_keeps_its_kind_and_its_first_line() -> None:
    cause = KeyError("gelux\nand a page about it")
    with pytest.raises(BrokenArtifactError) as failure, library_errors(broken):
        raise cause
    assert str(failure.value) == "./clip holds no model (KeyError: 'gelux\\nand a page about it')"
    assert failure.value.__cause__ is cause
    with pytest.raises(BrokenArtifactError) as failure, library_errors(broken):
        raise ValueError(f"\n  {'x' * 300}\nand a page about it")
    assert str(failure.value) == f"./clip holds no model (ValueError: {'x' * 200})"


@pytest.mark.parametrize("error", [MemoryError("a"), torch.OutOfMemoryError("b"), KeyboardInterrupt()])
def test_too_little_memory_and_a_user_who_stops_are_no_fault_of_the_files(error: BaseException) -> None:
    with pytest.raises(type(error)) as failure, library_errors(broken):
        raise error
    assert failure.value is error


def test_errors_that_say_enough_stay_what_they_are() -> None:
    with pytest.raises(MissingWeightsError, match=r"^no vocab$"), library_errors(broken, MissingWeightsError):
        raise MissingWeightsError("no vocab")
    with pytest.raises(BrokenArtifactError, match=r"\(MissingWeightsError: no vocab\)"), library_errors(broken):
        raise MissingWeightsError("no vocab")


def test_what_succeeds_raises_nothing() -> None:
    with library_errors(broken):
        pass

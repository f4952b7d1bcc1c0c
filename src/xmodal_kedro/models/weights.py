"""Where the files of a pretrained model lie: in a directory, or on the hub, of which only what is wanted is fetched.

Also what becomes of the errors that libraries raise at files, or sizes, of which they can make no model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch
from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

from xmodal_kedro.config.weights import weights_source

INDEX = ".index.json"  # ends the name of a file that says which tensor is in which shard
SETTINGS = ("*.json", "vocab.txt", "merges.txt", "*.model")  # what a library may want from the hub besides weights


class MissingWeightsError(FileNotFoundError):
    """The files of a pretrained model are not there; the message says which ones are wanted where."""


@contextmanager
def library_errors(ours: Callable[[str], Exception], *known: type[Exception]) -> Iterator[None]:
    """Turn whatever a library raises into one error of ours; too little memory stays what it is.

    Args:
        ours: Makes it of the kind of the library's error and the first line of what it says.
        known: Errors that say enough already; they stay what they are.
    """
    kept: tuple[type[Exception], ...] = (MemoryError, torch.OutOfMemoryError, *known)
    try:
        yield
    except kept:
        raise
    except Exception as error:  # there is no end to what libraries raise at what they do not expect
        raise ours(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}") from error


class Published:
    """A family of models that are published as directories of files."""

    library_files: ClassVar[tuple[tuple[str, ...], ...]]  # per file that loading wants, the names that it may have

    @classmethod
    def wanted(cls) -> str:
        """What a directory of weights must hold, in words."""
        return "; ".join(" or ".join(choice) for choice in cls.library_files)

    @classmethod
    def missing_files(cls, directory: Path) -> str | None:
        """What a directory lacks that loading wants from it, as a sentence without its stop; None if nothing."""
        return lacking(directory, cls.library_files)

    @classmethod
    def is_file(cls, path: Path) -> bool:
        """Whether a path is the one file that loading wants; then it needs no directory around it."""
        return len(cls.library_files) == 1 and path.is_file()


def find_weights(weights: str, family: type[Published], key: str = "backbone.weights") -> Path:
    """Find the directory of a model, fetching it if `weights` is a hub id that is not cached.

    Args:
        weights: A directory, or `owner/name` of a model on the hub, with or without `hf-hub:`.
        family: Knows what must be there.
        key: Of the config, which errors name.

    Raises:
        MissingWeightsError: Naming directory and files.
    """
    source = weights_source(weights)
    directory = source.path
    if source.kind == "hub":
        try:
            directory = _fetched(source.hub_id, family.library_files)
        except (HFValidationError, HTTPError, OSError) as error:
            raise MissingWeightsError(
                f"{key}: '{weights}' is no directory below {Path.cwd()}, and the hub does not give it "
                f"({type(error).__name__}). {where_to_put(source.hub_id, family.wanted(), key)}"
            ) from error
    elif source.kind == "file":
        raise MissingWeightsError(
            f"{key}: {directory.absolute()} is a file. Give its directory, with: {family.wanted()}"
        )
    elif source.kind != "directory":
        raise MissingWeightsError(f"{key}: there is no directory {directory.absolute()}. Wanted: {family.wanted()}")
    if missing := family.missing_files(directory):
        raise MissingWeightsError(f"{key}: {missing}")
    return directory


def lacking(directory: Path, wanted: Sequence[Sequence[str]]) -> str | None:
    """What a directory lacks of files that are wanted, as a sentence without its stop; None if nothing.

    Args:
        directory: Where they should be.
        wanted: Per file, the names that it may have; of an index its shards are wanted, too.
    """
    found = [next((name for name in choice if (directory / name).is_file()), None) for choice in wanted]
    missing = [" or ".join(choice) for choice, name in zip(wanted, found, strict=True) if name is None]
    for name in found:
        if name is not None and name.endswith(INDEX):
            missing += [shard for shard in _shards(directory / name) if not (directory / shard).is_file()]
    return f"{directory.absolute()} holds no {', and no '.join(missing)}" if missing else None


def _shards(index: Path) -> list[str]:
    """Files that an index names; none where it is damaged, which the library says when it opens it."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (AttributeError, KeyError, TypeError, ValueError):
        return []


def _fetched(hub_id: str, wanted: Sequence[Sequence[str]]) -> Path:
    """The cached files of a model, completed from the hub where that can be reached.

    Of the formats that a model is published in only the first one that is wanted is fetched.
    """
    try:
        there = set(list_repo_files(hub_id))
    except (HTTPError, OSError) as unreachable:
        try:
            # What is there counts, not what else the model was published with.
            return Path(snapshot_download(hub_id, local_files_only=True, allow_patterns=[]))
        except LocalEntryNotFoundError:
            raise unreachable from None
    first = (next((name for name in choice if name in there), None) for choice in wanted)
    names = sorted({name for name in first if name is not None})
    directory = Path(snapshot_download(hub_id, allow_patterns=[*SETTINGS, *names]))
    shards = [shard for name in names if name.endswith(INDEX) for shard in _shards(directory / name)]
    return Path(snapshot_download(hub_id, allow_patterns=shards)) if shards else directory


def where_to_put(hub_id: str, names: str, key: str = "backbone.weights") -> str:
    """What a user does whose machine does not reach the hub."""
    example = Path("data/01_raw/weights", hub_id.rpartition("/")[2]).absolute()
    return (
        f"Fetch these files of https://huggingface.co/{hub_id} elsewhere, put them into {example} or any other "
        f"directory: {names}. Set {key} to a directory that holds them"
    )

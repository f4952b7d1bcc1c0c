"""Artifact directories that exist whole or not at all: a MANIFEST.json, written last, names every file and its hash.

A directory without a manifest does not exist, whatever lies in it: half-written saves are therefore never loaded.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

MANIFEST = "MANIFEST.json"


class BrokenArtifactError(RuntimeError):
    """A directory has no manifest, or its files are not those that the manifest names."""


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content, read in 4 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(4 << 20):
            digest.update(piece)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """Hex digest of any JSON-like value; equal values have equal fingerprints whatever the order of their keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def seal(directory: Path, kind: str, **fingerprints: str) -> dict[str, Any]:
    """Write the manifest of a finished directory and force everything to disk.

    Args:
        directory: Holds the finished files; the manifest is added to it.
        kind: What the directory is: `checkpoint`, `embeddings`, `images`.
        **fingerprints: Of what made it, for example `weights`, `data`, `transform`.

    Returns:
        The manifest: `kind`, `fingerprints`, and `files` with size and sha256 of each.
    """
    files = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST):
        files[path.relative_to(directory).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        _sync(path)
    manifest = {"kind": kind, "fingerprints": fingerprints, "files": files}
    unfinished = directory / (MANIFEST + ".tmp")
    unfinished.write_text(json.dumps(manifest, indent=2, ensure_ascii=False))
    _sync(unfinished)
    unfinished.replace(directory / MANIFEST)
    _sync(directory)
    return manifest


def read_manifest(directory: Path, kind: str | None = None, *, hashes: bool = False) -> dict[str, Any]:
    """Read a manifest and check that its files are there in full.

    Args:
        directory: The artifact directory.
        kind: The kind that is expected; none accepts any.
        hashes: Also compare every sha256, which reads everything once.

    Raises:
        BrokenArtifactError: Naming the directory, the file and what to do.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise BrokenArtifactError(
            f"{directory} has no {MANIFEST}: it was never finished, or it is not ours. Delete it, run the node again."
        )
    manifest: dict[str, Any] = json.loads(path.read_text())
    if kind is not None and manifest["kind"] != kind:
        raise BrokenArtifactError(f"{directory} holds {manifest['kind']}, not {kind}.")
    for name, facts in manifest["files"].items():
        file = directory / name
        if not file.is_file() or file.stat().st_size != facts["bytes"]:
            raise BrokenArtifactError(f"{file} is missing or cut short: load another version, or run the node again.")
        if hashes and sha256_of(file) != facts["sha256"]:
            raise BrokenArtifactError(f"{file} was changed after it was written: its sha256 is not the manifest's.")
    return manifest


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""METEOR 1.5 by its own Java program, where Java and the program are there; otherwise the reason why not.

Denkowski, Lavie: Meteor Universal: Language Specific Translation Evaluation for Any Target Language, WMT 2014. Its
stems, synonyms and paraphrases are megabytes of data that only the program reads, so it is run and not rewritten. The
program comes with the package pycocoevalcap. Like coco-caption it is asked for English (`-l en -norm`), also over
Chinese tokens, where it finds equal tokens only: such numbers compare with each other and with others made that way.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from xmodal_kedro.captioning.metrics.scores import Scores, Tokens, check_references

# Java before 18 writes and reads in the locale's encoding; in the locale C all Chinese characters would be equal.
COMMAND = ["-Dfile.encoding=UTF-8", "-Xmx2G", "-jar"]
SETTINGS = ["-", "-", "-stdio", "-l", "en", "-norm"]


class MeteorError(RuntimeError):
    """Java or the program is not there, or it stopped."""


def meteor_unavailable() -> str | None:
    """Why METEOR cannot be computed here, or None."""
    if shutil.which("java") is None:
        return "METEOR needs Java, and there is no `java` on the PATH."
    if _program() is None:
        return "METEOR needs its program meteor-1.5.jar, which comes with the package pycocoevalcap: install that."
    return None


def meteor(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Scores:
    """METEOR, between 0 and 1; the value is pooled by the program, and is not the mean of `each`.

    Args:
        captions: [n] tokens of one caption per image.
        references: [n] tokens of every reference of the image.

    Raises:
        ValueError: As `check_references`.
        MeteorError: It is unavailable (the reason is given), or the program stopped (its last words are).
    """
    check_references(captions, references)
    if reason := meteor_unavailable():
        raise MeteorError(reason)
    with tempfile.TemporaryFile() as complaints:
        program = subprocess.Popen(
            ["java", *COMMAND, str(_program()), *SETTINGS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            encoding="utf-8",
        )
        try:
            statistics = [
                _ask(program, _line(["SCORE", *map(_text, texts), _text(caption)]), complaints)
                for caption, texts in zip(captions, references, strict=True)
            ]
            found = [_ask(program, _line(["EVAL", *statistics]), complaints)]
            found += [_ask(program, "", complaints) for _ in captions]
        finally:
            program.kill()
            with contextlib.suppress(BrokenPipeError):  # of what it did not read
                program.communicate()
    *each, value = map(float, found)
    return Scores(value, np.array(each), pooled=True)


def _ask(program: subprocess.Popen[str], line: str, complaints: IO[bytes]) -> str:
    """The program's next line, after one was sent if there is any."""
    assert program.stdin is not None
    assert program.stdout is not None
    try:
        program.stdin.write(line)
        program.stdin.flush()
        answer = program.stdout.readline().strip()
    except BrokenPipeError:
        answer = ""
    if not answer:
        program.kill()
        program.wait()  # until all it says is written
        complaints.seek(0)
        said = complaints.read().decode(errors="replace").strip()[-500:]
        raise MeteorError(f"the program of METEOR stopped: {said or 'it gave no reason'}")
    return answer


def _line(parts: Sequence[str]) -> str:
    return " ||| ".join(parts) + "\n"


def _text(tokens: Tokens) -> str:
    """Tokens with a blank between them; the separator of the program's protocol cannot be part of a text."""
    return " ".join(" ".join(tokens).replace("|||", "").split())


def _program() -> Path | None:
    package = importlib.util.find_spec("pycocoevalcap")
    folders = (package.submodule_search_locations or []) if package else []
    found = [Path(folder) / "meteor" / "meteor-1.5.jar" for folder in folders]
    return next((file for file in found if file.is_file()), None)

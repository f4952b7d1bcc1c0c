"""METEOR 1.5 by its own Java program, where Java and the program are there; otherwise the reason why not.

Denkowski, Lavie: Meteor Universal: Language Specific Translation Evaluation for Any Target Language, WMT 2014. Its
stems, synonyms and paraphrases are megabytes of data that only the program reads, so it is run and not rewritten. The
program comes with the package pycocoevalcap. Like coco-caption it is asked for English (`-l en -norm`), also over
Chinese tokens, where it finds equal tokens only: such numbers compare with each other and with others made that way.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from xmodal_kedro.captioning.metrics.scores import Scores, Tokens, check_references

# Java before 18 writes and reads in the locale's encoding; in the locale C all Chinese characters would be equal.
COMMAND = ["-Dfile.encoding=UTF-8", "-Xmx2G", "-jar"]
SETTINGS = ["-", "-", "-stdio", "-l", "en", "-norm"]
_LOCK = threading.Lock()  # the program answers one caller after the other


class MeteorError(RuntimeError):
    """Java or the program is not there, or it stopped."""


def meteor_unavailable() -> str | None:
    """Why METEOR cannot be computed here, or None."""
    if shutil.which("java") is None:
        return "METEOR needs Java, and there is no `java` on the PATH."
    if _jar() is None:
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
    with _LOCK:
        program = _started(str(_jar()))
        try:
            asked = zip(captions, references, strict=True)
            total = len(captions)
            pairs = tqdm(asked, "METEOR", total, leave=False, unit="caption", delay=3, disable=None)
            statistics = [program.ask(_line(["SCORE", *map(_text, texts), _text(one)])) for one, texts in pairs]
            found = [program.ask(_line(["EVAL", *statistics]))]
            found += [program.ask("") for _ in captions]
        except BaseException:  # an interruption too: answers that nobody read would be taken for those to the next
            _started.cache_clear()
            program.end()
            raise
    *each, value = map(float, found)
    return Scores(value, np.array(each), pooled=True)


class _Program:
    """The running program, which speaks line by line."""

    def __init__(self, jar: str) -> None:
        self.complaints = tempfile.TemporaryFile()  # noqa: SIM115, lives as long as the program
        self.process = subprocess.Popen(
            ["java", *COMMAND, jar, *SETTINGS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.complaints,
            encoding="utf-8",
        )
        atexit.register(self.end)

    def ask(self, line: str) -> str:
        """The program's next line, after one was sent if there is any."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
            answer = self.process.stdout.readline().strip()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.process.kill()
            self.process.wait()  # until all it says is written
            self.complaints.seek(0)
            said = self.complaints.read().decode(errors="replace").strip()[-500:]
            raise MeteorError(f"the program of METEOR stopped: {said or 'it gave no reason'}")
        return answer

    def end(self) -> None:
        """Stop it."""
        atexit.unregister(self.end)
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):  # of what it did not read
            self.process.communicate()
        self.complaints.close()


@cache
def _started(jar: str) -> _Program:
    """The one program of this process: it takes seconds to load its data."""
    return _Program(jar)


def _line(parts: Sequence[str]) -> str:
    return " ||| ".join(parts) + "\n"


def _text(tokens: Tokens) -> str:
    """Tokens with a blank between them; the separator of the program's protocol cannot be part of a text."""
    return " ".join(" ".join(tokens).replace("|||", "").split())


def _jar() -> Path | None:
    package = importlib.util.find_spec("pycocoevalcap")
    folders = (package.submodule_search_locations or []) if package else []
    found = [Path(folder) / "meteor" / "meteor-1.5.jar" for folder in folders]
    return next((file for file in found if file.is_file()), None)

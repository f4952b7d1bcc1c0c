"""Tiny sides of a contest, in a module of their own: the processes that measure memory import it."""

from __future__ import annotations

import multiprocessing
import os
import time
from typing import Any

import numpy as np

from benchmarks.isolated import UNMET

MB = 1 << 20


def numbers() -> np.ndarray:
    return np.arange(1000.0)


def few() -> np.ndarray:
    return np.arange(3.0)


def fast(given: np.ndarray) -> float:
    return float(given.sum())


def slow(given: np.ndarray) -> float:
    time.sleep(0.02)
    return float(given.sum())


def wrong(given: np.ndarray) -> float:
    return float(given.sum()) + 1.0


def nothing(given: np.ndarray) -> None:
    time.sleep(0.001)


def hungry(given: np.ndarray) -> float:
    """Holds 64 MB for a moment; small inputs hold nothing."""
    block = np.ones(64 * MB // 8 if len(given) > 3 else 1)
    return float(given.sum() + 0.0 * block[0])


def elsewhere(given: np.ndarray) -> float:
    """Refuses to run in the process of the test."""
    assert multiprocessing.parent_process() is not None
    return hungry(given)


def failing(given: np.ndarray) -> float:
    raise ValueError("not today")


def same(outputs: dict[str, Any]) -> dict[str, str]:
    for name, found in outputs.items():
        assert found == outputs["ours"], f"{name} says {found}, we say {outputs['ours']}"
    return {name: "the same sum" for name in outputs if name != "ours"}


def met(name: str, options: Any) -> None:
    raise SystemExit(0)


def missed(name: str, options: Any) -> None:
    raise SystemExit(UNMET)


def uncaught(name: str, options: Any) -> None:
    raise ValueError("not today")


def broken(name: str, options: Any) -> None:
    raise SystemExit(2)


def killed(name: str, options: Any) -> None:
    os.kill(os.getpid(), 9)


ENDS = {"met": met, "missed": missed, "broken": broken, "uncaught": uncaught, "killed": killed}

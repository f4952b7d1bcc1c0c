import time
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict

from xmodal_kedro.tracking.sink import metric_sink


class TrainConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    lr: float
    steps: int
    warmup: int | None
    betas: list[float]
    note: str
    schedule: str = "cosine"


def make_pairs(seed: int) -> pd.DataFrame:
    return pd.DataFrame({"image_id": ["x", "y"], "text": ["a car", None], "row": [seed, seed + 1]})


def train(pairs: pd.DataFrame, train: TrainConfig, behaviour: dict[str, str]) -> dict[str, Any]:
    with metric_sink() as report:
        for step in range(train.steps):
            report(step, {"train/loss": 1 / (step + 1), "train/lr": train.lr if step != 30 else float("nan")})
            if step == 20:
                obey("train", behaviour)
    return {"lr": train.lr}


def embed(checkpoint: dict[str, Any], behaviour: dict[str, str]) -> dict[str, Any]:
    obey(f"embed {checkpoint['lr']}", behaviour)
    return {"of": checkpoint}


def evaluate(embeddings: dict[str, Any], pairs: pd.DataFrame) -> pd.DataFrame:
    score = embeddings["of"]["lr"]
    rows = [("val", "vehicle", "t2i", "map_at_10", score, score - 0.05, score + 0.05), ("val", None, "t2i", "R@1", 0.5)]
    return pd.DataFrame(rows, columns=["split", "group", "direction", "metric", "value", "low", "high"])


def ensemble(a: dict[str, Any], b: dict[str, Any], behaviour: dict[str, str]) -> dict[str, Any]:
    obey("ensemble", behaviour)
    return {"val": {"map_at_10": a["of"]["lr"] + b["of"]["lr"]}, "weights": "equal"}


def obey(place: str, behaviour: dict[str, str]) -> None:
    if behaviour["fail"] == place:
        raise ValueError(f"{place} was told to fail")
    if behaviour["fail"] == f"{place} interrupted":
        raise KeyboardInterrupt
    if behaviour["wait"] == f"{place} briefly":
        time.sleep(2.5)
    if behaviour["wait"] == place:
        Path("waiting").touch()
        time.sleep(60)

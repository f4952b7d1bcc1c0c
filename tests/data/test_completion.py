"""Missing attributes are completed as a slow reference completes them, from rows that lack some, once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from tests.data.test_prompts import BITS, pairs
from tests.reference.completion import complete_row
from xmodal_kedro.config.data import CompletionConfig, GroupPrompts, PromptsConfig
from xmodal_kedro.config.member import BackboneConfig, LoraConfig
from xmodal_kedro.data import completion
from xmodal_kedro.data.attributes import Vocabulary
from xmodal_kedro.data.completion import (
    COLUMNS,
    complete,
    complete_or_reuse,
    completion_key,
    incomplete_rows,
    untuned,
)
from xmodal_kedro.data.prompts import augment

VOCABULARY = Vocabulary(("black", "red", "white"), ("Audi", "Golden Dragon", "Yutong"), ("Bus", "SUV"))
TABLE = pairs(
    ("v1", "a:1", "This is a white Audi.", "vehicle", "white Audi", "train"),
    ("v2", "a:2", "A SUV.", "vehicle", "A SUV.", "train"),
    ("v3", "a:3", "A red Golden Dragon Bus.", "vehicle", "red Golden Dragon Bus", "train"),
    ("v4", "a:4", "Golden Dragon", "vehicle", "Golden Dragon", "train"),
    ("v1", "a:5", "A white one", "vehicle", "white", "train"),
    ("v5", "a:6", "Something", "vehicle", "Something odd", "train"),
    ("v6", "a:7", "No phrase", "vehicle", None, "train"),
    ("gone", "a:8", "A SUV.", "vehicle", "A SUV.", "train"),
    ("v7", None, None, "vehicle", "A SUV.", "train"),
    (None, "a:9", "A SUV.", "vehicle", "A SUV.", "train"),
    ("p1", "a:10", "A man.", "pedestrian", BITS, "train"),
    ("v8", "b:1", "A SUV.", "vehicle", "A SUV.", "val"),
    ("v9", "c:1", "A SUV.", "vehicle", "A SUV.", "dev"),
)
IMAGES = pd.Index(["v1", "v2", "v3", "v4", "v5", "v6", "v7", "p1", "v8", "v9"])
PROMPTS = PromptsConfig()


def rows_of(config: CompletionConfig, vocabulary: Vocabulary = VOCABULARY) -> pd.DataFrame:
    return incomplete_rows(TABLE, IMAGES, PROMPTS, vocabulary, config)


class Fake:
    """Features made up for each id or text; remembers what it was asked. Few distinct ones, so that there are ties."""

    def __init__(self, width: int, kinds: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        features = rng.normal(size=(kinds, width)).astype(np.float32)
        self.features = features / np.linalg.norm(features, axis=1, keepdims=True)
        self.kinds = kinds
        self.asked: list[str] = []

    def of(self, name: str) -> np.ndarray:
        return self.features[sum(map(ord, name)) * 7919 % self.kinds]

    def __call__(self, names: list[str]) -> np.ndarray:
        self.asked += names
        return np.stack([self.of(name) for name in names])


def sentence(color: str | None, brand: str | None, kind: str | None) -> str:
    return "This is a " + " ".join(part for part in (color, brand, kind) if part) + "."


def test_rows_that_lack_a_part_are_found() -> None:
    rows = rows_of(CompletionConfig(member="m"))
    assert rows.replace({np.nan: None}).to_numpy().tolist() == [
        ["v1", "a:1", "white", "Audi", None, "type"],
        ["v2", "a:2", None, None, "SUV", "color"],
        ["v4", "a:4", None, "Golden Dragon", None, "color type"],
        ["v1", "a:5", "white", None, None, "type"],
        ["v5", "a:6", None, None, None, "color type"],
    ]
    with_brands = rows_of(CompletionConfig(member="m", parts=["brand", "color", "type"]))
    assert with_brands.set_index("text_id")["completed"].to_dict() == {
        "a:1": "type",
        "a:2": "color brand",
        "a:4": "color type",
        "a:5": "brand type",
        "a:6": "color brand type",
    }


def test_a_part_without_vocabulary_is_not_completed() -> None:
    without = Vocabulary((), VOCABULARY.brands, VOCABULARY.types)
    rows = rows_of(CompletionConfig(member="m"), without)
    assert dict(zip(rows["text_id"], rows["completed"], strict=True)) == {
        "a:1": "type",
        "a:4": "type",
        "a:5": "type",
        "a:6": "type",
    }
    assert rows_of(CompletionConfig(member="m"), Vocabulary()).empty


@pytest.mark.parametrize("block", [completion.BLOCK, 1, 7])
@pytest.mark.parametrize("kinds", [3, 1000])
@pytest.mark.parametrize("parts", [["color"], ["color", "type"], ["type", "brand", "color"]])
def test_completion_agrees_with_the_reference(
    parts: list, kinds: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completion, "BLOCK", block)
    rng = np.random.default_rng(1)
    entries = {"color": VOCABULARY.colors, "brand": VOCABULARY.brands, "type": VOCABULARY.types}
    records = []
    for number in range(60):
        words = [rng.choice(entries[part]) for part in entries if rng.random() < 0.5]
        records.append((f"v{number % 23}", f"a:{number}", "text", "vehicle", " ".join(words) or "unknown", "train"))
    table = pairs(*records)
    config = CompletionConfig(member="m", parts=parts)
    rows = incomplete_rows(table, pd.Index(table["image_id"].unique()), PROMPTS, VOCABULARY, config)
    images, texts = Fake(16, 1000), Fake(16, kinds, seed=2)
    found = complete(rows, VOCABULARY, config.template, images, texts)
    assert list(found.columns) == COLUMNS
    pd.testing.assert_frame_equal(
        found[["image_id", "text_id", "completed"]], rows[["image_id", "text_id", "completed"]]
    )
    assert len(images.asked) == len(set(images.asked)) == rows["image_id"].nunique()
    assert len(texts.asked) == len(set(texts.asked))
    features = {text: texts.of(text) for text in texts.asked}
    offered = {part: list(entries[part]) for part in parts}
    for row, before in zip(found.to_dict("records"), rows.to_dict("records"), strict=True):
        known = {part: before[part] for part in entries if isinstance(before[part], str)}
        expected, score, margin = complete_row(known, offered, sentence, images.of(row["image_id"]), features)
        assert {part: row[part] for part in entries if isinstance(row[part], str)} == expected
        assert row["score"] == pytest.approx(score, abs=1e-6)
        assert row["margin"] == pytest.approx(np.nan if margin is None else margin, abs=3e-6, nan_ok=True)


def test_candidates_that_score_the_same_are_taken_in_the_order_of_the_vocabulary() -> None:
    rows = rows_of(CompletionConfig(member="m")).iloc[[2]]
    found = complete(rows, VOCABULARY, "{color} {brand} {type}", Fake(5, 1), Fake(5, 1))
    assert found[["color", "brand", "type", "margin"]].to_numpy().tolist() == [["black", "Golden Dragon", "Bus", 0.0]]


def test_the_only_candidate_has_no_lead() -> None:
    one = Vocabulary((), VOCABULARY.brands, ("Bus",))
    rows = rows_of(CompletionConfig(member="m"), one).iloc[:1]
    found = complete(rows, one, "{color} {brand} {type}", Fake(5, 1), Fake(5, 1))
    assert found["type"].tolist() == ["Bus"]
    assert found["score"].tolist() == pytest.approx([1.0])
    assert found["margin"].isna().all()


def test_nothing_to_complete_asks_no_model(tmp_path: Path) -> None:
    rows = rows_of(CompletionConfig(member="m"), Vocabulary())

    def never(names: list[str]) -> np.ndarray:
        raise AssertionError(names)

    table = complete(rows, VOCABULARY, "{color} {type}", never, never)
    assert list(table.columns) == COLUMNS
    assert table.empty
    again, reused = complete_or_reuse(rows, tmp_path / "store", never, lambda: table)  # type: ignore[arg-type]
    assert again.empty
    assert not reused
    assert not (tmp_path / "store").exists()
    captions = augment(TABLE, PromptsConfig(groups={"vehicle": GroupPrompts(replace="{type}")}), VOCABULARY, table)
    assert captions["text"].iloc[1] == "SUV"


def test_the_readme_form_is_made_of_completed_rows() -> None:
    config = CompletionConfig(member="m")
    found = complete(rows_of(config), VOCABULARY, config.template, Fake(5, 1), Fake(5, 1))
    prompts = PromptsConfig(groups={"vehicle": GroupPrompts(replace="This is a {color} {brand} {type}.")})
    captions = augment(TABLE, prompts, VOCABULARY, found)
    assert captions["text"].tolist()[:7] == [
        "This is a white Audi Bus.",
        "This is a black SUV.",
        "This is a red Golden Dragon Bus.",
        "This is a black Golden Dragon Bus.",
        "This is a white Bus.",
        "This is a black Bus.",
        "No phrase",
    ]
    pd.testing.assert_series_equal(captions["attributes"], TABLE["attributes"])


BACKBONE = BackboneConfig(name="open_clip", architecture={"embed_dim": 8})


def key_of(rows: pd.DataFrame, **changes: object) -> str:
    facts: dict = {
        "vocabulary": VOCABULARY,
        "completion": CompletionConfig(member="m"),
        "backbone": BACKBONE,
        "seed": 0,
        "precision": "fp32",
        "images": "pixels",
    }
    return completion_key(rows, **(facts | changes))


def test_what_was_completed_is_kept_until_something_changes(tmp_path: Path) -> None:
    rows = rows_of(CompletionConfig(member="m"))
    calls = []

    def make() -> pd.DataFrame:
        calls.append(1)
        return complete(rows, VOCABULARY, "{color} {brand} {type}", Fake(5, 7), Fake(5, 9))

    first, reused = complete_or_reuse(rows, tmp_path, lambda: key_of(rows), make)
    assert not reused
    second, reused = complete_or_reuse(rows, tmp_path, lambda: key_of(rows), make)
    assert reused
    assert len(calls) == 1
    pd.testing.assert_frame_equal(first, second)

    (file,) = tmp_path.glob("*/completed.parquet")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    third, reused = complete_or_reuse(rows, tmp_path, lambda: key_of(rows), make)
    assert not reused
    pd.testing.assert_frame_equal(first, third)
    assert [path.name for path in tmp_path.iterdir()] == [file.parent.name]


def test_a_model_that_is_fetched_while_it_is_loaded_is_found_again(tmp_path: Path) -> None:
    weights = tmp_path / "model"
    weights.mkdir()
    (weights / "model.pth").write_bytes(b"1")
    rows = rows_of(CompletionConfig(member="m"))
    backbone = BackboneConfig(name="open_clip", weights=str(weights))

    def key() -> str:
        return key_of(rows, backbone=backbone)

    def make() -> pd.DataFrame:
        (weights / "model.safetensors").write_bytes(b"2")
        return complete(rows, VOCABULARY, "{color} {brand} {type}", Fake(5, 7), Fake(5, 9))

    assert not complete_or_reuse(rows, tmp_path / "store", key, make)[1]
    assert complete_or_reuse(rows, tmp_path / "store", key, make)[1]
    (weights / "model.safetensors").write_bytes(b"other")
    assert not complete_or_reuse(rows, tmp_path / "store", key, make)[1]


def test_the_key_changes_with_all_that_decides_and_with_nothing_else() -> None:
    rows = rows_of(CompletionConfig(member="m"))
    key = key_of(rows)
    assert key == key_of(rows, completion=CompletionConfig(member="other", store="elsewhere"))
    tuned = BACKBONE.model_copy(update={"lora": LoraConfig(), "unlocked_groups": {"image": 1}})
    assert key == key_of(rows, backbone=untuned(tuned))
    others = {
        key_of(rows.iloc[:-1]),
        key_of(rows, vocabulary=Vocabulary(VOCABULARY.brands, VOCABULARY.colors, VOCABULARY.types)),
        key_of(rows, completion=CompletionConfig(member="m", template="{color} {type}")),
        key_of(rows, completion=CompletionConfig(member="m", parts=["color"])),
        key_of(rows, backbone=BACKBONE.model_copy(update={"architecture": {"embed_dim": 9}})),
        key_of(rows, seed=1),
        key_of(rows, precision="bf16"),
        key_of(rows, images="other pixels"),
    }
    assert len(others | {key}) == 9


def test_a_template_that_hides_a_part_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"template does not name \{brand\}"):
        CompletionConfig(member="m", parts=["brand"], template="{color} {type}")
    with pytest.raises(ValidationError, match=r"template names \{text\}"):
        CompletionConfig(member="m", template="{text} {color} {type}")

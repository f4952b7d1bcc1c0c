"""The study tries its whole grid on dev alone, keeps the first of equals, and marks in its tables what is sure."""

import json

import numpy as np
import pytest
from scipy import sparse

from benchmarks import study, study_page
from xmodal_kedro.retrieval.embeddings import Embeddings
from xmodal_kedro.retrieval.ensemble import Member
from xmodal_kedro.retrieval.slices import Slice


def unit(rng, n):
    vectors = rng.standard_normal((n, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def bench():
    rng = np.random.default_rng(0)
    parts, sides = [], {"text": [], "image": []}
    for split, n in (("dev", 24), ("val", 30)):
        ids = {side: [f"{split}-{side}-{row}" for row in range(n)] for side in sides}
        for side, names in ids.items():
            sides[side] += names
        parts.append(
            Slice(split, "all", ids["text"], ids["text"], ids["image"], sparse.eye_array(n, dtype=bool, format="csr"))
        )
    members = []
    for name in ("one", "two"):
        images = unit(rng, 54)
        texts = images + 0.8 * unit(rng, 54)
        texts /= np.linalg.norm(texts, axis=1, keepdims=True)
        both = {
            side: Embeddings(
                np.array([*sides[side], *(f"bank:{i}" for i in range(9))], dtype=object),
                np.concatenate([matrix, unit(rng, 9)]),
                {"member": name, "side": side, "fingerprints": {"weights": name}, "bank_size": 1000},
                np.array([None] * 54 + ["all"] * 9, dtype=object),
            )
            for side, matrix in (("text", texts), ("image", images))
        }
        members.append(Member(name, both["text"], both["image"]))
    return study.Bench(members, parts[:1], parts[1:], ("recall_at_1",))


def test_every_registered_step_is_studied(bench, monkeypatch):
    monkeypatch.setattr(
        study, "KNOBS", {name: {k: v[:2] for k, v in knobs.items()} for name, knobs in study.KNOBS.items()}
    )
    monkeypatch.setattr(study, "RESAMPLES", 50)
    rows = study.study(bench, lambda doing: None)
    named = {(row["kind"], row["name"]) for row in rows}
    assert {name for kind, name in named if kind == "normalisation"} == set(study.NORMALISATIONS)
    assert {name for kind, name in named if kind == "re-rank"} == {
        "none",
        *(name for name, stage in study.SECOND_STAGES.items() if not stage.head),
    }
    assert all(
        any(method in name or method == "weighted" for kind, name in named if kind == "fusion")
        for method in study.FUSIONS
    )
    assert {row["direction"] for row in rows} == {"t2i", "i2t"}
    for row in rows:
        facts = next(iter(row["metrics"].values()))
        assert ("gain" in facts) == (row["name"] not in ("none", "best of each"))
        assert facts["low"] <= facts["value"] <= facts["high"]
    page = study_page.table(
        "tiny", json.loads(json.dumps({"metrics": ["recall_at_1"], "sizes": {"dev": (24, 24)}, "rows": rows}))
    )
    assert page.count("\n|") >= len(rows)


def test_dev_decides_and_the_first_of_equals_wins(bench, monkeypatch):
    asked = []

    def on_dev(bench, scored, direction):
        asked.append(scored)
        return [0.2, 0.5, 0.5, 0.1][len(asked) - 1]

    base = lambda part: bench.members[0].scores(part, study.FusionConfig(normalisation="none"), "t2i")  # noqa: E731
    settings = [{"knob": value} for value in "abc"]
    steps = [
        study.Treatment("step", "none", "one", [{}], lambda _: base, None),
        study.Treatment("step", "tried", "one", settings, lambda _: base, base),
    ]
    monkeypatch.setattr(study, "on_dev", on_dev)
    monkeypatch.setattr(study, "DIRECTIONS", ("t2i",))
    monkeypatch.setattr(study, "treatments", lambda bench, direction: steps)
    monkeypatch.setattr(study, "matchings", lambda bench, direction: [])
    _, tried = study.study(bench, lambda doing: None)
    assert tried["setting"] == {"knob": "a"}  # 0.5 before 0.5 and 0.1
    assert tried["metrics"]["recall_at_1"]["gain"] == 0.0


def test_cells_say_what_is_sure():
    facts = {"value": 0.1, "low": 0.08, "high": 0.12, "gain": 0.02, "gain_low": 0.001, "gain_high": 0.04, "p": 0.03}
    assert study_page.shown(facts) == "10.0 [8.0, 12.0]"
    assert study_page.gain(facts) == "**+2.0 [+0.1, +4.0]** p 0.030"
    assert study_page.gain(facts | {"gain_low": -0.01}) == "+2.0 [-1.0, +4.0] p 0.030"
    assert study_page.gain({"value": 0.1}) == ""
    assert [study_page.label(name) for name in ("map_at_10", "recall_at_1", "matching_accuracy")] == [
        "mAP@10",
        "R@1",
        "matching accuracy",
    ]


def test_one_text_for_each_image():
    truth = sparse.csr_array(np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1]], dtype=bool))
    part = Slice("val", "all", list("abcde"), list("ABCDE"), ["x", "y"], truth)
    found = study.one_text_each(part)
    assert (found.text_ids, found.image_ids) == (["a", "c"], ["x", "y"])
    assert found.relevance.toarray().tolist() == [[True, False], [False, True]]

"""Per-attribute results equal a loop over the texts of each label, and labels say what attribute strings mean."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.reference import metrics as reference
from xmodal_kedro.config.data import PromptsConfig, RelevanceConfig, VehicleVocabulary
from xmodal_kedro.config.ensemble import EvaluationConfig
from xmodal_kedro.retrieval.embeddings import Embeddings
from xmodal_kedro.retrieval.judge import ATTRIBUTE_COLUMNS, attribute_table, embedding_scores, judge_slices
from xmodal_kedro.retrieval.slices import attribute_labels, cut_slices

RELEVANCE = RelevanceConfig(default="id", groups={"vehicle": "attribute_text"})
EVALUATION = EvaluationConfig(ks=[1, 5], bootstrap=40)
BITS = ",1,0,0,1" + ",0" * 16
LOOKS = {
    "vehicle": [
        ("A white Audi Sedan.", {"color": "white", "brand": "Audi", "type": "Sedan"}),
        ("A red Yutong Bus.", {"color": "red", "brand": "Yutong", "type": "Bus"}),
        ("A white Yutong.", {"color": "white", "brand": "Yutong"}),
        (None, {}),
    ],
    "pedestrian": [("1" + BITS, {"gender": "female"}), ("0" + BITS, {"gender": "male"})],
    "shop": [("shoes", {"attributes": "shoes"}), ("bags", {"attributes": "bags"})],
}


def captions() -> pd.DataFrame:
    """In each split and group 12 texts, each with an image of its own, and the looks in turn."""
    rows = []
    for split in ("train", "dev", "val"):
        for group, looks in LOOKS.items():
            for number in range(12):
                name = f"{split}/{group}/{number}"
                rows.append(
                    {"image_id": f"{name}.jpg", "text_id": f"{name}.txt", "text": f"{group} {number % 10}"}
                    | {"group": group, "attributes": looks[number % len(looks)][0], "split": split}
                    | {"row": number, "source": split}
                )
    rows.append(rows[-1] | {"text_id": None, "text": None, "image_id": "alone.jpg"})
    return pd.DataFrame(rows)


TABLE = captions()
SLICES = cut_slices(TABLE, RELEVANCE, ["dev", "val"])


def embeddings(side: str, seed: int) -> Embeddings:
    ids = TABLE[f"{side}_id"].dropna().unique().tolist()
    matrix = np.random.default_rng(seed).normal(size=(len(ids), 4)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return Embeddings(ids, matrix, {"member": "vit", "side": side, "fingerprints": {}})


TEXTS, IMAGES = embeddings("text", 1), embeddings("image", 2)


def test_every_label_is_judged_as_by_a_loop_over_its_texts() -> None:
    judged = judge_slices(SLICES, embedding_scores(TEXTS, IMAGES), EVALUATION.ks)
    table = attribute_table("vit", judged, SLICES, attribute_labels(TABLE, PromptsConfig()), EVALUATION, at_least=4)
    expected: dict[tuple, list[list[int]]] = {}
    sizes = {}
    for part in SLICES:
        scores = TEXTS.take(part.text_ids).astype(float) @ IMAGES.take(part.image_ids).astype(float).T
        truth = part.relevance.toarray()
        for number in range(12):
            for attribute, label in LOOKS[part.group][number % len(LOOKS[part.group])][1].items():
                ranks = reference.ranked(scores[number].tolist(), truth[number].tolist())
                expected.setdefault((part.split, part.group, attribute, label), []).append(ranks)
        sizes[part.split, part.group] = len(part.image_ids)
    expected = {key: lists for key, lists in expected.items() if len(lists) >= 4}
    assert ("val", "vehicle", "color", "white") in expected
    assert ("val", "vehicle", "type", "Bus") not in expected  # three of twelve
    keys = ["split", "group", "attribute", "label"]
    assert set(table[keys].itertuples(index=False, name=None)) == set(expected)
    assert not table.duplicated([*keys, "metric"]).any()
    assert list(table.columns) == ATTRIBUTE_COLUMNS
    assert set(table["member"]) == {"vit"}
    assert set(table["direction"]) == {"t2i"}
    cells = table.set_index([*keys, "metric"])
    for key, lists in expected.items():
        for metric in ("recall_at_1", "recall_at_5", "map_at_10", "mrr", "mean_rank"):
            row = cells.loc[(*key, metric)]
            assert row["value"] == pytest.approx(np.mean([reference.value(metric, ranks) for ranks in lists]))
            assert row["low"] <= row["value"] <= row["high"]
            assert (row["n_queries"], row["n_gallery"]) == (len(lists), sizes[key[:2]])


def test_labels_with_few_texts_are_left_out_and_their_table_keeps_its_columns() -> None:
    judged = judge_slices(SLICES, embedding_scores(TEXTS, IMAGES), EVALUATION.ks)
    labels = attribute_labels(TABLE, PromptsConfig())
    six = attribute_table("vit", judged, SLICES, labels, EVALUATION, at_least=6)
    assert set(six["label"]) == {"white", "Yutong", "female", "male", "shoes", "bags"}
    for few, at_least in ((labels, 20), (labels[[]], 1)):
        table = attribute_table("vit", judged, SLICES, few, EVALUATION, at_least)
        assert len(table) == 0
        assert list(table.columns) == ATTRIBUTE_COLUMNS


def test_labels_are_the_parts_of_phrases_the_known_bit_and_whatever_else_is_said() -> None:
    labels = attribute_labels(TABLE, PromptsConfig())
    assert list(labels.columns) == ["color", "brand", "type", "gender", "attributes"]
    for row in TABLE.dropna(subset=["text_id", "attributes"]).itertuples():
        assert labels.loc[row.text_id].dropna().to_dict() == dict(LOOKS[row.group])[row.attributes]
    assert len(labels) == labels.index.nunique() == TABLE["attributes"][TABLE["text_id"].notna()].notna().sum()


def test_the_vocabulary_is_that_of_train_or_as_given_and_the_group_is_named() -> None:
    rare = TABLE.assign(attributes=TABLE["attributes"].str.replace("Yutong", "Higer"))
    mixed = pd.concat([TABLE[TABLE["split"] == "train"], rare[rare["split"] != "train"]])
    assert "Higer" not in set(attribute_labels(mixed, PromptsConfig())["brand"])
    given = VehicleVocabulary(colors=["white"], brands=["Higer"], types=["Bus"])
    labels = attribute_labels(mixed, PromptsConfig(vocabulary=given)).loc[["val/vehicle/0.txt", "val/vehicle/1.txt"]]
    assert labels[["color", "brand", "type"]].fillna("").to_numpy().tolist() == [
        ["white", "", ""],
        ["", "Higer", "Bus"],
    ]
    other = attribute_labels(TABLE, PromptsConfig(vehicle_group="car"))
    assert list(other.columns) == ["gender", "attributes"]
    assert other.loc["val/vehicle/0.txt", "attributes"] == "white Audi Sedan"  # as it is, but for article and period


@pytest.mark.parametrize("string", ["1,0,1", ",".join("x" * 21), ",".join("2" * 21)])
def test_what_is_no_vector_of_bits_is_a_label_as_it_is(string: str) -> None:
    table = TABLE.assign(attributes=np.where(TABLE["group"] == "shop", string, TABLE["attributes"]))
    assert set(attribute_labels(table, PromptsConfig())["attributes"].dropna()) == {string}


def test_captions_without_attributes_have_no_labels() -> None:
    for table in (TABLE.assign(attributes=None), TABLE[:0]):
        labels = attribute_labels(table, PromptsConfig())
        assert labels.shape == (0, 0)

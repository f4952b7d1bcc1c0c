"""The bank is drawn from train alone, by seed and group; it is saved, carried to new data, and refused where stale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.reference import hubness as reference
from xmodal_kedro.config.data import RelevanceConfig
from xmodal_kedro.config.ensemble import BANKED, FusionConfig
from xmodal_kedro.retrieval.bank import draw_bank, with_bank, with_bank_of
from xmodal_kedro.retrieval.embeddings import Embeddings, OtherOriginError
from xmodal_kedro.retrieval.ensemble import Member, choose_weights, fused_scores
from xmodal_kedro.retrieval.normalise import NORMALISATIONS
from xmodal_kedro.retrieval.slices import cut_slices

DIM = 16
FUSION = FusionConfig(normalisation="qb_norm", bank_size=12, temperature=0.05)


def captions() -> pd.DataFrame:
    rows = [
        {"image_id": f"{split}/{n}.jpg", "text_id": f"{split}/{n}", "text": f"{split} {n}", "group": group, "row": n}
        | {"split": split, "attributes": None}
        for split in ("train", "dev", "val")
        for group, numbers in (("cars", range(20)), ("people", range(20, 50)))
        for n in numbers
    ]
    return pd.DataFrame(rows)


TABLE = captions()


def member(name: str, noise: float, seed: int, fusion: FusionConfig = FUSION) -> Member:
    """Both sides with banks, from a member that knows which text belongs to which image, up to noise."""
    rng = np.random.default_rng(seed)
    sides = {}
    for side in ("text", "image"):

        def embed(rows: pd.DataFrame) -> np.ndarray:
            known = np.stack(
                [
                    np.random.default_rng([row, len(s)]).normal(size=DIM)
                    for row, s in zip(rows["row"], rows["split"], strict=True)
                ]
            )
            noisy = (known + noise * rng.normal(size=known.shape)).astype(np.float32)
            return noisy / np.linalg.norm(noisy, axis=1, keepdims=True)

        ranked, drawn = TABLE[TABLE["split"] != "train"], draw_bank(TABLE, side, fusion.bank_size)
        made_by = {"weights": name, "captions": "these", "transform": "t"}
        plain = Embeddings(
            ranked[f"{side}_id"].tolist(), embed(ranked), {"member": name, "side": side, "fingerprints": made_by}
        )
        ids, groups = drawn[f"{side}_id"].tolist(), drawn["group"].tolist()
        sides[side] = with_bank(plain, ids, groups, embed(drawn), fusion.bank_size)
    return Member(name, sides["text"], sides["image"])


GOOD, POOR = member("good", 0.5, 1), member("poor", 30.0, 2)


def test_names_that_need_a_bank_are_those_of_the_registry() -> None:
    assert set(BANKED) == {name for name, entry in NORMALISATIONS.items() if entry.banked}


@pytest.mark.parametrize("side", ["text", "image"])
def test_drawn_from_train_alone_by_seed_and_group(side: str) -> None:
    table = pd.concat([TABLE, TABLE[TABLE["split"] == "train"]])  # every row twice
    table.loc[table["text_id"] == "train/3", "text"] = "train 4"  # two texts that read the same
    extra = pd.DataFrame(
        [{"split": "dev", "group": "cars", "image_id": "train/5.jpg", "text_id": "train/5", "text": "x"}]
    )
    drawn = draw_bank(pd.concat([table, extra]), side, 1000)
    assert set(drawn["split"]) == {"train"}
    assert drawn[f"{side}_id"].is_unique
    assert "train/5" not in set(drawn["text_id"])  # dev asks it
    assert drawn["group"].value_counts().to_dict() == {"people": 30, "cars": 18 if side == "text" else 19}
    few, again, other = (draw_bank(TABLE, side, 6, seed) for seed in (0, 0, 1))
    assert few["group"].tolist() == ["cars"] * 6 + ["people"] * 6
    assert few["text_id"].tolist() == again["text_id"].tolist() != other["text_id"].tolist()
    assert draw_bank(TABLE[TABLE["split"] != "train"], side, 6).empty


def test_saved_and_opened_with_its_groups(tmp_path: Path) -> None:
    GOOD.texts.save(tmp_path / "e")
    opened = Embeddings.open(tmp_path / "e")
    assert opened.meta["bank_size"] == 12
    assert opened.bank is not None
    assert opened.bank.tolist() == [None] * 100 + ["cars"] * 12 + ["people"] * 12
    assert opened.bank_rows("people").tolist() == list(range(112, 124))
    assert opened.bank_rows("a group that train lacks").tolist() == list(range(100, 124))
    plain = Embeddings(opened.ids[:3], opened.matrix[:3], opened.meta)
    plain.save(tmp_path / "plain")
    assert Embeddings.open(tmp_path / "plain").bank is None
    assert len(plain.bank_rows("cars")) == 0


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_scores_are_normalised_with_the_bank_of_the_slice(direction: str) -> None:
    part = cut_slices(TABLE, RelevanceConfig(), ["val"])[1]
    queries, gallery = (GOOD.texts, GOOD.images) if direction == "t2i" else (GOOD.images, GOOD.texts)
    asked, items = (part.text_ids, part.image_ids) if direction == "t2i" else (part.image_ids, part.text_ids)
    wide = gallery.take(items).astype(np.float64).T
    bank = queries.matrix[queries.bank_rows("people")].astype(np.float64) @ wide
    scores = queries.take(asked).astype(np.float64) @ wide
    found = GOOD.scores(part, FUSION.model_copy(update={"normalisation": "inverted_softmax_bank"}), direction)
    n, m = found.shape
    expected = reference.inverted_softmax(scores, bank, 0.05)
    np.testing.assert_allclose(found.tile(slice(0, n), slice(0, m)).scores, expected, rtol=1e-3, atol=1e-6)


def test_weights_are_searched_on_dev_with_a_bank() -> None:
    fusion = FUSION.model_copy(update={"normalisations": {"poor": "row_l2"}})
    found = choose_weights([POOR, GOOD], cut_slices(TABLE, RelevanceConfig(), ["dev"]), fusion)
    assert found["weights"]["good"] >= 0.5
    assert found["value"] >= max(found["alone"].values())
    part = cut_slices(TABLE, RelevanceConfig(), ["val"])[0]
    forward, backward = fused_scores([POOR, GOOD], found, fusion)(part)
    assert backward is not None
    assert forward.shape == backward.shape == (20, 20)


def test_a_bank_that_is_missing_or_of_another_size_is_refused() -> None:
    part = cut_slices(TABLE, RelevanceConfig(), ["val"])[0]
    with pytest.raises(ValueError, match="bank_size 13, but the text embeddings of member 'good' hold one of size 12"):
        GOOD.scores(part, FUSION.model_copy(update={"bank_size": 13}), "t2i")
    plain = Embeddings(GOOD.images.ids, GOOD.images.matrix, GOOD.images.meta)
    with pytest.raises(ValueError, match="image embeddings of member 'good' hold none: run --pipelines=evaluate again"):
        Member("good", GOOD.texts, plain).scores(part, FUSION, "i2t")
    assert Member("good", GOOD.texts, plain).scores(part, FUSION, "t2i").shape == (20, 20)


def test_new_data_carries_the_bank_of_the_same_weights() -> None:
    new = Embeddings(
        ["train/1", "b"],
        GOOD.texts.matrix[:2],
        GOOD.texts.meta | {"fingerprints": {**GOOD.texts.meta["fingerprints"], "captions": "new"}},
    )
    carried = with_bank_of(new, GOOD.texts)
    assert carried.bank is not None
    assert carried.bank.tolist() == [None] * 2 + ["cars"] * 12 + ["people"] * 12
    assert np.array_equal(carried.matrix[2:], GOOD.texts.matrix[100:])
    assert carried.ids[2] == GOOD.texts.ids[100]
    with pytest.raises(OtherOriginError, match="weights"):
        with_bank_of(new, POOR.texts)
    with pytest.raises(ValueError, match="hold no bank"):
        with_bank_of(new, Embeddings(GOOD.texts.ids, GOOD.texts.matrix, GOOD.texts.meta))

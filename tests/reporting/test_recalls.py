"""The recall table is that of the publication: five digits, both directions, the full gallery."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from xmodal_kedro.reporting.recalls import recall_table
from xmodal_kedro.retrieval.metrics import judge_both, metric_table
from xmodal_kedro.retrieval.scores import EmbeddingScores


def features(seed: int, rows: int) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(rows, 6)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def metrics_of(sizes: dict[str, int], split: str = "val", ks: tuple[int, ...] = (1, 5, 10)) -> pd.DataFrame:
    groups = {}
    for seed, (group, size) in enumerate(sizes.items()):
        scores = EmbeddingScores(features(seed, size), features(seed, size) + 0.6 * features(seed + 9, size))
        groups[group] = judge_both(scores, sparse.eye_array(size, dtype=bool, format="csr"), ks)
    return metric_table(groups, bootstrap=0).assign(split=split, member="ensemble")


def by_hand(sizes: dict[str, int], k: int) -> tuple[float, float]:
    """Image-to-text and text-to-image recall: the pair of each query is among the k best of its group."""
    hits = np.zeros(2)
    for seed, size in enumerate(sizes.values()):
        cosines = features(seed, size) @ (features(seed, size) + 0.6 * features(seed + 9, size)).T
        for way, matrix in enumerate((cosines.T, cosines)):
            hits[way] += sum(np.argsort(-row)[:k].tolist().count(place) for place, row in enumerate(matrix))
    return tuple(hits / sum(sizes.values()))


@pytest.mark.parametrize("sizes", [{"all": 40}, {"only": 25}, {"vehicle": 30, "pedestrian": 20}])
def test_recalls_are_those_of_the_whole_gallery(sizes: dict[str, int]) -> None:
    table = recall_table(pd.concat([metrics_of({"all": 7}, "dev"), metrics_of(sizes)]))
    assert table["direction"].tolist() == ["image_to_text", "text_to_image"]
    assert table[["queries", "gallery"]].to_numpy().tolist() == [[sum(sizes.values())] * 2] * 2
    for k in (1, 5, 10):
        assert table[f"R@{k}"].tolist() == pytest.approx(by_hand(sizes, k))
    assert table["R@1"].iloc[0] < table["R@10"].iloc[0]
    assert set(table["split"]) == {"val"}


def test_without_val_it_is_that_of_dev_and_a_missing_k_is_empty() -> None:
    table = recall_table(metrics_of({"all": 12}, "dev", (1, 5)))
    assert set(table["split"]) == {"dev"}
    assert table["R@10"].isna().all()


def test_the_tables_of_several_members_are_refused() -> None:
    with pytest.raises(ValueError, match=r"i2t .* occurs twice"):
        recall_table(pd.concat([metrics_of({"all": 12}), metrics_of({"all": 12})]))


def test_it_is_written_as_published(tmp_path: Path) -> None:
    import yaml
    from kedro_datasets.pandas import CSVDataset

    from tests.conftest import REPOSITORY

    catalog = yaml.safe_load((REPOSITORY / "conf/base/catalog_ensemble.yml").read_text())
    file = tmp_path / "recalls.csv"
    CSVDataset(filepath=str(file), save_args=catalog["recall_table"]["save_args"]).save(
        recall_table(metrics_of({"all": 40})).assign(**{"R@1": 0.2818})
    )
    header, first, _ = file.read_text().splitlines()
    assert header == "split,direction,R@1,R@5,R@10,queries,gallery"
    assert first.startswith("val,image_to_text,0.28180,")
    assert first.endswith(",40,40")

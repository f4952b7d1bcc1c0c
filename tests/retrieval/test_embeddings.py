"""Embeddings come back as they were saved, know their rows by name, and refuse company that they were not made with."""

import numpy as np
import pytest

from xmodal_kedro.data.manifest import BrokenArtifactError
from xmodal_kedro.retrieval.embeddings import Embeddings, OtherOriginError, check_made_by
from xmodal_kedro.retrieval.scores import EmbeddingScores

META = {"member": "vit", "side": "text", "fingerprints": {"weights": "w1", "data": "d1", "transform": "t1"}}


def made(ids=("ä", "b/1", "长"), d=4):
    matrix = np.random.default_rng(0).standard_normal((len(ids), d)).astype(np.float32)
    return Embeddings(np.array(ids), matrix / np.linalg.norm(matrix, axis=1, keepdims=True), META)


def test_round_trip_is_memory_mapped(tmp_path, recwarn):
    first = made()
    first.save(tmp_path / "e")
    back = Embeddings.open(tmp_path / "e")
    assert isinstance(back.matrix, np.memmap)
    assert back.ids.tolist() == first.ids.tolist()
    assert np.array_equal(back.matrix, first.matrix)
    assert back.meta == META
    scores = EmbeddingScores(back.matrix, back.matrix)
    assert scores.queries.data_ptr() == back.matrix.ctypes.data  # not copied
    assert not recwarn.list
    with pytest.raises(FileExistsError, match="never overwritten"):
        first.save(tmp_path / "e")


def test_no_rows_round_trip(tmp_path):
    made(()).save(tmp_path / "e")
    assert Embeddings.open(tmp_path / "e").matrix.shape == (0, 4)


def test_half_written_does_not_exist(tmp_path):
    made().save(tmp_path / "e")
    (tmp_path / "e" / "MANIFEST.json").unlink()
    with pytest.raises(BrokenArtifactError):
        Embeddings.open(tmp_path / "e")


def test_rows_by_name():
    embeddings = made()
    assert embeddings.rows(["长", "ä", "长"]).tolist() == [2, 0, 2]
    assert np.array_equal(embeddings.take(["b/1"]), embeddings.matrix[1:2])
    assert embeddings.rows([]).tolist() == []
    with pytest.raises(KeyError, match=r"2 of 3 ids are not in the text embeddings of member 'vit': 'x', 'y'"):
        embeddings.rows(["x", "ä", "y"])


def test_another_origin_is_refused_with_both_fingerprints():
    check_made_by(made(), weights="w1", data="d1")
    with pytest.raises(OtherOriginError, match="made by weights w1, but are used with weights w2"):
        check_made_by(made(), data="d1", weights="w2")
    with pytest.raises(OtherOriginError, match="made by trunk None, but"):
        check_made_by(made(), trunk="x")


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.0])
def test_a_bad_vector_is_named_and_not_saved(tmp_path, value):
    embeddings = made()
    embeddings.matrix[1, 0] = value
    with pytest.raises(ValueError, match="the vector of 'b/1' in the text embeddings of member 'vit'"):
        embeddings.save(tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="'a' occurs twice"):
        made(("a", "b", "a"))
    with pytest.raises(ValueError, match="one fp32 row per id"):
        Embeddings(np.array(["a"]), np.zeros((2, 3), np.float32), META)
    with pytest.raises(ValueError, match="lacks fingerprints, side"):
        Embeddings(np.array(["a"]), np.zeros((1, 3), np.float32), {"member": "vit"})
    with pytest.raises(ValueError, match="not 'both'"):
        Embeddings(np.array(["a"]), np.zeros((1, 3), np.float32), META | {"side": "both"})

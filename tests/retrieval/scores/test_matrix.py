"""However NumPy or torch holds numbers, the engine sees the same matrix: no warning, and no copy it can do without."""

import warnings

import numpy as np
import pytest
import torch

from xmodal_kedro.retrieval.scores import EmbeddingScores, MatrixScores
from xmodal_kedro.retrieval.scores.matrix import as_matrix
from xmodal_kedro.retrieval.search import ExactIndex

VALUES = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


def backwards(values):
    return values[::-1].copy()[::-1]


def sideways_and_strided(values):
    return np.repeat(values, 2, axis=1)[:, ::2]


def foreign(values):
    return values.astype(">f4")


def foreign_and_wide(values):
    return values.astype(">f8")


def widest(values):
    return values.astype(np.longdouble)


def frozen(values):
    values = values.copy()
    values.flags.writeable = False
    return values


def field_of_records(values):
    records = np.zeros(6, dtype=[("odd", "i1"), ("vector", "f4", 4)])
    records["vector"] = values
    return records["vector"]


def learned(values):
    return torch.from_numpy(values.copy()).requires_grad_()


WAYS = [backwards, sideways_and_strided, foreign, foreign_and_wide, widest, frozen, field_of_records, learned]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_any_memory_gives_the_same_matrix(way):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = way(VALUES)
        found = as_matrix(given, "scores", "cpu")
        assert (found.dtype, found.requires_grad) == (torch.float32, False)
        np.testing.assert_array_equal(found.numpy(), VALUES)
        scores = EmbeddingScores(given, given)
        np.testing.assert_array_equal(scores.gallery.numpy(), VALUES)
        np.testing.assert_array_equal(MatrixScores(given).matrix.numpy(), VALUES)
        searched, expected = (ExactIndex(one).search(one, 3).rows for one in (given, VALUES))
        np.testing.assert_array_equal(searched, expected)


@pytest.mark.parametrize("mode", ["r", "c"])
def test_a_memory_map_is_looked_at_and_not_copied(tmp_path, mode):
    np.save(tmp_path / "matrix.npy", VALUES)
    mapped = np.load(tmp_path / "matrix.npy", mmap_mode=mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.shares_memory(as_matrix(mapped, "gallery", "cpu").numpy(), mapped)
        assert np.shares_memory(EmbeddingScores(VALUES, mapped[1:4]).gallery.numpy(), mapped)


@pytest.mark.parametrize("values", [VALUES + 1j, torch.from_numpy(VALUES + 1j)], ids=["array", "tensor"])
def test_complex_numbers_are_refused(values):
    with pytest.raises(ValueError, match="queries must be real numbers"):
        EmbeddingScores(values, VALUES)


def test_what_is_no_matrix_of_numbers_is_refused():
    with pytest.raises(ValueError, match=r"must be a matrix \[rows, columns\]; its shape is \(4,\)"):
        MatrixScores(VALUES[0])
    with pytest.raises(ValueError, match="scores must be numbers; their type is object"):
        MatrixScores(VALUES.astype(object))


def test_ids_fit_the_rows():
    names = ["a", "b", "c", "d", "e", "f"]
    EmbeddingScores(VALUES, VALUES[:5], ids=(names, names[:5]))
    with pytest.raises(ValueError, match="there are 5 query ids for 6 query rows"):
        EmbeddingScores(VALUES, VALUES, ids=(names[:5], names))
    with pytest.raises(ValueError, match="there are 6 gallery ids for 5 gallery rows"):
        EmbeddingScores(VALUES, VALUES[:5], ids=(names, names))

"""Products of fp32 are those of fp64 up to the rounding that every order of summation may cost, whatever the shapes."""

import pytest
import torch

from xmodal_kedro.retrieval.scores.product import chosen_products, product


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 3), (33, 130, 512), (0, 4, 8), (4, 0, 8), (3, 4, 0)])
def test_equals_fp64(shape: tuple[int, int, int]) -> None:
    n, m, d = shape
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(n, d, generator=generator), torch.randn(m, d, generator=generator)
    for one, other in ((left, right), (left.T.contiguous().T, right[:, :]), (left.flip(0), right)):
        found = product(one, other)
        assert found.dtype == torch.float32
        exact = one.double() @ other.double().T
        bound = (d + 6) * 2.0**-24 * (one.double().abs() @ other.double().abs().T)
        assert bool(((found.double() - exact).abs() <= bound).all())


@pytest.mark.parametrize("order", ["by rows", "by columns", "any"])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 3), (7, 5, 3, 20), (2, 3, 4, 50), (90, 130, 512, 400), (5, 6, 8, 0), (3, 4, 0, 2)]
)
def test_chosen_ones_equal_fp64(shape: tuple[int, int, int, int], order: str) -> None:
    n, m, d, k = shape
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(n, d, generator=generator), torch.randn(m, d, generator=generator)
    rows, columns = torch.randint(n, (k,), generator=generator), torch.randint(m, (k,), generator=generator)
    if order != "any":
        places = (rows if order == "by rows" else columns).argsort()
        rows, columns = rows[places], columns[places]
    found = chosen_products(left, right, rows, columns)
    if found is None:
        pytest.skip("this torch does not sample products")
    assert found.dtype == torch.float32
    terms = left.double()[rows] * right.double()[columns]
    assert bool(((found.double() - terms.sum(1)).abs() <= (d + 6) * 2.0**-24 * terms.abs().sum(1)).all())

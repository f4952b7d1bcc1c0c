"""Sinkhorn normalisation: queries and items both get their share, by scaling rows and columns in turn.

Pan, Wang, Wu, Zhang, Bu: Hubness reduction with dual bank Sinkhorn normalization for cross-modal retrieval (ACM MM
2025, arXiv 2508.02538); the iteration is that of Sinkhorn and Knopp (Pacific Journal of Mathematics 21, 1967), in the
logarithmic domain: exp(s_ij / t + u_i + v_j) with rows that sum to 1 and columns that sum to N / M.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from tqdm import tqdm

from xmodal_kedro.retrieval.normalise.registry import Setting, normalisation
from xmodal_kedro.retrieval.normalise.rescaled import Rescaled
from xmodal_kedro.retrieval.normalise.statistics import alike, checked, log_sum_exp
from xmodal_kedro.retrieval.scores import ScoreSource

CPU_BLOCK = 1 << 22  # scores of whole rows that are held at once: 16 MB
GPU_BLOCK = 1 << 28
WIDTH = 2048  # columns of a tile on the CPU
FAINT = 1e-25  # a column whose sum is below has lost too much to the limits of fp32


@normalisation("sinkhorn_transductive", transductive=True)
def sinkhorn_transductive(source: ScoreSource, setting: Setting) -> ScoreSource:
    """Balanced probabilities after `iterations` rounds, each of which scales the rows and then the columns.

    Only the potentials u [N] and v [M] are kept. A round takes one pass: a block of whole rows is scaled as soon as it
    is known, and adds what it then holds to the sums of the columns. Once the rounds converge, the order of the rounds'
    halves does not matter; before, the columns are the half that is exact.
    """
    n, m = source.shape
    v = torch.zeros(m, dtype=torch.float64, device=source.device)
    u = torch.zeros(n, dtype=torch.float64, device=source.device)
    for _ in tqdm(range(setting.iterations), desc="sinkhorn", unit="round", delay=3, leave=False, disable=None):
        u, mass = _round(source, setting.temperature, v)
        checked(u, 0)
        level = mass.log()
        if bool((faint := mass < FAINT).any()):
            exact = log_sum_exp(source, setting.temperature, dim=0, shift=u) + v
            level = torch.where(faint, exact, level)
        v = v + math.log(n / m) - level
    u, v = alike(source, 0, u), alike(source, 1, v)
    scale = torch.full_like(u, 1.0 / setting.temperature)
    return Rescaled(source, scale, -u * setting.temperature, -v * setting.temperature, form="exponential")


def _round(source: ScoreSource, temperature: float, v: Tensor) -> tuple[Tensor, Tensor]:
    """The u [N] with which every row of exp(s / t + u + v) sums to 1, and what each column then sums to, [M]; fp64."""
    n, m = source.shape
    cpu = source.device.type == "cpu"
    height = max(16, min(n, (CPU_BLOCK if cpu else GPU_BLOCK) // m))
    width = min(m, WIDTH if cpu else m)
    u = torch.empty(n, dtype=torch.float64, device=source.device)
    mass = torch.zeros(m, dtype=torch.float64, device=source.device)
    shift = v.float()
    block = torch.empty(height, m, device=source.device)
    for top in range(0, n, height):
        rows = slice(top, min(top + height, n))
        exponents = block[: rows.stop - rows.start]
        for left in range(0, m, width):
            columns = slice(left, min(left + width, m))
            scores = source.tile(rows, columns).scores
            torch.add(shift[columns], scores, alpha=1.0 / temperature, out=exponents[:, columns])
        high = exponents.amax(1, keepdim=True)
        total = exponents.sub_(high).exp_().sum(1)
        u[rows] = -(high[:, 0].double() + total.double().log())
        mass += (total.reciprocal() @ exponents).double()
    return u, mass

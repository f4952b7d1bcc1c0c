"""What a recipe says about the index that searches a member's images."""

from typing import Literal

from pydantic import Field

from xmodal_kedro.config.frozen import Frozen


class IndexConfig(Frozen):
    """Kind and settings of an index.

    `exact` finds the true best k; `flat`, `ivf` and `hnsw` are those of faiss (the extra `search`): all rows in fp32,
    the rows of the lists nearest to the query, and a walk through a graph of neighbours (Malkov and Yashunin, arXiv
    1603.09320).
    """

    kind: Literal["exact", "flat", "ivf", "hnsw"] = "exact"
    lists: int | None = Field(None, ge=1, description="of ivf, N / 39 at most; by default 4 sqrt(N), or that")
    probes: int | None = Field(
        None, ge=1, description="of ivf: lists that a query looks at, all of them at most; by default an eighth"
    )
    sample: int = Field(64, ge=39, description="of ivf: rows per list that its centres are learned from")
    links: int = Field(32, ge=2, description="of hnsw: neighbours of a row in the graph (M)")
    construction: int = Field(100, ge=1, description="of hnsw: breadth of the walks that build the graph")
    breadth: int = Field(128, ge=1, description="of hnsw: breadth of the walk of a query (efSearch); at least k")
    seed: int = 0
    k: int = Field(10, ge=1, description="length of the results that the recall against exact search is measured on")

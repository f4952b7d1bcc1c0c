"""What a recipe says about evaluation, fusion, matching, the output file and the machine."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from xmodal_kedro.config.frozen import Frozen
from xmodal_kedro.retrieval.metric_names import parse

Normalisation = Literal[
    "none",
    "row_l2",
    "zscore",
    "minmax",
    "rank",
    "softmax",
    "csls_bank",
    "csls_transductive",
    "dual_softmax_transductive",
    "inverted_softmax_bank",
    "inverted_softmax_transductive",
    "qb_norm",
    "sinkhorn_transductive",
]

# What normalisations read of the other keys of a fusion; those that are not here read nothing.
READ: dict[str, tuple[str, ...]] = {
    "softmax": ("temperature",),
    "csls_bank": ("neighbours", "bank_size"),
    "csls_transductive": ("neighbours",),
    "dual_softmax_transductive": ("temperature",),
    "inverted_softmax_bank": ("temperature", "bank_size"),
    "inverted_softmax_transductive": ("temperature",),
    "qb_norm": ("temperature", "bank_size"),
    "sinkhorn_transductive": ("temperature", "iterations"),
}
BANKED = tuple(name for name, keys in READ.items() if "bank_size" in keys)  # those that ask a bank of train


class EvaluationConfig(Frozen):
    """How rankings are judged."""

    ks: list[Annotated[int, Field(ge=1)]] = Field([1, 5, 10], min_length=1)
    bootstrap: int = Field(1000, ge=0, description="resamples behind the 95 % intervals; 0 leaves them out")
    seed: int = 0


class FusionConfig(Frozen):
    """How the members' scores become one.

    Normalisations that end in `_transductive` let a query's result depend on the other queries of its split, which a
    served query does not have; those that end in `_bank`, and `qb_norm`, ask captions (or photos) of train instead.
    """

    method: Literal["weighted", "reciprocal_rank", "learned"] = Field(
        "weighted", description="sum of normalised scores; of reciprocal ranks; logistic regression, learned on dev"
    )
    normalisation: Normalisation = "row_l2"
    normalisations: dict[str, Normalisation] = Field({}, description="per member, where it differs")
    temperature: float = Field(0.01, ge=1e-4, le=100.0, description="of every normalisation with an exponential")
    neighbours: int = Field(10, ge=1, description="of CSLS")
    iterations: int = Field(10, ge=1, description="of Sinkhorn")
    bank_size: int = Field(1000, ge=1, description="texts and images of train that stand for queries, per group")
    weights: dict[str, Annotated[float, Field(ge=0.0, allow_inf_nan=False)]] | Literal["search", "equal"] = "search"
    metric: str = Field("map_at_10", description="what the search on dev maximises, and the comparison shows first")
    direction: Literal["t2i", "i2t"] = "t2i"
    search: Literal["coordinate", "greedy"] = Field("coordinate", description="how weights are searched")
    candidates: int = Field(100, ge=1, description="best items of each member that search, ranks and learning look at")
    step: float = Field(0.1, gt=0.0, le=0.5, description="of the coordinate search")
    top_k: int = Field(10, ge=1, description="length of the rankings that are kept")

    @field_validator("weights")
    @classmethod
    def _weigh_somebody(cls, weights: dict[str, float] | str) -> dict[str, float] | str:
        if isinstance(weights, dict) and not any(weights.values()):
            raise ValueError("no member has a weight above zero")
        return weights

    @field_validator("metric")
    @classmethod
    def _has_a_cut_off(cls, metric: str) -> str:
        if parse(metric)[1] == 0:
            raise ValueError(f"'{metric}' has no cut-off; name one that has, such as map_at_10 or recall_at_1")
        return metric

    def normalisation_of(self, member: str) -> Normalisation:
        """The normalisation of a member's scores."""
        return self.normalisations.get(member, self.normalisation)


class RerankConfig(Frozen):
    """Re-ordering of the first candidates of every query; what follows them keeps its place behind them.

    `itm` asks the image-text matching head of a member about each pair (BLIP, arXiv 2201.12086); `adaption` moves the
    query towards its best images and asks their neighbours (A3R, arXiv 2306.06691); `k_reciprocal` compares reciprocal
    neighbourhoods (Zhong et al., arXiv 1701.08398); `query_expansion` averages the query with its best items (Radenovic
    et al., arXiv 1711.02512).
    """

    method: Literal["itm", "adaption", "k_reciprocal", "query_expansion"]
    directions: list[Literal["t2i", "i2t"]] = Field(
        ["t2i"], min_length=1, description="whose candidates; adaption: t2i alone"
    )
    member: str = Field(description="whose matching head, or whose embeddings, decide")
    top_k: int = Field(10, ge=2, description="candidates per query")
    top_ks: dict[str, Annotated[int, Field(ge=2)]] = Field({}, description="per group, where it differs")
    formula: Literal["fused_plus_unit_itm", "itm_plus_fused", "itm"] = Field(
        "fused_plus_unit_itm", description="of itm; unit: the logits of a query's candidates divided by their length"
    )
    anchors: int = Field(10, ge=1, description="of adaption: best images that the query moves towards")
    neighbours: int = Field(10, ge=1, description="of adaption and k_reciprocal: k of the neighbourhoods")
    share: float = Field(0.3, ge=0.0, le=1.0, description="of k_reciprocal: weight of the original score")
    expansion: int = Field(5, ge=1, description="of query_expansion: best items that join the query")
    alpha: float = Field(3.0, ge=0.0, description="of query_expansion: exponent of their cosines as weights")
    mirrored: bool = Field(True, description="of adaption: similarities are the best over image and mirror image")
    batch_size: int = Field(64, ge=1, description="pairs or images at once")
    precision: Literal["fp32", "bf16"] = "fp32"

    @property
    def looks(self) -> bool:
        """Whether the second stage needs checkpoint and pixels of the member; otherwise its embeddings are enough."""
        return self.method == "itm" or (self.method == "adaption" and self.mirrored)


class SubmissionConfig(Frozen):
    """The file at the end."""

    split: Literal["dev", "val", "test"] | None = Field(
        None, description="by default the first of test, val and dev that has texts"
    )
    top_k: int = Field(10, ge=1)
    name_column: str = Field("image_name", description="column of the matching CSV")
    template: str | None = Field(
        None, description="sample file (CSV, relative to data.root) whose other columns and order of rows are kept"
    )


class CalibrationConfig(Frozen):
    """From scores to probabilities of a match, fitted on dev, and the score below which there is no match."""

    precision: float = Field(
        0.9, gt=0.0, lt=1.0, description="of accepted first places; the 95 % bound on dev keeps it"
    )


class EnsembleConfig(Frozen):
    """Fusion, matching and output."""

    fusion: FusionConfig = FusionConfig()
    rerank: RerankConfig | None = None
    calibration: CalibrationConfig = CalibrationConfig()
    submission: SubmissionConfig = SubmissionConfig()


class RuntimeConfig(Frozen):
    """The machine."""

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; none leaves torch's own choice")
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        1, description="that train a member together; auto: one per GPU that torch sees, else one"
    )
    resume: bool = Field(
        True, description="keep the state of a training after each epoch, on disk, so that an interrupted one goes on"
    )

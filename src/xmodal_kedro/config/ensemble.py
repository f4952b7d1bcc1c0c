"""What a recipe says about evaluation, fusion, matching, the output file and the machine."""

from typing import Annotated, Literal

from pydantic import Field

from xmodal_kedro.config.frozen import Frozen

Normalisation = Literal["none", "row_l2", "zscore", "minmax", "softmax"]


class EvaluationConfig(Frozen):
    """How rankings are judged."""

    ks: list[int] = Field([1, 5, 10], min_length=1)
    bootstrap: int = Field(1000, ge=0, description="resamples behind the 95 % intervals; 0 leaves them out")
    seed: int = 0


class FusionConfig(Frozen):
    """How the members' scores become one."""

    normalisation: Normalisation = "row_l2"
    normalisations: dict[str, Normalisation] = Field({}, description="per member, where it differs")
    temperature: float = Field(0.01, gt=0.0, description="of the softmax")
    weights: dict[str, float] | Literal["search", "equal"] = "search"
    metric: str = Field("map_at_10", description="what the search on dev maximises")
    direction: Literal["t2i", "i2t"] = "t2i"
    step: float = Field(0.1, gt=0.0, le=0.5, description="of the search")
    top_k: int = Field(10, ge=1, description="length of the rankings that are kept")


class RerankConfig(Frozen):
    """Re-ordering of the first candidates of every text; what follows them keeps its place behind them.

    `itm` asks the image-text matching head of a member about each pair (BLIP, arXiv 2201.12086); `adaption` moves the
    query towards its best images and asks their neighbours (A3R, arXiv 2306.06691).
    """

    method: Literal["itm", "adaption"]
    member: str = Field(description="whose matching head, or whose embeddings, decide")
    top_k: int = Field(10, ge=2, description="candidates per text")
    top_ks: dict[str, Annotated[int, Field(ge=2)]] = Field({}, description="per group, where it differs")
    formula: Literal["fused_plus_unit_itm", "itm_plus_fused", "itm"] = Field(
        "fused_plus_unit_itm", description="of itm; unit: the logits of a text's candidates divided by their length"
    )
    anchors: int = Field(10, ge=1, description="of adaption: best images that the query moves towards")
    neighbours: int = Field(10, ge=1, description="of adaption: k of the reciprocal neighbourhoods")
    mirrored: bool = Field(True, description="of adaption: similarities are the best over image and mirror image")
    batch_size: int = Field(64, ge=1, description="pairs or images at once")
    precision: Literal["fp32", "bf16"] = "fp32"


class SubmissionConfig(Frozen):
    """The file at the end."""

    split: Literal["dev", "val", "test"] | None = Field(None, description="by default test if it has texts, else val")
    top_k: int = Field(10, ge=1)
    name_column: str = Field("image_name", description="column of the matching CSV")
    template: str | None = Field(
        None, description="sample file (CSV, relative to data.root) whose other columns and order of rows are kept"
    )


class EnsembleConfig(Frozen):
    """Fusion, matching and output."""

    fusion: FusionConfig = FusionConfig()
    rerank: RerankConfig | None = None
    submission: SubmissionConfig = SubmissionConfig()


class RuntimeConfig(Frozen):
    """The machine."""

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; none leaves torch's own choice")
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        1, description="that train a member together; auto: one per GPU that torch sees, else one"
    )

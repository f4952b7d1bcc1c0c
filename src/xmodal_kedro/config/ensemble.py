"""What a recipe says about evaluation, fusion, matching, the output file and the machine."""

from typing import Literal

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


class SubmissionConfig(Frozen):
    """The file at the end."""

    split: Literal["dev", "val", "test"] | None = Field(None, description="by default test if it has texts, else val")
    top_k: int = Field(10, ge=1)
    name_column: str = Field("image_name", description="column of the matching CSV")


class EnsembleConfig(Frozen):
    """Fusion, matching and output."""

    fusion: FusionConfig = FusionConfig()
    submission: SubmissionConfig = SubmissionConfig()


class RuntimeConfig(Frozen):
    """The machine."""

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; none leaves torch's own choice")

"""What a recipe says about one member: its backbone, its training, its encoding."""

from typing import Any, Literal

from pydantic import Field

from xmodal_kedro.config.frozen import Frozen


class BackboneConfig(Frozen):
    """Which model, and where its weights are."""

    name: str = Field(description="a registered backbone: see xmodal_kedro.models")
    weights: str | None = Field(None, description="hub id or directory; none means random weights of `architecture`")
    architecture: dict[str, Any] | None = Field(None, description="sizes of a model with random weights")
    unlocked_groups: dict[Literal["image", "text"], int] = Field(
        {}, description="of a tower that is named here only the last N layer groups train"
    )


class AugmentConfig(Frozen):
    """Random views of a training image, drawn on the training device."""

    scale: list[float] = Field(
        [1.0, 1.0], min_length=2, max_length=2, description="area of the crop, RandomResizedCrop"
    )
    ratio: list[float] = Field([0.75, 1.3333], min_length=2, max_length=2)
    flip: float = Field(0.0, ge=0.0, le=1.0)


class LossConfig(Frozen):
    """The contrastive loss."""

    multi_positive: Literal["none", "text", "relevance_key"] = Field(
        "relevance_key", description="which rows of a batch are positives of each other besides the diagonal"
    )
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    truncation: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of the batch, the highest losses, that is dropped"
    )


class TrainConfig(Frozen):
    """Training of a member."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    lr: float = Field(gt=0.0)
    weight_decay: float = Field(0.1, ge=0.0)
    betas: list[float] = Field([0.9, 0.98], min_length=2, max_length=2)
    eps: float = 1.0e-6
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    grad_clip: float | None = Field(1.0, gt=0.0)
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    sampler: Literal["spread", "shuffle"] = Field(
        "spread", description="spread keeps rows that are alike in different batches, as far as there are enough"
    )
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    keep: Literal["best", "last"] = Field("best", description="which epoch's weights, judged by `metric` on dev")
    metric: str = Field("t2i.map_at_10", description="direction and metric on dev, all groups pooled")
    patience: int | None = Field(None, ge=1, description="stop after so many epochs without a better `metric`")


class EmbedConfig(Frozen):
    """Encoding with a trained member."""

    batch_size: int = Field(256, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"


class MemberConfig(Frozen):
    """One trained model of the ensemble."""

    name: str = Field("", description="its key in the parameters; filled in by the config loader")
    backbone: BackboneConfig
    train: TrainConfig
    embed: EmbedConfig = EmbedConfig()

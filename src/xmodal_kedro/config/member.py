"""What a recipe says about one member: its backbone, its training, its encoding."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from xmodal_kedro.config.data import GroupPrompts
from xmodal_kedro.config.frozen import Frozen
from xmodal_kedro.config.optimiser import OptimiserConfig
from xmodal_kedro.config.weights import weights_at

RandAugmentOp = Literal[
    "Identity",
    "AutoContrast",
    "Brightness",
    "Sharpness",
    "Equalize",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
]
RAND_AUGMENT_OPS: list[RandAugmentOp] = [
    *("Identity", "AutoContrast", "Brightness", "Sharpness", "Equalize"),
    *("ShearX", "ShearY", "TranslateX", "TranslateY"),
]


def _rising(bounds: list[float]) -> list[float]:
    if not 0.0 < bounds[0] <= bounds[1]:
        raise ValueError("these are a lowest and a highest value, both above 0")
    return bounds


def _share(bounds: list[float]) -> list[float]:
    if bounds[1] > 1.0:
        raise ValueError("these are shares of the area of the image: none is above 1")
    return bounds


Bounds = Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(_rising)]
Shares = Annotated[Bounds, AfterValidator(_share)]


class LoraConfig(Frozen):
    """Low-rank adapters (arXiv 2106.09685) on query, key and value of every self-attention; all else is frozen."""

    rank: int = Field(64, ge=1)
    alpha: float = Field(64.0, gt=0.0, description="the adapter is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    towers: Literal["image", "text", "both"] = "both"


class BackboneConfig(Frozen):
    """Which model, and where its weights are."""

    name: str = Field(description="a registered backbone: see xmodal_kedro.models")
    weights: str | None = Field(None, description="hub id or directory; none means random weights of `architecture`")
    architecture: dict[str, Any] | None = Field(None, description="sizes of a model with random weights")
    unlocked_groups: dict[Literal["image", "text"], int] = Field(
        {}, description="of a tower that is named here only the last N layer groups train"
    )
    lora: LoraConfig | None = None
    context: int | None = Field(None, ge=4, description="tokens of a text at most; by default what the model allows")
    grad_checkpointing: bool = Field(False, description="compute activations again in backward: less memory, more time")

    @model_validator(mode="after")
    def _freezes_one_way(self) -> "BackboneConfig":
        if self.lora is not None and self.unlocked_groups:
            raise ValueError("lora freezes all but its adapters, and unlocked_groups unlocks layers: set one alone")
        return self

    def at(self, root: Path, keys: Collection[str] = ()) -> "BackboneConfig":
        """The same with whole paths where they start, or should start, from `root`; hub ids and tags stay.

        Args:
            root: The project's.
            keys: Of `architecture`, where the family looks for paths; see `Backbone.architecture_files`.
        """
        named = {key: value for key, value in (self.architecture or {}).items() if key in keys}
        whole = {key: weights_at(value, root) for key, value in named.items() if isinstance(value, str)}
        weights = None if self.weights is None else weights_at(self.weights, root)
        architecture = None if self.architecture is None else {**self.architecture, **whole}
        return self.model_copy(update={"weights": weights, "architecture": architecture})


class RandAugmentConfig(Frozen):
    """RandAugment (arXiv 1909.13719) in the mechanics of BLIP."""

    num_ops: int = Field(2, ge=1, description="operations per image, drawn with replacement")
    magnitude: int = Field(5, ge=0, le=10)
    probability: float = Field(0.5, ge=0.0, le=1.0, description="of each drawn operation to be applied")
    ops: list[RandAugmentOp] = Field(RAND_AUGMENT_OPS, min_length=1)


class SharpnessConfig(Frozen):
    """torchvision's RandomAdjustSharpness."""

    factor: float = Field(0.1, ge=0.0)
    probability: float = Field(0.5, ge=0.0, le=1.0)


class JitterConfig(Frozen):
    """torchvision's ColorJitter: each factor is drawn from [1 - x, 1 + x], in random order."""

    brightness: float = Field(0.0, ge=0.0, le=1.0)
    contrast: float = Field(0.0, ge=0.0, le=1.0)
    saturation: float = Field(0.0, ge=0.0, le=1.0)


class EraseConfig(Frozen):
    """torchvision's RandomErasing with zeros, after normalisation."""

    probability: float = Field(0.5, ge=0.0, le=1.0)
    scale: Shares = [0.02, 0.1]
    ratio: Bounds = [0.5, 2.0]


class AugmentConfig(Frozen):
    """Random views of a training image, drawn on the training device, in the order of these keys."""

    scale: Shares = Field([1.0, 1.0], description="area of the crop, RandomResizedCrop")
    ratio: Bounds = [0.75, 1.3333]
    interpolation: Literal["bicubic", "random"] = Field(
        "bicubic", description="of the crop; random takes bilinear or bicubic per image, as timm does"
    )
    flip: float = Field(0.0, ge=0.0, le=1.0)
    rand_augment: RandAugmentConfig | None = None
    sharpness: SharpnessConfig | None = None
    jitter: JitterConfig | None = None
    erase: EraseConfig | None = None


class MomentumConfig(Frozen):
    """Momentum distillation and queues of ALBEF (arXiv 2107.07651) and BLIP (arXiv 2201.12086)."""

    momentum: float = Field(0.995, ge=0.0, le=1.0)
    queue_size: int = Field(57600, ge=1, description="features of each side, at most those of one epoch")
    alpha: float = Field(0.4, ge=0.0, le=1.0, description="share of the momentum encoder's opinion in the targets")
    ramp_epochs: int = Field(1, ge=0, description="over which alpha rises linearly from 0")
    negatives: Literal["local", "all"] = Field("all", description="hard negatives from this process or from all")


class LossConfig(Frozen):
    """The contrastive loss, or the published one of the captioning system."""

    kind: Literal["contrastive", "soft_target"] = Field(
        "contrastive",
        description="soft_target takes none of the other settings, and may end in collapse: see losses/soft_target.py",
    )
    multi_positive: Literal["none", "text", "relevance_key"] = Field(
        "relevance_key", description="which rows of a batch are positives of each other besides the diagonal"
    )
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    truncation: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of the batch, the highest losses, that is dropped"
    )
    directions: Literal["mean", "sum"] = Field("mean", description="how image-to-text and text-to-image are combined")
    momentum: MomentumConfig | None = Field(None, description="of backbones with an image-text matching head alone")

    @model_validator(mode="after")
    def _momentum_goes_alone(self) -> "LossConfig":
        if self.momentum is not None and (self.label_smoothing or self.truncation or self.directions != "mean"):
            raise ValueError(
                "momentum goes with none of label_smoothing, truncation and directions 'sum': the moving average makes "
                "the targets. Set them to 0, 0 and mean, or momentum to null"
            )
        return self

    @model_validator(mode="after")
    def _soft_targets_go_alone(self) -> "LossConfig":
        others = self.momentum is not None or self.label_smoothing or self.truncation or self.directions != "mean"
        if self.kind == "soft_target" and others:
            raise ValueError(
                "kind 'soft_target' goes with none of label_smoothing, truncation, directions 'sum' and momentum: "
                "leave them out, or set kind to contrastive"
            )
        return self


class CleanTextConfig(Frozen):
    """Cleaning of train captions, as BLIP cleans them; queries are never cleaned."""

    lower: bool = True
    blank: str = Field('.!"()*#:;~', description="characters that become blanks")
    max_words: int = Field(100, ge=1, description="words that are kept")


class TrainConfig(OptimiserConfig):
    """Training of a member."""

    batch_size: int = Field(ge=2, description="pairs that meet in the loss, over all processes")
    micro_batch: int | None = Field(
        None, ge=1, description="pairs computed at once; the gradient stays exactly that of the whole batch"
    )
    sampler: Literal["spread", "shuffle"] = Field(
        "spread", description="spread keeps rows that are alike in different batches, as far as there are enough"
    )
    augment: AugmentConfig = AugmentConfig()
    clean_text: CleanTextConfig | None = None
    loss: LossConfig = LossConfig()
    keep: Literal["best", "last"] = Field("best", description="which epoch's weights, judged by `metric` on dev")
    metric: str = Field("t2i.map_at_10", description="direction and metric on dev, all groups pooled")
    patience: int | None = Field(None, ge=1, description="stop after so many epochs without a better `metric`")

    @model_validator(mode="after")
    def _parts_are_no_larger_than_the_whole(self) -> "TrainConfig":
        if self.micro_batch is not None and self.micro_batch > self.batch_size:
            raise ValueError(f"micro_batch ({self.micro_batch}) is more than batch_size ({self.batch_size})")
        return self


class EmbedConfig(Frozen):
    """Encoding with a trained member."""

    batch_size: int = Field(256, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"


class MemberConfig(Frozen):
    """One trained model of the ensemble."""

    name: str = Field("", description="its key in the parameters; filled in by the config loader")
    backbone: BackboneConfig
    prompts: dict[str, GroupPrompts] | None = Field(
        None, description="per group, prompts of this member's train captions instead of those of `prompts.groups`"
    )
    train: TrainConfig
    embed: EmbedConfig = EmbedConfig()

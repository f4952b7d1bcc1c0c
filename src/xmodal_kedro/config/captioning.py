"""What a recipe says about captions: who writes them, how a captioner is trained, and how captions are judged."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from xmodal_kedro.captioning.metric_names import BY_EMBEDDINGS, BY_TOKENS, TOKENISERS
from xmodal_kedro.config.decoding import DecodingConfig
from xmodal_kedro.config.frozen import Frozen
from xmodal_kedro.config.member import AugmentConfig
from xmodal_kedro.config.optimiser import OptimiserConfig

Channels = Annotated[list[float], Field(min_length=3, max_length=3)]


def _known_metric(name: str) -> str:
    metric, _, tokeniser = name.rpartition("_")
    if metric in BY_TOKENS and tokeniser in TOKENISERS:
        raise ValueError(f"leave out _{tokeniser} of '{name}': captioning.tokeniser says how text is cut")
    if name not in BY_TOKENS:
        raise ValueError(f"there is no caption metric '{name}'; there are {', '.join(BY_TOKENS)}")
    return name


class SelfCriticalConfig(Frozen):
    """Self-critical training (arXiv 1612.00563) after the epochs of teacher forcing: sampled captions are rewarded.

    The reward is CIDEr-D against the references of train, with the document frequencies of train.
    """

    epochs: int = Field(1, ge=1)
    lr: float = Field(1.0e-5, gt=0.0, description="constant")
    batch_size: int = Field(32, ge=1, description="images, over all processes")
    samples: int = Field(5, ge=1, description="captions drawn per image")
    baseline: Literal["greedy", "mean"] = Field(
        "mean", description="reward of the greedy caption, or mean reward of the image's other samples (2003.09971)"
    )
    temperature: float = Field(1.0, ge=1.0e-4, le=1.0e4, description="of the draw")

    @model_validator(mode="after")
    def _the_mean_has_others(self) -> "SelfCriticalConfig":
        if self.baseline == "mean" and self.samples < 2:
            raise ValueError("baseline 'mean' is that of an image's other samples: set samples to at least 2")
        return self


class CaptionTrainConfig(OptimiserConfig):
    """Training of a captioner: teacher forcing, and self-critical after it where that is asked for."""

    batch_size: int = Field(ge=1, description="captions, over all processes")
    captions_per_image: int = Field(
        1, ge=1, description="captions of an image that stand in a batch together; the image is encoded once for them"
    )
    image_encoder: bool = Field(True, description="whether the image encoder trains too")
    ignore_padding: bool = Field(True, description="false counts padding as tokens to predict, as published")
    augment: AugmentConfig = AugmentConfig()
    self_critical: SelfCriticalConfig | None = None
    keep: Literal["best", "last"] = Field(
        "best", description="which epoch's weights, judged by `metric` of greedy captions of dev"
    )
    metric: str = Field("cider_d", description="against all references of an image; see captioning.tokeniser")
    patience: int | None = Field(None, ge=1, description="stop after so many epochs without a better `metric`")

    _metric = field_validator("metric")(_known_metric)

    @model_validator(mode="after")
    def _captions_of_an_image_fit_a_batch(self) -> "CaptionTrainConfig":
        if self.captions_per_image > self.batch_size:
            raise ValueError(
                f"captions_per_image {self.captions_per_image} is more than batch_size {self.batch_size}: lower the "
                "one, or raise the other"
            )
        return self


class CaptionerConfig(Frozen):
    """A captioner: made from a trained member, or a captioning model of transformers as it is."""

    name: str = Field("", description="its key in the parameters; filled in by the config loader")
    member: str | None = Field(None, description="whose image encoder, GPT and vocabulary it begins with")
    weights: str | None = Field(
        None, description="or: hub id or directory of a BLIP, GIT or vision-encoder-decoder, which is not trained here"
    )
    mean: Channels | None = Field(None, description="of the pixels' normalisation; by default the member's")
    std: Annotated[list[Annotated[float, Field(gt=0.0)]], Field(min_length=3, max_length=3)] | None = Field(
        None, description="as mean"
    )
    train: CaptionTrainConfig | None = None

    @model_validator(mode="after")
    def _begins_with_one_of_both(self) -> "CaptionerConfig":
        if (self.member is None) == (self.weights is None):
            raise ValueError("a captioner begins with a member, or has weights of its own: set one of the two")
        if (self.member is None) != (self.train is None):
            raise ValueError("what begins with a member needs train; what has weights of its own is not trained")
        if self.member is None and (self.mean is not None or self.std is not None):
            raise ValueError("mean and std come with the weights: leave them out")
        return self


class CaptionEnsembleConfig(Frozen):
    """Captioners of one vocabulary that decode together."""

    weights: dict[str, Annotated[float, Field(ge=0.0, allow_inf_nan=False)]] | Literal["equal"] = "equal"
    mix: Literal["logits", "probabilities"] = "logits"

    @field_validator("weights")
    @classmethod
    def _one_has_a_say(cls, weights: dict[str, float] | str) -> dict[str, float] | str:
        if isinstance(weights, dict) and not any(weights.values()):
            raise ValueError("no captioner has a weight above zero: give one at least")
        return weights


class CaptioningConfig(Frozen):
    """How captions are decoded, judged and handed in."""

    tokeniser: Literal["characters", "words", "ptb"] = Field(
        "characters", description="how metrics cut texts, and the end of their names: ptb is for English"
    )
    metrics: list[str] = Field(
        ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d", "meteor"],
        min_length=1,
        description="those that this installation cannot compute are named in the log and left out",
    )
    decoding: DecodingConfig = DecodingConfig(method="beam")
    batch_size: int = Field(64, ge=1, description="images that are decoded together")
    dev_images: int = Field(1000, ge=2, description="of dev at most that are captioned after each epoch of training")
    clip_score: str | None = Field(None, description="the member whose embeddings give CLIPScore and RefCLIPScore")
    ensemble: CaptionEnsembleConfig = CaptionEnsembleConfig()
    split: Literal["dev", "val", "test"] | None = Field(
        None, description="whose captions are handed in; by default test if it has images, else val"
    )

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, metrics: list[str]) -> list[str]:
        for name in metrics:
            if name in (*BY_EMBEDDINGS, "clip_score"):
                raise ValueError(
                    f"leave out '{name}', and set captioning.clip_score to a member: its embeddings give it"
                )
        known = [_known_metric(name) for name in metrics]
        if "cider_d" not in known:
            raise ValueError("cider_d is what captions are compared by: add it")
        return known

    def named(self, metric: str) -> str:
        """A metric with its tokeniser: `cider_d` is `cider_d_characters`."""
        return f"{metric}_{self.tokeniser}"

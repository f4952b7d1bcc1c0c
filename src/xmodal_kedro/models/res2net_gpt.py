"""A Res2Net (arXiv 1904.01169) or any other image model of timm, and a GPT over characters, each with a projection.

The text feature is the GPT's state at [SEP], before its final layer norm. Both features leave a projection as wide as
the GPT, so that the image's can later stand as the first token of a caption. What captioning alone needs, the final
norm and the layer to the vocabulary, is kept and saved with the rest, and does not train here.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import timm
import torch
from pydantic import Field, ValidationError
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kedro.config.frozen import Frozen
from xmodal_kedro.data.manifest import BrokenArtifactError
from xmodal_kedro.models.backbone import WEIGHTS, ArchitectureError, Backbone, Tokens, Tower, register, seeded
from xmodal_kedro.models.batch_norm import count_once
from xmodal_kedro.models.captioner import Captioner
from xmodal_kedro.models.characters import Characters
from xmodal_kedro.models.gpt import GPT, GPTSizes
from xmodal_kedro.models.published import read_published
from xmodal_kedro.models.weights import Published, find_weights

CONFIG, VOCABULARY = "config.json", "vocab.json"
MOST_CHARACTERS = 20_000  # that are learned where the config says nothing; captions have far fewer
TEMPERATURE = 0.07  # where it starts; CLIP's, for the publication names none
WEIGHT_FILES = (WEIGHTS, "model.safetensors", "pytorch_model.bin")
AnyConfig = TypeVar("AnyConfig", bound=Frozen)


class Shape(Frozen):
    """What a model is, but for its GPT."""

    image: str = Field("res2next50", description="an image model of timm, by its name there")
    image_size: int = Field(224, ge=32)
    dropout: float = Field(0.1, ge=0.0, lt=1.0, description="of the projections")
    mean: list[float] = Field([0.5, 0.5, 0.5], min_length=3, max_length=3)
    std: list[float] = Field([0.5, 0.5, 0.5], min_length=3, max_length=3)


class Settings(Shape):
    """What a model is; config.json holds it."""

    model_type: Literal["res2net_gpt"] = "res2net_gpt"
    text_config: GPTSizes


class Architecture(Shape):
    """Sizes of a model with random weights, and weights of its parts to start from."""

    text_config: dict[str, Any] = Field(
        {}, description="what differs from the published sizes, in the words of GPTSizes; vocab_size is a limit"
    )
    temperature: float = Field(TEMPERATURE, ge=0.01, le=1.0, description="where it starts")
    vocabulary: str | None = Field(None, description="a JSON of tokens and ids; none learns one")
    image_weights: str | None = Field(None, description="tensors of the timm model: a file, a directory, a hub id")
    text_weights: str | None = Field(None, description="of a GPT, vocab.json and its tensors: a directory, a hub id")


class ImageFiles(Published):
    """Of a timm model; the file alone will do, too."""

    library_files = (WEIGHT_FILES,)


class GPTFiles(Published):
    """Of a model of this family, or of its GPT."""

    library_files = ((VOCABULARY,), WEIGHT_FILES)


class Projection(nn.Module):
    """The published head: p = Linear(x), then LayerNorm(p + Dropout(Linear(GELU(p))))."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        """Make one with random weights."""
        super().__init__()
        self.linear, self.second = nn.Linear(inputs, outputs), nn.Linear(outputs, outputs)
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """[B, inputs] -> [B, outputs]."""
        projected = self.linear(features)
        normed: Tensor = self.norm(projected + self.dropout(self.second(F.gelu(projected))))
        return normed


class ImageEncoder(nn.Module):
    """Pixels to a vector as wide as the GPT: what a captioner looks through."""

    def __init__(self, name: str, image_size: int, width: int, dropout: float) -> None:
        """Make one with random weights.

        Raises:
            ArchitectureError: timm has no such model, or not for this size.
        """
        super().__init__()
        trunk: Any = _trunk(name, image_size)
        self.trunk = trunk
        self.projection = Projection(getattr(trunk, "head_hidden_size", None) or trunk.num_features, width, dropout)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, W]."""
        vectors: Tensor = self.projection(self.trunk(pixels))
        return vectors


class Res2NetGPTModel(nn.Module):
    """Image encoder, GPT, projection of the texts, and the logarithm of the factor on the cosines."""

    def __init__(self, settings: Settings, temperature: float = TEMPERATURE) -> None:
        """Make one with random weights."""
        super().__init__()
        width = settings.text_config.width
        self.image = ImageEncoder(settings.image, settings.image_size, width, settings.dropout)
        self.text = GPT(settings.text_config)
        self.text_projection = Projection(width, width, settings.dropout)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        for idle in (self.text.norm, self.text.head):  # no feature depends on them
            idle.requires_grad_(False)


@register("res2net_gpt")
class Res2NetGPT(Backbone):
    """`architecture`: see `Architecture`. `weights`: a directory that this class saved.

    `architecture` may name weights of its parts: `image_weights`, such as timm/res2next50.in1k of the hub, whose
    classifier is left out, and `text_weights`, a directory of this family, or of a GPT as in models/gpt.py.
    """

    writes = True
    architecture_files = {"image_weights": ImageFiles, "text_weights": GPTFiles, "vocabulary": None}
    library_weights = "model.safetensors"
    library_files = ((CONFIG,), (VOCABULARY,), (WEIGHTS, library_weights))

    def __init__(self, model: Res2NetGPTModel, settings: Settings, characters: Characters) -> None:
        """Wrap a model of these settings with the vocabulary of its GPT."""
        super().__init__(model, settings.text_config.width, settings.image_size, settings.mean, settings.std)
        self.settings, self.characters = settings, characters
        self.context = settings.text_config.block_size

    def encode_image(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D], not normalised."""
        features: Tensor = self.model.image(pixels)  # type: ignore[operator]
        return features

    def encode_text(self, tokens: Tokens) -> Tensor:
        """Tokens [B, L] with one [SEP] each -> [B, D], not normalised; nothing looks ahead, so padding is not seen."""
        model: Any = self.model
        ids = tokens["input_ids"]
        states = model.text(model.text.embed(ids))
        end = (ids == self.characters.end).int().argmax(1)
        features: Tensor = model.text_projection(states[torch.arange(len(ids), device=ids.device), end])
        return features

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Texts to tokens [B, L], one per character, cut at `context`."""
        return self.characters.batch(texts, self.context)

    def captioner(self) -> Captioner:
        """Image encoder and GPT, which this model shares, with the GPT's vocabulary."""
        model: Any = self.model
        return Captioner(model.image, model.text, self.characters)

    def set_grad_checkpointing(self) -> None:
        """Compute the activations of the image model again in backward; those of the GPT are kept.

        Raises:
            ValueError: timm cannot do it for this model.
        """
        model: Any = self.model
        try:
            model.image.trunk.set_grad_checkpointing(True)
        except (AssertionError, NotImplementedError, AttributeError) as error:
            raise ValueError(
                f"backbone.grad_checkpointing: timm cannot do it for {self.settings.image} ({error}); set it to false"
            ) from error
        count_once(model.image.trunk)

    def layer_groups(self, tower: Tower) -> list[list[nn.Parameter]]:
        """Parameters of a tower: timm's groups of the image model; embeddings and blocks of the GPT; its projection."""
        model: Any = self.model
        if tower == "image":
            trunk = model.image.trunk
            by_layer = group_parameters(trunk, trunk.group_matcher())
            groups = [[trunk.get_parameter(name) for name in by_layer[layer]] for layer in sorted(by_layer)]
            return [*groups, list(model.image.projection.parameters())]
        gpt = model.text
        blocks = (list(block.parameters()) for block in gpt.blocks)
        return [[gpt.tokens.weight, gpt.positions], *blocks, list(model.text_projection.parameters())]

    def attention_layers(self, tower: Tower) -> int:
        """Blocks of the GPT; of an image model those of a ViT."""
        model: Any = self.model
        return len(model.text.blocks if tower == "text" else getattr(model.image.trunk, "blocks", ()))

    @classmethod
    def from_config(cls, architecture: Mapping[str, object], seed: int, texts: Sequence[str] = ()) -> Self:
        """Build a model with random weights but for those that `architecture` names, and its vocabulary.

        On the meta device, which holds no numbers, weights of parts are neither looked for nor read.

        Raises:
            ArchitectureError: Naming the key.
            MissingWeightsError, BrokenArtifactError, PublishedWeightsError: Weights that it names are not there, or not
                those of such a part.
        """
        given = _validated(Architecture, architecture, "backbone.architecture of res2net_gpt")
        sizes = {"vocab_size": MOST_CHARACTERS, **given.text_config}
        gpt = _validated(GPTSizes, sizes, "backbone.architecture.text_config of res2net_gpt")
        if given.text_weights is not None and given.vocabulary is not None:
            raise ArchitectureError(
                "backbone.architecture.vocabulary: text_weights brings its own vocabulary, for other ids would mean "
                "other characters to it; set vocabulary to null"
            )
        filled = torch.get_default_device().type != "meta"
        text_files = None
        if given.text_weights is not None and filled:
            text_files = _found(given.text_weights, "text_weights", GPTFiles)
        characters = _characters(given, text_files, texts, gpt.vocab_size)
        shape = {name: getattr(given, name) for name in Shape.model_fields}
        settings = Settings(**shape, text_config=gpt.model_copy(update={"vocab_size": len(characters)}))
        with seeded(seed):
            model = Res2NetGPTModel(settings, given.temperature)
        if given.image_weights is not None and filled:
            _fill_image(model.image.trunk, _tensors(_found(given.image_weights, "image_weights", ImageFiles)))
        if text_files is not None:
            _fill_text(model.text, _tensors(text_files))
        return cls(model, settings, characters)

    @classmethod
    def from_library(cls, directory: Path, *, weights: bool) -> Self:
        """Open a directory that `save_pretrained` wrote."""
        settings = Settings.model_validate_json((directory / CONFIG).read_text(encoding="utf-8"))
        characters = Characters.read(directory / VOCABULARY)
        if len(characters) != settings.text_config.vocab_size:
            raise BrokenArtifactError(
                f"{directory / VOCABULARY} has {len(characters)} tokens, and {CONFIG} beside it says "
                f"{settings.text_config.vocab_size}. Put the files of one model there"
            )
        backbone = cls(Res2NetGPTModel(settings), settings, characters)
        if weights:
            backbone.load_weights(directory / cls.library_weights)
        return backbone

    def save_settings(self, directory: Path) -> None:
        """Write config.json, with the normalisation that is in use, and vocab.json."""
        settings = self.settings.model_copy(update={"mean": list(self.mean), "std": list(self.std)})
        (directory / CONFIG).write_text(settings.model_dump_json(indent=2), encoding="utf-8")
        self.characters.write(directory / VOCABULARY)


def _validated(kind: type[AnyConfig], values: Mapping[str, object], where: str) -> AnyConfig:
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ArchitectureError(f"{where}: {wrong}") from error


def _trunk(name: str, image_size: int) -> nn.Module:
    """A model of timm without its classifier, with random weights."""
    if not timm.is_model(name):
        close = ", ".join(difflib.get_close_matches(name, timm.list_models(), 3))
        raise ArchitectureError(
            f"backbone.architecture.image: timm has no model '{name}'; similar are {close or 'none'}"
        )
    try:
        # A convolution takes any size; position embeddings are made for one.
        fixed = timm.get_pretrained_cfg_value(name, "fixed_input_size")
        size: dict[str, Any] = {"img_size": image_size} if fixed else {}
        trunk: nn.Module = timm.create_model(name, num_classes=0, **size)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ArchitectureError(
            f"backbone.architecture.image: timm cannot build '{name}' for images of {image_size} px ({error})"
        ) from error
    return trunk


def _characters(given: Architecture, text_files: Path | None, texts: Sequence[str], limit: int) -> Characters:
    """The vocabulary that comes with the GPT, or lies in a file, or is in the train texts."""
    try:
        if text_files is not None:
            return Characters.read(text_files / VOCABULARY)
        if given.vocabulary is not None:
            return Characters.read(Path(given.vocabulary).expanduser())
        return Characters.learn(texts, limit)
    except ArchitectureError as error:
        key = "vocabulary" if text_files is None else "text_weights"
        raise ArchitectureError(f"backbone.architecture.{key} of res2net_gpt: {error}") from error


def _found(weights: str, key: str, part: type[Published]) -> Path:
    """The directory of a part's weights, or their file where one will do."""
    path = Path(weights).expanduser()
    return path if part.is_file(path) else find_weights(weights, part, f"backbone.architecture.{key}")


def _tensors(place: Path) -> Path:
    """The file of weights in a directory, or a file itself."""
    return next((file for name in WEIGHT_FILES if (file := place / name).is_file()), place)


def _fill_image(trunk: Any, file: Path) -> None:
    """Load a timm model; its classifier is left out, which may be several layers."""
    names = trunk.pretrained_cfg.get("classifier") or ()
    classifier = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    tensors = {name: tensor for name, tensor in read_published(file).items() if not name.startswith(classifier)}
    # Files of an older torch lack the counters of BatchNorm, which nothing reads here.
    counters = {name: tensor for name, tensor in trunk.state_dict().items() if name.endswith("num_batches_tracked")}
    _fill(trunk, {**counters, **tensors}, file, "the image model of this architecture")


def _fill_text(gpt: GPT, file: Path) -> None:
    """Load a GPT, or that of a whole model of this family."""
    tensors = read_published(file)
    inside = {name.removeprefix("text."): tensor for name, tensor in tensors.items() if name.startswith("text.")}
    _fill(gpt, inside or tensors, file, "a GPT of this architecture")


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], file: Path, what: str) -> None:
    own, given = ({name: t.shape for name, t in side.items()} for side in (module.state_dict(), tensors))
    if wrong := sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name)):
        raise BrokenArtifactError(
            f"{file.absolute()} is not {what}: {len(wrong)} tensors are missing, too many or of another shape, such as "
            f"{', '.join(wrong[:3])}. Correct backbone.architecture, or take the weights of such a model"
        )
    module.load_state_dict(tensors)

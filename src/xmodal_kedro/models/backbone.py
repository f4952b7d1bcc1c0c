"""The one interface of every model family: pixels and tokens in, [B, D] features out, and files that load to the bit.

A family is one module in this package that decorates its `Backbone` with `@register(<name of the module>)`. Everything
else - training, freezing, encoding, checkpoints - knows no more than this file. Features are not normalised here: the
loss and the encoder do that.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from xmodal_kedro.config.member import AugmentConfig, LossConfig, TrainConfig
from xmodal_kedro.data.manifest import BrokenArtifactError
from xmodal_kedro.losses.contrastive import contrastive_loss
from xmodal_kedro.losses.gather import gathered
from xmodal_kedro.losses.soft_target import soft_target_loss
from xmodal_kedro.models.lora import merged_state
from xmodal_kedro.models.published import PublishedWeightsError
from xmodal_kedro.models.transform import ImageTransform
from xmodal_kedro.models.weights import MissingWeightsError, Published, find_weights, library_errors

MAX_LOGIT_SCALE = math.log(100)  # as CLIP clamps it: beyond, the softmax is one-hot and training unstable
WEIGHTS = "weights.safetensors"  # of a checkpoint directory, whatever the library calls its own file

Tower = Literal["image", "text"]
Tokens = dict[str, Tensor]  # input_ids and attention_mask, both [B, L]


class ArchitectureError(ValueError):
    """`backbone.architecture` describes no model of its family."""


CLEAR = (ArchitectureError, BrokenArtifactError, MissingWeightsError, PublishedWeightsError)  # they name key or file


@dataclass(frozen=True)
class Batch:
    """Pairs on the training device; row i of everything belongs together."""

    pixels: Tensor  # [B, 3, H, W], transformed
    tokens: Tokens
    keys: Tensor | None = None  # [B]; rows with equal keys are positives of each other


@dataclass(frozen=True)
class TrainState:
    """What a training step may want to know besides its batch."""

    step: int  # from 0
    steps: int
    steps_per_epoch: int
    loss: LossConfig


class Backbone(nn.Module, Published, ABC):
    """A dual encoder around the module of its library, `model`."""

    name: ClassVar[str]
    library_weights: ClassVar[str]  # name of the weight file that `save_pretrained` writes
    matches: ClassVar[bool] = False  # whether `image_states` and `match` are there
    writes: ClassVar[bool] = False  # whether `captioner` is there
    # Keys of `architecture` that name weights of a part, published so, or (None) some other file.
    architecture_files: ClassVar[Mapping[str, type[Published] | None]] = {}
    dual: ClassVar[bool] = True  # whether the loss needs nothing but the features: then a batch can be cut in parts
    context: int  # tokens of a text at most; each family sets what its model allows, and `tokenize` obeys it

    def __init__(
        self, model: nn.Module, embed_dim: int, image_size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        """Wrap `model`, which maps squares of `image_size`, normalised by `mean` and `std`, to `embed_dim` features."""
        super().__init__()
        # Convolutions train 1.6 times as fast in this layout on a CPU; it stays, so that a reloaded model is bit-equal.
        self.model = model.to(memory_format=torch.channels_last)
        self.embed_dim = embed_dim
        self.image_size = image_size
        self.mean, self.std = tuple(mean), tuple(std)

    @abstractmethod
    def encode_image(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D], not normalised."""

    @abstractmethod
    def encode_text(self, tokens: Tokens) -> Tensor:
        """Tokens [B, L] -> [B, D], not normalised; `trimmed` tokens give the same features as padded ones."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Texts to tokens [B, L], cut at the model's context, L the longest of the batch where that is exact."""

    @abstractmethod
    def layer_groups(self, tower: Tower) -> list[list[nn.Parameter]]:
        """The parameters of a tower from input to output: the one source for freezing and layer-wise rates."""

    @classmethod
    @abstractmethod
    def from_config(cls, architecture: Mapping[str, object], seed: int, texts: Sequence[str] = ()) -> Self:
        """Build a model with random weights; on the meta device, which holds no numbers, no weights are looked for.

        Args:
            architecture: Sizes, in the words of the family's library.
            seed: Of the weights.
            texts: Train texts, for families that learn their vocabulary from them.

        Raises:
            ArchitectureError: Naming the key.
        """

    @classmethod
    @abstractmethod
    def from_library(cls, directory: Path, *, weights: bool) -> Self:
        """Open a directory in the library's own layout with the library's own code; without `weights`, random ones."""

    @abstractmethod
    def save_settings(self, directory: Path) -> None:
        """Write what `from_library` reads besides the weights: configuration, tokenizer, preprocessing."""

    def limit_context(self, tokens: int) -> None:
        """Cut texts at so many tokens from now on.

        Raises:
            ValueError: The model does not allow so many.
        """
        if tokens > self.context:
            raise ValueError(f"backbone.context is {tokens}: this model allows {self.context} tokens at most")
        self.context = tokens

    def set_grad_checkpointing(self) -> None:
        """Compute activations again in backward instead of keeping them; the gradients stay the same.

        Raises:
            ValueError: The family cannot do it.
        """
        raise ValueError(f"backbone.grad_checkpointing: '{self.name}' cannot do it; set it to false")

    def attention_layers(self, tower: Tower) -> int:
        """Self-attention layers of a tower as its configuration counts them, 0 where it has none."""
        config: Any = getattr(self.model, "config", None)  # of transformers
        section = getattr(config, "vision_config" if tower == "image" else "text_config", None)
        return getattr(section, "num_hidden_layers", 0)

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the factor on the cosines; learned and saved with the model."""
        scale: nn.Parameter = self.model.logit_scale  # type: ignore[assignment]
        return scale

    @classmethod
    def from_pretrained(cls, weights: str | Path) -> Self:
        """Load a model from a directory (of the library, or a checkpoint of ours) or from the hub.

        A directory is read where it lies, without any look at the network.

        Raises:
            MissingWeightsError: Naming what is wanted where.
            ArchitectureError, BrokenArtifactError, PublishedWeightsError: The files are there, and are damaged or those
                of another model.
        """
        directory = find_weights(str(weights), cls)

        def broken(what: str) -> BrokenArtifactError:
            return BrokenArtifactError(
                f"backbone.weights: {directory.absolute()} holds no model that '{cls.name}' can open ({what}). Put the "
                f"whole files of one model of this family there, or correct backbone.name. Wanted: {cls.wanted()}"
            )

        with library_errors(broken, *CLEAR):
            if not (directory / WEIGHTS).is_file():
                return cls.from_library(directory, weights=True)
            backbone = cls.from_library(directory, weights=False)
            backbone.load_weights(directory / WEIGHTS)
            return backbone

    @classmethod
    def refusal(cls, config: TrainConfig) -> str | None:
        """Why this family cannot be trained so, as a sentence without its stop; None if it can."""
        if config.loss.momentum is not None and not cls.matches:
            return f"train.loss.momentum is for backbones with a matching head, '{cls.name}' has none: set it to null"
        if config.micro_batch is not None and not cls.dual:
            return (
                f"train.micro_batch is for backbones whose loss needs nothing but features, and '{cls.name}' also "
                "matches images with texts: set it to null; backbone.grad_checkpointing saves memory too"
            )
        if config.loss.kind == "soft_target" and (config.micro_batch is not None or not cls.dual):
            return (
                "train.loss.kind 'soft_target' is for backbones whose loss needs nothing but features, without "
                "train.micro_batch: set kind to contrastive, or micro_batch to null and take another backbone than blip"
            )
        return None

    @classmethod
    def from_published(cls, weights: str, architecture: Mapping[str, object]) -> Self:
        """Load weights that come without their config; for families whose library knows architectures by name.

        Raises:
            ValueError: This family's does not.
        """
        raise ValueError(
            f"backbone '{cls.name}' needs either weights (pretrained) or architecture (random weights); "
            "set the other one to null"
        )

    def save_pretrained(self, directory: Path) -> None:
        """Write a directory that the family's library opens by itself."""
        directory.mkdir(parents=True, exist_ok=True)
        self.save_settings(directory)
        self.save_weights(directory / self.library_weights)

    def save_weights(self, file: Path) -> None:
        """Write the tensors under the library's names, as safetensors, adapters merged into what they adapt."""
        tensors = {name: tensor.contiguous() for name, tensor in merged_state(self.model).items()}
        save_file(tensors, file, metadata={"format": "pt"})

    def load_weights(self, file: Path) -> None:
        """Read what `save_weights` wrote.

        Raises:
            BrokenArtifactError: The file is no safetensors, or of another architecture.
        """
        advice = "Load another version, or run the node again"
        try:
            tensors = load_file(file)
        except SafetensorError as error:
            raise BrokenArtifactError(f"{file} holds no tensors that can be read ({error}). {advice}.") from error
        wanted = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
        given = {name: tensor.shape for name, tensor in tensors.items()}
        if wrong := sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name)):
            raise BrokenArtifactError(
                f"{file} does not fit the configuration beside it: {len(wrong)} tensors are missing, too many "
                f"or of another shape, such as {', '.join(wrong[:3])}. {advice}."
            )
        self.model.load_state_dict(tensors)

    def image_transform(self, *, train: bool, augment: AugmentConfig | None = None) -> ImageTransform:
        """From packed uint8 squares to this model's input; `augment` counts for training alone."""
        return ImageTransform(self.image_size, self.mean, self.std, augment if train else None)

    def image_states(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, T, C], what `match` looks at: once per image, however many texts are matched with it."""
        raise NotImplementedError(f"the backbone '{self.name}' has no image-text matching head")

    def match(self, image_states: Tensor, tokens: Tokens) -> Tensor:
        """Logits [B] that text i is right for image i, from image states [B, T, C] and tokens [B, L]."""
        raise NotImplementedError(f"the backbone '{self.name}' has no image-text matching head")

    def image_memory(self, image_states: Tensor) -> tuple[Tensor, ...]:
        """What texts look at in images, from states [B, T, C]: tensors [B, ...], all that does not depend on a text."""
        return (image_states,)

    def match_memory(self, memory: tuple[Tensor, ...], images: Tensor, tokens: Tokens) -> Tensor:
        """Logits [P] that text i is right for image `images[i]` of a memory: those of `match`, for inference alone.

        Families in which part of `match` depends on the image alone do that part in `image_memory`.
        """
        return self.match(memory[0][images], tokens)

    def captioner(self) -> nn.Module:
        """The parts of this model that write captions, joined; they stay its own, and what trains one trains both."""
        raise NotImplementedError(f"the backbone '{self.name}' does not write captions")

    def begin_training(self, config: TrainConfig) -> None:
        """Make what training alone needs, on the device of the parameters; called once before the first step.

        Raises:
            ValueError: The config asks for what this family cannot do.
        """
        if reason := self.refusal(config):
            raise ValueError(reason)

    def training_tensors(self) -> dict[str, Tensor]:
        """What training has made besides parameters and buffers, and cannot go on without."""
        return {}

    def resume_training(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `training_tensors` gave, after `begin_training`; values on any device."""

    def training_step(self, batch: Batch, state: TrainState) -> dict[str, Tensor]:
        """Losses of a batch: `loss` is what is minimised, further entries are reported beside it."""
        if state.loss.kind == "soft_target":
            image, text = self.encode_image(batch.pixels).float(), self.encode_text(batch.tokens).float()
            return {"loss": soft_target_loss(gathered(image, grad=True), gathered(text, grad=True))}
        return self.feature_losses(*self.features(batch), batch.keys, state)

    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Image and text features of a batch, each [B, D], L2-normalised, fp32."""
        return (
            F.normalize(self.encode_image(batch.pixels).float(), dim=-1),
            F.normalize(self.encode_text(batch.tokens).float(), dim=-1),
        )

    def feature_losses(self, image: Tensor, text: Tensor, keys: Tensor | None, state: TrainState) -> dict[str, Tensor]:
        """Losses of features [B, D] of a whole batch, L2-normalised, computed over the rows of all processes."""
        image, text = gathered(image, grad=True), gathered(text, grad=True)
        keys = None if keys is None else gathered(keys)
        config = state.loss
        loss = contrastive_loss(
            image, text, self.logit_scale, keys, config.label_smoothing, config.truncation, config.directions
        )
        return {"loss": loss}

    def after_step(self) -> None:
        """Bring what must stay in a range back to it, after each step of the optimiser."""
        with torch.no_grad():
            self.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)

    def freeze(self, unlocked_groups: Mapping[Tower, int]) -> None:
        """Leave only the last N layer groups of each named tower trainable; towers that are not named stay as they are.

        Raises:
            ValueError: A tower has fewer groups than asked for.
        """
        for tower, unlocked in unlocked_groups.items():
            groups = self.layer_groups(tower)
            if not 0 <= unlocked <= len(groups):
                raise ValueError(
                    f"backbone.unlocked_groups.{tower} is {unlocked}: this {tower} tower has {len(groups)} layer groups"
                )
            for group in groups[: len(groups) - unlocked]:
                for parameter in group:
                    parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """As in torch, but modules whose parameters are all frozen stay in eval: no dropout, no batch statistics.

        A tower with adapters keeps the dropout of its frozen layers, as it does with peft.
        """
        super().train(mode)
        for part in self.model.children() if mode else ():
            adapted = any("lora_" in name for name, _ in part.named_parameters())
            for module in part.modules():
                frozen = [not parameter.requires_grad for parameter in module.parameters()]
                if frozen and all(frozen) and (not adapted or isinstance(module, _BatchNorm)):
                    module.eval()
        return self


REGISTRY: dict[str, type[Backbone]] = {}
AnyBackbone = TypeVar("AnyBackbone", bound=type[Backbone])


def register(name: str) -> Callable[[AnyBackbone], AnyBackbone]:
    """Make a backbone known by the name of its module."""

    def decorate(backbone: AnyBackbone) -> AnyBackbone:
        backbone.name = name
        REGISTRY[name] = backbone
        return backbone

    return decorate


def trimmed(tokens: Tokens) -> Tokens:
    """Cut the columns in which the whole batch is padding."""
    longest = int(tokens["attention_mask"].sum(1).max()) if len(tokens["attention_mask"]) else 0
    return {name: values[:, :longest] for name, values in tokens.items()}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run with torch's global generators at `seed` and give them back as they were."""
    # Of several GPUs a process uses one; torch would warn that it saves the states of all.
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield

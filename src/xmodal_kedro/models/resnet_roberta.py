"""A ResNet of torchvision and a RoBERTa (arXiv 1907.11692) of transformers, joined by one linear layer.

The image feature is the ResNet's pooled map through its last layer, as wide as the text feature, which is RoBERTa's
pooled state. The temperature is fixed. Pixels are not normalised unless the files or the architecture say so.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, ValidationError
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from transformers import RobertaConfig, RobertaModel, RobertaTokenizer
from transformers import logging as transformers_logging

from xmodal_kedro.config.frozen import Frozen
from xmodal_kedro.data.manifest import BrokenArtifactError
from xmodal_kedro.models.architecture import transformers_config
from xmodal_kedro.models.backbone import WEIGHTS, ArchitectureError, Backbone, Tokens, Tower, register, seeded
from xmodal_kedro.models.published import load_published, read_published
from xmodal_kedro.models.weights import lacking

log = logging.getLogger(__name__)

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
CONTEXT = 512  # tokens at most
ROBERTA_BASE = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}  # as published
STAGES = (1, 2, 3, 4)
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
TEXT_FILES = (
    ("config.json",),
    ("vocab.json", "tokenizer.json"),
    ("merges.txt", "tokenizer.json"),
    ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"),
)
TENSOR_FILES = (".safetensors", ".pth", ".pt", ".bin")
PUBLISHED = (
    "Published weights go into a directory with image/, which holds torchvision's resnet50-11ad3fa6.pth (or its "
    "tensors as .safetensors), and text/, which holds config.json, vocab.json, merges.txt and model.safetensors (or "
    "pytorch_model.bin) of roberta-base"
)


class ImageTower(Frozen):
    """Sizes of a ResNet; these are those of ResNet50."""

    block: Literal["basic", "bottleneck"] = "bottleneck"
    layers: list[int] = Field([3, 4, 6, 3], min_length=4, max_length=4)
    width: int = Field(64, ge=1, description="of the blocks of the first stage; each stage doubles it")


class Architecture(Frozen):
    """Sizes of a model with random weights."""

    image: ImageTower = ImageTower()
    image_size: int = Field(224, ge=32)
    text_config: dict[str, Any] = Field({}, description="what differs from roberta-base, in the words of RobertaConfig")
    vocabulary: str | None = Field(None, description="directory with vocab.json and merges.txt; none learns one")
    temperature: float = Field(0.07, gt=0.0)
    mean: list[float] = Field([0.0, 0.0, 0.0], min_length=3, max_length=3)
    std: list[float] = Field([1.0, 1.0, 1.0], min_length=3, max_length=3)


class ImageEncoder(ResNet):
    """A ResNet of any width, with a layer to the text's dimensions for its classifier; names as in torchvision."""

    def __init__(self, sizes: ImageTower, embed_dim: int) -> None:
        """Make one with random weights."""
        self.width = sizes.width  # before torchvision makes the stages
        super().__init__(BasicBlock if sizes.block == "basic" else Bottleneck, sizes.layers)
        self.fc = nn.Linear(self.inplanes, embed_dim)

    def _make_layer(self, block: Any, planes: int, *settings: Any, **more: Any) -> nn.Sequential:
        return super()._make_layer(block, planes * self.width // 64, *settings, **more)


class ResNetRobertaModel(nn.Module):
    """Both towers, and the logarithm of the factor on the cosines, which does not train."""

    def __init__(self, image: ImageTower, text: RobertaConfig, temperature: float) -> None:
        """Make one with random weights."""
        super().__init__()
        self.image = ImageEncoder(image, text.hidden_size)
        self.text = RobertaModel(text)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=False)


@register("resnet_roberta")
class ResNetRoberta(Backbone):
    """`architecture`: see `Architecture`. `weights`: a directory that this class saved, or one of published weights.

    The latter has `image/` and `text/`, and a `preprocessor_config.json` where pixels are normalised or the size is not
    224. What published weights lack, the layer to the text's dimensions and perhaps RoBERTa's pooler, is random, always
    with the same seed.
    """

    library_weights = "model.safetensors"
    library_files = ((CONFIG,), ("vocab.json", "tokenizer.json"), (WEIGHTS, library_weights))

    def __init__(
        self,
        model: ResNetRobertaModel,
        sizes: ImageTower,
        tokenizer: RobertaTokenizer,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        """Wrap a model, whose image tower has these sizes, with its tokenizer and its input."""
        config: Any = model.text.config
        super().__init__(model, config.hidden_size, image_size, mean, std)
        self.sizes = sizes
        self.tokenizer = tokenizer
        self.context = min(CONTEXT, config.max_position_embeddings - config.pad_token_id - 1)  # positions begin there

    def encode_image(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D], not normalised."""
        features: Tensor = self.model.image(pixels)  # type: ignore[operator]
        return features

    def encode_text(self, tokens: Tokens) -> Tensor:
        """Tokens [B, L] -> [B, D], not normalised; padding is masked, so trimming it changes nothing."""
        features: Tensor = self.model.text(**tokens, use_cache=False).pooler_output  # type: ignore[operator]
        return features

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Texts to tokens [B, L], cut at `context`."""
        some = list(texts) or [""]  # it cannot tokenise nothing
        tokens = self.tokenizer(some, max_length=self.context, truncation=True, padding=True, return_tensors="pt")
        return {name: tokens[name][: len(texts)].long() for name in ("input_ids", "attention_mask")}

    def set_grad_checkpointing(self) -> None:
        """Compute the activations of the text blocks again in backward; those of the ResNet are kept."""
        text: Any = self.model.text
        text.activation_checkpointing_enable()
        text.disable_input_require_grads()  # else backward would run through a frozen tower

    def layer_groups(self, tower: Tower) -> list[list[nn.Parameter]]:
        """Parameters of a tower: stem, stages, last layer of the ResNet; embeddings, blocks, pooler of RoBERTa."""
        model: Any = self.model
        image, text = model.image, model.text
        if tower == "image":
            stages = (image.layer1, image.layer2, image.layer3, image.layer4)
            groups = [[image.conv1, image.bn1], *([stage] for stage in stages), [image.fc]]
        else:
            groups = [[text.embeddings], *([block] for block in text.encoder.layer), [text.pooler]]
        return [[parameter for module in group for parameter in module.parameters()] for group in groups]

    def attention_layers(self, tower: Tower) -> int:
        """Those of RoBERTa; the ResNet has none."""
        model: Any = self.model
        return len(model.text.encoder.layer) if tower == "text" else 0

    def after_step(self) -> None:
        """Nothing: the temperature is fixed."""

    @classmethod
    def from_config(cls, architecture: Mapping[str, object], seed: int, texts: Sequence[str] = ()) -> Self:
        """Build a model with random weights, with the byte pairs of a directory or of `texts`."""
        try:
            sizes = Architecture.model_validate(dict(architecture))
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            raise ArchitectureError(f"backbone.architecture of resnet_roberta: {wrong}") from error
        text = {**ROBERTA_BASE, **sizes.text_config}
        if unknown := sorted(text.keys() - RobertaConfig().to_dict().keys()):
            raise ArchitectureError(f"backbone.architecture.text_config: RobertaConfig knows no {', '.join(unknown)}")
        tokenizer = _tokenizer(sizes.vocabulary, texts, text.get("vocab_size", RobertaConfig().vocab_size))
        text |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        with seeded(seed):
            model = ResNetRobertaModel(sizes.image, transformers_config(RobertaConfig, text), sizes.temperature)
        return cls(model, sizes.image, tokenizer, sizes.image_size, sizes.mean, sizes.std)

    @classmethod
    def wanted(cls) -> str:
        """What a model that was saved whole has, or published weights of its towers."""
        return f"{super().wanted()}. {PUBLISHED}"

    @classmethod
    def missing_files(cls, directory: Path) -> str | None:
        """What a model lacks that was saved whole, or published weights of its towers."""
        if (directory / CONFIG).is_file():
            missing = super().missing_files(directory)
        else:
            missing = _missing_tensors(directory / "image") or lacking(directory / "text", TEXT_FILES)
        return missing and f"{missing}. {PUBLISHED}"

    @classmethod
    def from_library(cls, directory: Path, *, weights: bool) -> Self:
        """Open a directory that `save_pretrained` wrote, or one of published weights."""
        default = Architecture()
        if not (directory / CONFIG).is_file():
            model, sizes = _published(directory, default.temperature)
            tokenizer = RobertaTokenizer.from_pretrained(directory / "text", local_files_only=True)
        else:
            config = json.loads((directory / CONFIG).read_text())
            sizes = ImageTower.model_validate(config["image"])
            model = ResNetRobertaModel(sizes, RobertaConfig(**config["text_config"]), default.temperature)
            tokenizer = RobertaTokenizer.from_pretrained(directory, local_files_only=True)
        image_size, mean, std = default.image_size, default.mean, default.std
        if (directory / PREPROCESSOR).is_file():
            pixels = json.loads((directory / PREPROCESSOR).read_text())
            image_size, mean, std = pixels["size"]["height"], pixels["image_mean"], pixels["image_std"]
        backbone = cls(model, sizes, tokenizer, image_size, mean, std)
        if weights and (directory / CONFIG).is_file():
            backbone.load_weights(directory / cls.library_weights)
        return backbone

    def save_settings(self, directory: Path) -> None:
        """Write config.json, the tokenizer with its vocab.json and merges.txt, and preprocessor_config.json."""
        model: Any = self.model
        config = {
            "model_type": self.name,
            "image": self.sizes.model_dump(),
            "text_config": model.text.config.to_diff_dict(),
        }
        (directory / CONFIG).write_text(json.dumps(config, indent=2))
        self.tokenizer.save_pretrained(directory)
        self.tokenizer.backend_tokenizer.model.save(str(directory))  # what published models have
        size = {"height": self.image_size, "width": self.image_size}
        pixels = {"size": size, "image_mean": self.mean, "image_std": self.std}
        (directory / PREPROCESSOR).write_text(json.dumps(pixels, indent=2))


def learn_byte_pairs(texts: Iterable[str], limit: int) -> RobertaTokenizer:
    """Learn byte pairs from texts: every byte is known, so no text has unknown tokens.

    Args:
        texts: Train texts, in any order.
        limit: Tokens at most.

    Raises:
        ArchitectureError: The limit leaves no room for all bytes.
    """
    alphabet = sorted(ByteLevel.alphabet())
    if limit < (least := len(SPECIAL) + len(alphabet)):
        raise ArchitectureError(
            f"backbone.architecture.text_config.vocab_size is {limit}: bytes and special tokens alone are {least}"
        )
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=limit, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(sorted(texts), trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    merges: Any = [tuple(pair) for pair in learned["merges"]]
    return RobertaTokenizer(vocab=learned["vocab"], merges=merges)


def _tokenizer(vocabulary: str | None, texts: Sequence[str], limit: int) -> RobertaTokenizer:
    if vocabulary is None:
        if not texts:
            raise ArchitectureError("backbone.architecture of resnet_roberta needs a vocabulary, or texts to learn one")
        return learn_byte_pairs(texts, limit)
    directory = Path(vocabulary).expanduser()
    for name in ("vocab.json", "merges.txt"):
        if not (directory / name).is_file():
            raise ArchitectureError(f"backbone.architecture.vocabulary: there is no file {directory.absolute() / name}")
    tokenizer: RobertaTokenizer = RobertaTokenizer.from_pretrained(directory, local_files_only=True)
    return tokenizer


def _published(directory: Path, temperature: float) -> tuple[ResNetRobertaModel, ImageTower]:
    """Both towers with the weights of their libraries."""
    (file,) = _tensor_files(directory / "image")
    tensors = read_published(file) if file.suffix == ".safetensors" else load_published(file, _without_classifier)
    kept = {name: tensor for name, tensor in tensors.items() if _without_classifier(name)}
    with seeded(0):
        text = _published_roberta(directory / "text")
        sizes = _sizes_of(kept, file)
        model = ResNetRobertaModel(sizes, text.config, temperature)
    model.text = text
    last = {f"fc.{name}": tensor for name, tensor in model.image.fc.state_dict().items()}
    left, right = ({name: t.shape for name, t in side.items()} for side in (model.image.state_dict(), {**kept, **last}))
    if wrong := sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name)):
        raise BrokenArtifactError(
            f"{file} is of no plain ResNet: {len(wrong)} tensors are missing, too many or of another shape, such as "
            f"{', '.join(wrong[:3])}. {PUBLISHED}"
        )
    model.image.load_state_dict({**kept, **last})
    return model, sizes


def _tensor_files(folder: Path) -> list[Path]:
    files = {path.name: path for path in sorted(folder.glob("*")) if path.suffix in TENSOR_FILES}
    for name in list(files):
        files.pop(f"{name}.safetensors", None)  # what the file was converted to
    return list(files.values())


def _missing_tensors(folder: Path) -> str | None:
    files = _tensor_files(folder)
    found = ", ".join(file.name for file in files) or "none"
    return None if len(files) == 1 else f"{folder.absolute()} must hold one file of weights, it has {found}"


def _without_classifier(name: str) -> str | None:
    return None if name.startswith("fc.") else name


def _sizes_of(tensors: Mapping[str, Tensor], file: Path) -> ImageTower:
    """The sizes of a ResNet from the names and shapes of its tensors."""
    blocks = [
        {found[1] for name in tensors if (found := re.match(rf"layer{stage}\.(\d+)\.", name))} for stage in STAGES
    ]
    first = tensors.get("layer1.0.conv1.weight")
    if first is None or not all(blocks):
        raise BrokenArtifactError(f"{file} is of no ResNet of torchvision. {PUBLISHED}")
    kind: Literal["basic", "bottleneck"] = "bottleneck" if "layer1.0.conv3.weight" in tensors else "basic"
    return ImageTower(block=kind, layers=[len(numbers) for numbers in blocks], width=len(first))


def _published_roberta(folder: Path) -> RobertaModel:
    """The encoder of any RoBERTa of transformers, such as one that was saved with its language head."""
    kind: Any = RobertaModel  # whose loader returns a pair when asked for the report
    with _silent_transformers():
        model, report = kind.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    pooler = {name for name in report["missing_keys"] if name.startswith("pooler.")}
    if missing := sorted(report["missing_keys"] - pooler):
        raise BrokenArtifactError(
            f"{folder} holds no weights of the RoBERTa that its config.json describes: {len(missing)} tensors are "
            f"missing, such as {', '.join(missing[:3])}. Put the files of one model there"
        )
    if pooler:
        log.warning("%s holds no pooler: it starts with random weights", folder)
    roberta: RobertaModel = model
    return roberta


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """Keep transformers from printing which tensors are missing: that is checked here."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)

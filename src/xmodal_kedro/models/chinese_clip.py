"""Chinese-CLIP (arXiv 2211.01335) through transformers: a ViT and a BERT whose [CLS] states are projected.

Published models bring their `vocab.txt`. A model with random weights gets one from a file, or learns one from the train
texts, so that it serves any language.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn
from transformers import BertTokenizer, ChineseCLIPConfig, ChineseCLIPImageProcessor, ChineseCLIPModel
from transformers import logging as transformers_logging

from xmodal_kedro.config.weights import unsupported
from xmodal_kedro.models.architecture import check_sizes, transformers_config
from xmodal_kedro.models.backbone import WEIGHTS, ArchitectureError, Backbone, Tokens, Tower, register, seeded
from xmodal_kedro.models.published import load_published
from xmodal_kedro.models.vocabulary import vocabulary_of, write_vocabulary
from xmodal_kedro.models.weights import MissingWeightsError

CONTEXT = 52  # tokens, as the published models were trained
QUOTES = str.maketrans("“”", '""')


@register("chinese_clip")
class ChineseClip(Backbone):
    """`architecture`: `projection_dim`, `vision_config`, `text_config` as ChineseCLIPConfig has them, and `vocabulary`.

    That is a vocab.txt; without it one is learned from the train texts, of `text_config.vocab_size` tokens at most.
    """

    library_weights = "model.safetensors"
    library_files = (
        ("config.json",),
        ("vocab.txt", "tokenizer.json"),
        (WEIGHTS, library_weights, "model.safetensors.index.json", "pytorch_model.bin"),
    )

    def __init__(self, model: ChineseCLIPModel, tokenizer: BertTokenizer, processor: ChineseCLIPImageProcessor) -> None:
        """Wrap a model of transformers with its tokenizer and image processor."""
        config: Any = model.config
        side = config.vision_config.image_size
        super().__init__(model, config.projection_dim, side, processor.image_mean, processor.image_std)
        self.tokenizer = tokenizer
        self.context = min(CONTEXT, config.text_config.max_position_embeddings)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D], not normalised."""
        return _features(self.model.get_image_features(pixel_values=pixels))  # type: ignore[operator]

    def encode_text(self, tokens: Tokens) -> Tensor:
        """Tokens [B, L] -> [B, D], not normalised; padding is masked, so trimming it changes nothing."""
        return _features(self.model.get_text_features(**tokens))  # type: ignore[operator]

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Texts, normalised as for the published models, to tokens [B, L <= 52]."""
        clean = [_normal(text) for text in texts] or [""]  # it cannot tokenise nothing
        tokens = self.tokenizer(clean, max_length=self.context, truncation=True, padding=True, return_tensors="pt")
        return {name: tokens[name][: len(texts)].long() for name in ("input_ids", "attention_mask")}

    def set_grad_checkpointing(self) -> None:
        """As in transformers, for both towers."""
        model: Any = self.model
        model.activation_checkpointing_enable()
        model.disable_input_require_grads()  # else backward would run through a frozen tower

    def layer_groups(self, tower: Tower) -> list[list[nn.Parameter]]:
        """Parameters of a tower: embeddings, blocks, (the last one with the final norm), projection."""
        model: Any = self.model
        if tower == "image":
            vision = model.vision_model
            first, blocks = [vision.embeddings, vision.pre_layrnorm], vision.encoder.layers
            last, head = [blocks[-1], vision.post_layernorm], model.visual_projection
        else:
            first, blocks = [model.text_model.embeddings], model.text_model.encoder.layer
            last, head = [blocks[-1]], model.text_projection
        groups = [first, *([block] for block in blocks[:-1]), last, [head]]
        return [[parameter for module in group for parameter in module.parameters()] for group in groups]

    @classmethod
    def from_config(cls, architecture: Mapping[str, object], seed: int, texts: Sequence[str] = ()) -> Self:
        """Build a model with random weights, with the vocabulary of a file or of `texts`."""
        sizes: dict[str, Any] = dict(architecture)
        file = sizes.pop("vocabulary", None)
        check_sizes(ChineseCLIPConfig, sizes)
        text = sizes["text_config"] = dict(sizes.get("text_config", {}))
        vocabulary = vocabulary_of(file, [_normal(text) for text in texts], text.get("vocab_size", 21128))
        text |= {"vocab_size": len(vocabulary), "pad_token_id": vocabulary.index("[PAD]")}
        tokenizer = BertTokenizer({token: index for index, token in enumerate(vocabulary)}, do_lower_case=True)
        config: Any = transformers_config(ChineseCLIPConfig, sizes)
        side = config.vision_config.image_size
        processor = ChineseCLIPImageProcessor(size={"height": side, "width": side}, do_center_crop=False)
        with seeded(seed):
            return cls(ChineseCLIPModel(config), tokenizer, processor)

    @classmethod
    def from_pretrained(cls, weights: str | Path) -> Self:
        """Load a directory of transformers, a checkpoint of ours, or a model of the hub.

        Raises:
            MissingWeightsError: Naming what is wanted where.
            ArchitectureError: The files are those of the original code, or of a ResNet.
        """
        directory = Path(weights).expanduser()
        for file in (directory, *sorted(directory.glob("clip_cn_*.pt"))):
            if (reason := unsupported("chinese_clip", str(file))) and not (directory / "vocab.txt").is_file():
                raise MissingWeightsError(f"backbone.weights: {reason}")
        config = directory / "config.json"
        if config.is_file() and isinstance(_vision_layers(config), list):  # as the original code writes a ResNet
            raise ArchitectureError(f"{config}: {unsupported('chinese_clip', 'clip_cn_rn50.pt')}")
        return super().from_pretrained(weights)

    @classmethod
    def from_library(cls, directory: Path, *, weights: bool) -> Self:
        """Open a directory of transformers: config.json, vocabulary, preprocessor_config.json."""
        tokenizer = BertTokenizer.from_pretrained(directory, local_files_only=True)
        if (directory / "preprocessor_config.json").is_file():
            processor = ChineseCLIPImageProcessor.from_pretrained(directory, local_files_only=True)
        else:
            processor = ChineseCLIPImageProcessor()
        config = ChineseCLIPConfig.from_pretrained(directory)
        if not weights:
            return cls(ChineseCLIPModel(config), tokenizer, processor)
        transformers_logging.disable_progress_bar()
        pickled = directory / "pytorch_model.bin"
        if any((directory / name).is_file() for name in (cls.library_weights, f"{cls.library_weights}.index.json")):
            given: dict[str, Any] = {"pretrained_model_name_or_path": directory, "local_files_only": True}
        else:
            tensors = load_published(pickled, lambda name: name)
            _check_names(tensors, pickled)
            given = {"pretrained_model_name_or_path": None, "state_dict": tensors, "config": config}
        loaded: Any = ChineseCLIPModel.from_pretrained(**given, output_loading_info=True, ignore_mismatched_sizes=True)
        model, report = loaded
        if wrong := sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}):
            raise ArchitectureError(
                f"backbone.weights: {directory.absolute()}: {len(wrong)} tensors that config.json asks for are "
                f"missing or of another shape, such as {', '.join(wrong[:3])}"
            )
        return cls(model, tokenizer, processor)

    def save_settings(self, directory: Path) -> None:
        """Write config.json, the tokenizer with its vocab.txt, and preprocessor_config.json."""
        model: Any = self.model
        model.config.save_pretrained(directory)
        write_vocabulary(self.tokenizer, directory)
        size = {"height": self.image_size, "width": self.image_size}
        ChineseCLIPImageProcessor(
            size=size, do_center_crop=False, image_mean=list(self.mean), image_std=list(self.std)
        ).save_pretrained(directory)


def _normal(text: str) -> str:
    return text.lower().translate(QUOTES)


def _vision_layers(config: Path) -> Any:
    try:
        layers = json.loads(config.read_text(encoding="utf-8"))["vision_layers"]
    except (KeyError, TypeError, ValueError):  # transformers has no such key, and says what is damaged
        return None
    return json.loads(layers) if isinstance(layers, str) else layers  # "[3,4,6,3]"


def _check_names(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Refuse the names of the original code, which a renamed file still has."""
    if any(name.startswith("visual.layer1.") for name in tensors):
        raise ArchitectureError(f"{file}: {unsupported('chinese_clip', 'clip_cn_rn50.pt')}")
    if any(name.startswith(("visual.", "bert.")) for name in tensors):
        raise ArchitectureError(f"{file}: {unsupported('chinese_clip', 'clip_cn_vit.pt')}")


def _features(output: Any) -> Tensor:
    """Transformers 5 returns an object, 4 the tensor itself."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features

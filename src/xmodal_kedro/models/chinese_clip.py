"""Chinese-CLIP (arXiv 2211.01335) through transformers: a ViT and a BERT whose [CLS] states are projected.

Published models bring their `vocab.txt`. A model with random weights gets one from a file, or learns one from the train
texts, so that it serves any language.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import BertTokenizer, ChineseCLIPConfig, ChineseCLIPImageProcessor, ChineseCLIPModel
from transformers import logging as transformers_logging

from xmodal_kedro.models.backbone import WEIGHTS, ArchitectureError, Backbone, Tokens, Tower, register, seeded

CONTEXT = 52  # tokens, as the published models were trained
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
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
        clean = [text.lower().translate(QUOTES) for text in texts] or [""]  # it cannot tokenise nothing
        tokens = self.tokenizer(clean, max_length=self.context, truncation=True, padding=True, return_tensors="pt")
        return {name: tokens[name][: len(texts)].long() for name in ("input_ids", "attention_mask")}

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
        _check_keys(sizes)
        text = sizes["text_config"] = dict(sizes.get("text_config", {}))
        if file is not None:
            vocabulary = _read_vocabulary(Path(str(file)).expanduser())
        elif texts:
            vocabulary = learn_vocabulary(texts, text.get("vocab_size", 21128))
        else:
            raise ArchitectureError(
                "backbone.architecture of chinese_clip needs a vocabulary file, or texts to learn one"
            )
        text |= {"vocab_size": len(vocabulary), "pad_token_id": vocabulary.index("[PAD]")}
        tokenizer = BertTokenizer({token: index for index, token in enumerate(vocabulary)}, do_lower_case=True)
        try:
            config: Any = ChineseCLIPConfig(**sizes)
        except (StrictDataclassError, TypeError) as error:
            raise ArchitectureError(f"backbone.architecture is no config of ChineseCLIPConfig: {error}") from error
        side = config.vision_config.image_size
        processor = ChineseCLIPImageProcessor(size={"height": side, "width": side}, do_center_crop=False)
        with seeded(seed):
            return cls(ChineseCLIPModel(config), tokenizer, processor)

    @classmethod
    def from_library(cls, directory: Path, *, weights: bool) -> Self:
        """Open a directory of transformers: config.json, vocabulary, preprocessor_config.json."""
        tokenizer = BertTokenizer.from_pretrained(directory, local_files_only=True)
        if (directory / "preprocessor_config.json").is_file():
            processor = ChineseCLIPImageProcessor.from_pretrained(directory, local_files_only=True)
        else:
            processor = ChineseCLIPImageProcessor()
        if not weights:
            return cls(ChineseCLIPModel(ChineseCLIPConfig.from_pretrained(directory)), tokenizer, processor)
        transformers_logging.disable_progress_bar()
        return cls(ChineseCLIPModel.from_pretrained(directory, local_files_only=True), tokenizer, processor)

    def save_settings(self, directory: Path) -> None:
        """Write config.json, the tokenizer with its vocab.txt, and preprocessor_config.json."""
        model: Any = self.model
        model.config.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        by_id = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        (directory / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in by_id), encoding="utf-8")
        size = {"height": self.image_size, "width": self.image_size}
        ChineseCLIPImageProcessor(
            size=size, do_center_crop=False, image_mean=list(self.mean), image_std=list(self.std)
        ).save_pretrained(directory)


def learn_vocabulary(texts: Iterable[str], limit: int) -> list[str]:
    """Learn a WordPiece vocabulary: every character, alone and as a continuation, then the most frequent words.

    Chinese characters are words of their own in BERT, so this is its character vocabulary there and a word vocabulary
    elsewhere; unseen words fall apart into characters. Ties are broken by the alphabet: the result is always the same.

    Args:
        texts: Train texts.
        limit: Tokens at most; frequent characters go first if not even they fit.
    """
    bert = BertTokenizer().backend_tokenizer
    words: Counter[str] = Counter()
    for text, count in Counter(texts).items():
        normal = bert.normalizer.normalize_str(text.lower().translate(QUOTES))
        for word, _ in bert.pre_tokenizer.pre_tokenize_str(normal):
            words[word] += count
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for position, character in enumerate(word):
            characters[character if position == 0 else f"##{character}"] += count
    ranked = [*_by_frequency(characters), *_by_frequency(words)]
    return list(dict.fromkeys([*SPECIAL, *ranked]))[:limit]


def _by_frequency(counts: Counter[str]) -> list[str]:
    return [token for _, token in sorted((-count, token) for token, count in counts.items())]


def _features(output: Any) -> Tensor:
    """Transformers 5 returns an object, 4 the tensor itself."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


def _read_vocabulary(file: Path) -> list[str]:
    if not file.is_file():
        raise ArchitectureError(f"backbone.architecture.vocabulary: there is no file {file.absolute()}")
    with file.open(encoding="utf-8") as lines:  # not splitlines(): some tokens are separators of other kinds
        vocabulary = [line.rstrip("\n") for line in lines]
    if missing := [token for token in SPECIAL if token not in vocabulary]:
        raise ArchitectureError(f"backbone.architecture.vocabulary: {file} is no BERT vocabulary, it lacks {missing}")
    return vocabulary


def _check_keys(architecture: Mapping[str, Any]) -> None:
    """Transformers takes any key silently; a misspelt size would go unnoticed."""
    known = ChineseCLIPConfig().to_dict()
    for section in ("", "vision_config", "text_config"):
        given, there = (architecture.get(section, {}), known[section]) if section else (architecture, known)
        if not isinstance(given, Mapping):
            raise ArchitectureError(f"backbone.architecture.{section} must be a mapping, not {given!r}")
        if unknown := given.keys() - there.keys():
            names = ", ".join(".".join(filter(None, (section, key))) for key in sorted(unknown))
            raise ArchitectureError(f"backbone.architecture: ChineseCLIPConfig knows no {names}")

"""Small models with random weights, saved as the hubs have the large ones, with the real tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.conftest import SHARED

TOKENIZERS = SHARED / "tokenizers"


def save_chinese_clip(directory: Path, image_size: int = 64, seed: int = 0) -> None:
    """A Chinese-CLIP of a few million parameters with the vocabulary of bert-base-chinese, as transformers saves it."""
    from xmodal_kedro.models.chinese_clip import ChineseClip

    vision = {"image_size": image_size, "patch_size": 16, "hidden_size": 128, "intermediate_size": 512}
    text = {"vocab_size": 21128, "hidden_size": 128, "intermediate_size": 512, "max_position_embeddings": 512}
    architecture = {
        "projection_dim": 128,
        "vision_config": vision | {"num_hidden_layers": 3, "num_attention_heads": 4},
        "text_config": text | {"num_hidden_layers": 1, "num_attention_heads": 4, "type_vocab_size": 2},
        "vocabulary": str(TOKENIZERS / "bert_chinese_vocab.txt"),
    }
    ChineseClip.from_config(architecture, seed).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # the hub's directories have vocab.txt alone
        (directory / name).unlink()


def save_roberta_tokenizer(directory: Path) -> None:
    """vocab.json and merges.txt of roberta-base: GPT-2's byte pairs, numbered by their rank in fairseq's dictionary."""
    token_of = {
        index: token for token, index in json.loads((TOKENIZERS / "gpt2_roberta_encoder.json").read_text()).items()
    }
    ranked = [line.split()[0] for line in (TOKENIZERS / "fairseq_dict.txt").read_text().splitlines()]
    tokens = ["<s>", "<pad>", "</s>", "<unk>"]
    tokens += [token_of[int(name)] if name.isdigit() else name for name in ranked]  # or a made-up word
    tokens.append("<mask>")
    directory.mkdir(parents=True, exist_ok=True)
    numbered = {token: index for index, token in enumerate(tokens)}
    (directory / "vocab.json").write_text(json.dumps(numbered, ensure_ascii=False), encoding="utf-8")
    merges = (TOKENIZERS / "gpt2_roberta_vocab.bpe").read_text(encoding="utf-8")
    (directory / "merges.txt").write_text(merges, encoding="utf-8")


def save_resnet_roberta(directory: Path, image_size: int = 64, seed: int = 0) -> None:
    """A small ResNet as torchvision names it and a small RoBERTa with the real byte pairs, each in its own folder."""
    import torch
    from safetensors.torch import save_file

    from xmodal_kedro.models.resnet_roberta import ResNetRoberta

    folder = directory / "text"
    save_roberta_tokenizer(folder)
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    architecture = {
        "image": {"block": "basic", "layers": [1, 1, 1, 1], "width": 32},
        "image_size": image_size,
        "text_config": sizes,
        "vocabulary": str(folder),
    }
    model: Any = ResNetRoberta.from_config(architecture, seed).model
    model.text.save_pretrained(folder)
    image = {name: tensor.contiguous() for name, tensor in model.image.state_dict().items() if name[:3] != "fc."}
    classifier = {"fc.weight": torch.zeros(1000, 256), "fc.bias": torch.zeros(1000)}  # of ImageNet: published, not used
    (directory / "image").mkdir()
    save_file(image | classifier, directory / "image/resnet.safetensors")
    pixels = {"size": {"height": image_size, "width": image_size}, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    (directory / "preprocessor_config.json").write_text(json.dumps(pixels))

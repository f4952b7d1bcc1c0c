"""Small CLIPs and a small BLIP with random weights, in the files that the hub has of the large ones."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.recipes.weights import TOKENIZERS

SIDE = 32  # pixels
# Four blocks, so that the last five layer groups are not all there are. The mean of the patches learns faster from
# random weights than a class token does.
_VISION = {"image_size": SIDE, "patch_size": 8, "width": 96, "layers": 4, "head_width": 32}
_VISION |= {"pool_type": "avg", "no_ln_pre": True, "pos_embed_type": "sin_cos_2d"}
_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
_XLMR_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]  # in this order, as XLM-R numbers them


def save_clip(directory: Path, seed: int) -> None:
    """A CLIP of open_clip with its own BPE vocabulary: `open_clip_config.json` and safetensors."""
    _save_open_clip(directory, {"embed_dim": 128, "vision_cfg": _VISION, "text_cfg": _TEXT}, seed)


def save_xlmr_clip(directory: Path, texts: Sequence[str], seed: int) -> None:
    """A CLIP whose text tower is XLM-R, with a unigram vocabulary learned from `texts`: XLM-R's own is too large."""
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig

    tokenizer = _unigram(texts)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )
    wrapped.save_pretrained(directory)
    XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=96,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=384,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    ).save_pretrained(directory)
    text = {"hf_model_name": "xlm-roberta-large", "hf_tokenizer_name": "xlm-roberta-large"}
    config = {
        "embed_dim": 128,
        "vision_cfg": _VISION,
        "text_cfg": {**text, "hf_pooler_type": "mean_pooler"},
    }
    _save_open_clip(directory, config, seed)


def save_blip(directory: Path, seed: int) -> None:
    """A BLIP of transformers with the vocabulary of bert-base-uncased, as transformers saves it."""
    from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, BlipImageProcessor

    # From the narrow range that is usual for large models, features of all texts would begin as one and the same.
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2, "initializer_range": 0.2}
    text = {"vocab_size": 30524, "max_position_embeddings": 512, "num_hidden_layers": 1, "encoder_hidden_size": 64}
    config = BlipConfig(
        image_text_hidden_size=128,
        vision_config=sizes | {"image_size": SIDE, "patch_size": 8, "num_hidden_layers": 2},
        text_config=sizes | text,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BlipForImageTextRetrieval(config).save_pretrained(directory)
    BertTokenizer.from_pretrained(TOKENIZERS / "bert_base_uncased").save_pretrained(directory)
    shutil.copy(TOKENIZERS / "bert_base_uncased/vocab.txt", directory)
    BlipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(directory)


def _save_open_clip(directory: Path, config: dict[str, Any], seed: int) -> None:
    """Build the model through open_clip alone and write what it pushes to the hub."""
    import open_clip
    from open_clip.push_to_hf_hub import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME, save_config_for_hf

    directory.mkdir(parents=True, exist_ok=True)
    (directory / HF_CONFIG_NAME).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    text = config["text_cfg"]
    own_files = {"text_cfg": {**text, "hf_model_name": str(directory), "hf_model_pretrained": False}}
    logging.disable(logging.WARNING)  # it warns of random weights, which are meant
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.create_model(
            f"local-dir:{directory}", load_weights=False, **(own_files if "hf_model_name" in text else {})
        )
    logging.disable(logging.NOTSET)
    save_config_for_hf(model, directory / HF_CONFIG_NAME, config)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, directory / HF_SAFE_WEIGHTS_NAME
    )


def _unigram(texts: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = [*_XLMR_SPECIAL, "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=500, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")],
    )
    return tokenizer

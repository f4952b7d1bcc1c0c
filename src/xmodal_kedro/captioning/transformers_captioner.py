"""Captioning models of transformers behind the interface of all captioners, decoded and mixed like any other.

BLIP (arXiv 2201.12086), GIT (arXiv 2205.14100) and encoder-decoders (`VisionEncoderDecoderModel`: a ViT, DeiT or Swin
with a BERT, RoBERTa or GPT-2) are asked token by token, with the library's cache: greedy and beam search give what its
`generate` gives. Models with the same tokenizer can be mixed. A BLIP and a ViT with GPT-2 cannot, their ids mean
different things, and neither can be mixed with a captioner of single characters. Models that want image tokens in a
prompt, such as BLIP-2, are not captioned with here.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BlipForConditionalGeneration,
    GitForCausalLM,
    VisionEncoderDecoderModel,
)

from xmodal_kedro.data.manifest import BrokenArtifactError
from xmodal_kedro.models.transform import ImageTransform
from xmodal_kedro.models.weights import MissingWeightsError, Published, library_errors

_BETWEEN_CHINESE = re.compile(r"(?<=[\u3000-\u9fff\uff00-\uffef]) (?=[\u3000-\u9fff\uff00-\uffef])")


COUNTING_FROM_PADDING = ("roberta", "xlm-roberta", "camembert")  # their first token is at position pad_token_id + 1


class TransformersVocabulary:
    """The tokens of a tokenizer of transformers."""

    def __init__(self, tokenizer: Any, start: int, end: int, pad: int) -> None:
        """Wrap a tokenizer; a model knows best what begins and ends its captions."""
        self.start, self.end, self.pad = start, end, pad
        by_token = tokenizer.get_vocab()
        self.tokens = [""] * (max(by_token.values(), default=-1) + 1)
        for token, index in by_token.items():
            self.tokens[index] = token
        self._tokenizer = tokenizer

    def text(self, ids: Sequence[int]) -> str:
        """What a person reads; the blanks that BERT puts between Chinese characters are taken out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return _BETWEEN_CHINESE.sub("", text.strip())


@dataclass
class _State:
    image: Tensor  # [B, ...], what the model has made of it
    length: int = 0  # tokens so far
    cache: Any = None  # the library's: keys and values of all tokens so far, and of the image


class TransformersCaptioner(nn.Module, Published, ABC):
    """A captioner around a model of transformers; images are pixels [B, 3, H, W] from `image_transform`."""

    library: ClassVar[Any]  # the class of transformers
    library_files = (
        ("config.json",),
        ("preprocessor_config.json", "processor_config.json"),
        ("tokenizer.json", "vocab.txt", "vocab.json"),
        ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    )

    def __init__(self, model: Any, vocabulary: TransformersVocabulary, transform: ImageTransform) -> None:
        """Wrap a model of the family with its tokens and its input."""
        super().__init__()
        self.model, self.vocabulary, self.image_transform = model, vocabulary, transform

    @staticmethod
    @abstractmethod
    def parts(config: Any) -> tuple[Any, Any]:
        """The configurations of what looks at images and of what writes."""

    @staticmethod
    @abstractmethod
    def special_ids(model: Any) -> tuple[Any, Any, Any]:
        """What the library's `generate` takes for the ids of start, end and padding."""

    @abstractmethod
    def look(self, images: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] to what every step needs of them [B, ...]."""

    @abstractmethod
    def read(self, ids: Tensor, state: _State) -> Any:
        """One more token of each row [B, 1] to the library's output."""

    def begin(self, images: Tensor, steps: int) -> _State:
        """Pixels [B, 3, H, W] to a state of B rows.

        Raises:
            ValueError: The model has fewer positions than `steps`.
        """
        _, writer = self.parts(self.model.config)
        positions = getattr(writer, "max_position_embeddings", steps)
        if writer.model_type in COUNTING_FROM_PADDING:
            positions -= writer.pad_token_id + 1
        if steps > positions:
            raise ValueError(f"max_steps is {steps}: this captioner writes {positions} tokens at most")
        return _State(self.look(images))

    def step(self, ids: Tensor, state: _State) -> tuple[Tensor, _State]:
        """Append ids [B]; logits [B, V] of what follows."""
        output = self.read(ids[:, None], state)
        return output.logits[:, -1], _State(state.image, state.length + 1, output.past_key_values)

    def select(self, state: _State, rows: Tensor) -> _State:
        """Rows [R] of a state, which is used up."""
        if state.cache is not None:
            state.cache.reorder_cache(rows)  # any rows, as many as are wanted
        return _State(state.image.index_select(0, rows), state.length, state.cache)


class BlipCaptioner(TransformersCaptioner):
    """A ViT, and a BERT that looks at its states; begins without a prompt."""

    library = BlipForConditionalGeneration

    @staticmethod
    def parts(config: Any) -> tuple[Any, Any]:
        """The configurations of what looks at images and of what writes."""
        return config.vision_config, config.text_config

    @staticmethod
    def special_ids(model: Any) -> tuple[Any, Any, Any]:
        """Ids of [DEC], [SEP] and [PAD]."""
        text = model.config.text_config
        return text.bos_token_id, text.sep_token_id, text.pad_token_id

    def look(self, images: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] to states [B, T, C]."""
        states: Tensor = self.model.vision_model(pixel_values=images).last_hidden_state
        return states

    def read(self, ids: Tensor, state: _State) -> Any:
        """One more token of each row [B, 1] to the library's output."""
        return self.model.text_decoder(
            input_ids=ids,
            encoder_hidden_states=state.image,
            past_key_values=state.cache,
            use_cache=True,
            is_decoder=True,
        )


class EncoderDecoderCaptioner(TransformersCaptioner):
    """Any image encoder, and any language model with cross-attention to its states."""

    library = VisionEncoderDecoderModel

    @staticmethod
    def parts(config: Any) -> tuple[Any, Any]:
        """The configurations of what looks at images and of what writes."""
        return config.encoder, config.decoder

    @staticmethod
    def special_ids(model: Any) -> tuple[Any, Any, Any]:
        """Those of generation_config.json, or of config.json where there is none."""
        ids = model.generation_config
        start = ids.bos_token_id if ids.decoder_start_token_id is None else ids.decoder_start_token_id
        return start, ids.eos_token_id, ids.pad_token_id

    def look(self, images: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] to states [B, T, C] as wide as the decoder wants them."""
        states: Tensor = self.model.encoder(pixel_values=images).last_hidden_state
        projection = getattr(self.model, "enc_to_dec_proj", None)  # there where the widths differ
        return states if projection is None else projection(states)

    def read(self, ids: Tensor, state: _State) -> Any:
        """One more token of each row [B, 1] to the library's output."""
        return self.model.decoder(
            input_ids=ids, encoder_hidden_states=state.image, past_key_values=state.cache, use_cache=True
        )


class GitCaptioner(TransformersCaptioner):
    """One transformer that reads patches and tokens as one sequence."""

    library = GitForCausalLM

    @staticmethod
    def parts(config: Any) -> tuple[Any, Any]:
        """The configurations of what looks at images and of what writes."""
        return config.vision_config, config

    @staticmethod
    def special_ids(model: Any) -> tuple[Any, Any, Any]:
        """Those of generation_config.json, or of config.json where there is none."""
        ids = model.generation_config
        return ids.bos_token_id, ids.eos_token_id, ids.pad_token_id

    def look(self, images: Tensor) -> Tensor:
        """Pixels as they are: the first token is read together with them."""
        return images

    def read(self, ids: Tensor, state: _State) -> Any:
        """One more token of each row [B, 1] to the library's output."""
        if state.cache is None:
            return self.model(input_ids=ids, pixel_values=state.image, use_cache=True)
        # Positions count tokens; the library would count what is in its cache, patches included.
        position = torch.full_like(ids[:1], state.length)
        return self.model(input_ids=ids, position_ids=position, past_key_values=state.cache, use_cache=True)


FAMILIES: dict[str, type[TransformersCaptioner]] = {
    "blip": BlipCaptioner,
    "git": GitCaptioner,
    "vision-encoder-decoder": EncoderDecoderCaptioner,
}


def load_captioner(directory: Path) -> TransformersCaptioner:
    """Open a directory as transformers writes it: model, tokenizer and image processor; no look at the network.

    Raises:
        MissingWeightsError: Naming what is wanted where.
        BrokenArtifactError: The files are there, and are damaged, those of another model or not complete.
        ValueError: The model is no captioner of a family that is known here.
    """
    if not directory.is_dir():
        raise MissingWeightsError(f"captioner: there is no directory {directory.absolute()}")
    if missing := TransformersCaptioner.missing_files(directory):
        raise MissingWeightsError(
            f"captioner: {missing}. Put there what model, tokenizer and image processor write with save_pretrained"
        )
    kind = _opened(directory, AutoConfig).model_type
    if kind not in FAMILIES:
        raise ValueError(
            f"captioner: {directory.absolute()} holds a model of the type '{kind}', and captions come from the types "
            f"{', '.join(FAMILIES)}: name a directory with one of them"
        )
    family = FAMILIES[kind]
    # The library would compute in the type that the weights were saved in, whatever the pixels come in.
    model, loading = _opened(directory, family.library, output_loading_info=True, dtype=torch.float32)
    # Poolers are no part of captioning, and some published models come without.
    if absent := sorted(name for name in loading["missing_keys"] if "pooler" not in name):
        raise BrokenArtifactError(
            f"captioner: the weights in {directory.absolute()} lack {len(absent)} tensors of the model that its "
            f"config.json describes, such as {', '.join(absent[:3])}. Put the whole files of one captioning model there"
        )
    start, end, pad = (one[0] if isinstance(one, list) and len(one) == 1 else one for one in family.special_ids(model))
    for what, value in (("begins (decoder_start_token_id)", start), ("ends (eos_token_id)", end)):
        if not isinstance(value, int):
            raise BrokenArtifactError(
                f"captioner: {directory.absolute()} does not say which one token {what} a caption: {value}. Set it in "
                "generation_config.json"
            )
    vocabulary = TransformersVocabulary(_opened(directory, AutoTokenizer), start, end, end if pad is None else pad)
    vision, _ = family.parts(model.config)
    size = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
    processor = _opened(directory, AutoImageProcessor)
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if processor.do_normalize:
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    return family(model.eval(), vocabulary, ImageTransform(size, mean, std))


def _opened(directory: Path, library: Any, **options: Any) -> Any:
    """What a class of transformers makes of a directory."""

    def broken(what: str) -> BrokenArtifactError:
        return BrokenArtifactError(
            f"captioner: {directory.absolute()} holds no captioning model that transformers can open ({what}). Put the "
            "whole files of one model there"
        )

    with library_errors(broken):
        return library.from_pretrained(directory, local_files_only=True, **options)

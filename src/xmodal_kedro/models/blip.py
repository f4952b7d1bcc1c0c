"""BLIP for retrieval (arXiv 2201.12086) through transformers: a ViT, a BERT that can look at the image, our training.

Without the image BERT's [CLS] state is the text feature; with it, and with [ENC] for [CLS], it says whether text and
image belong together. Transformers has neither the training (alignment with momentum features, matching with hard
negatives) nor the [ENC] token nor the temperature; they are here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, BlipImageProcessor

from xmodal_kedro.config.member import MomentumConfig, TrainConfig
from xmodal_kedro.data.manifest import BrokenArtifactError
from xmodal_kedro.losses.gather import gathered, rank
from xmodal_kedro.losses.matching import draw_negatives, gathered_tokens, matching_loss, padded
from xmodal_kedro.losses.momentum import FeatureQueue, alignment_loss, alpha_at, equal_keys, move_average
from xmodal_kedro.models.architecture import check_sizes, transformers_config
from xmodal_kedro.models.backbone import (
    WEIGHTS,
    ArchitectureError,
    Backbone,
    Batch,
    Tokens,
    Tower,
    TrainState,
    register,
    seeded,
    trimmed,
)
from xmodal_kedro.models.blip_matching import first_states, keys_and_values
from xmodal_kedro.models.blip_weights import POSITIONS, PUBLISHED, config_of, read_weights, resize_positions
from xmodal_kedro.models.vocabulary import vocabulary_of, write_vocabulary

TEMPERATURE = 0.07  # where it starts; it stays in the range that BLIP gives it
COLDEST, HOTTEST = 0.001, 0.5
ADDED: dict[str, Any] = {
    "bos_token": "[DEC]",
    "additional_special_tokens": ["[ENC]"],
}  # to BERT's vocabulary, in this order


@dataclass
class _Average:
    """What training with momentum has besides the model; never saved."""

    model: BlipForImageTextRetrieval  # a moving average of the trained one, as far as features need it
    config: MomentumConfig
    seed: int
    queue: FeatureQueue | None = None  # made at the first step, which knows how long an epoch is


@register("blip")
class Blip(Backbone):
    """`architecture`: `image_text_hidden_size`, `vision_config` and `text_config` as BlipConfig has them, `vocabulary`.

    The last is a vocab.txt of BERT; without it one is learned from the train texts, of `text_config.vocab_size` tokens
    at most. `weights`: a directory in the layout of the hub, or one with a published `.pth` and a vocab.txt. The image
    size is that of its config.json, and the position embedding is interpolated where the weights had another one;
    without config.json the sizes are those of the weights.

    With `train.loss.momentum` the loss is BLIP's: alignment with momentum features, and matching. Without, alignment is
    the contrastive loss over the batch. The published stochastic depth of ViT-L is not in transformers.
    """

    matches = True
    dual = False
    library_weights = "model.safetensors"
    library_files = (
        ("config.json", *PUBLISHED),
        ("vocab.txt", "tokenizer.json"),
        (WEIGHTS, library_weights, "pytorch_model.bin", *PUBLISHED),
    )

    def __init__(
        self, model: BlipForImageTextRetrieval, tokenizer: BertTokenizer, processor: BlipImageProcessor
    ) -> None:
        """Wrap a model of transformers with its tokenizer and image processor."""
        config: Any = model.config
        model.register_parameter("logit_scale", nn.Parameter(torch.tensor(-math.log(TEMPERATURE))))
        side = config.vision_config.image_size
        super().__init__(
            model, config.image_text_hidden_size, side, tuple(processor.image_mean), tuple(processor.image_std)
        )
        self.tokenizer = tokenizer
        self.matching_token: Any = tokenizer.convert_tokens_to_ids("[ENC]")
        self.context = config.text_config.max_position_embeddings
        self.average: _Average | None = None

    def encode_image(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D], not normalised."""
        return _project_image(self.model, _image_states(self.model, pixels))

    def encode_text(self, tokens: Tokens) -> Tensor:
        """Tokens [B, L] -> [B, D], not normalised; padding is masked, so trimming it changes nothing."""
        return _text_features(self.model, tokens)

    def image_states(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, T, C]: [CLS] and the patches."""
        return _image_states(self.model, pixels)

    def match(self, image_states: Tensor, tokens: Tokens) -> Tensor:
        """Logits [B] that text i is right for image i, from image states [B, T, C] and tokens [B, L]."""
        if not len(image_states):
            return image_states.new_zeros(0)
        return self._match(image_states, trimmed(tokens))[:, 1]

    def image_memory(self, image_states: Tensor) -> tuple[Tensor, ...]:
        """Keys and values [B, T, H] of every layer that looks at the image, from states [B, T, C]."""
        model: Any = self.model
        return keys_and_values(model.text_encoder, image_states)

    def match_memory(self, memory: tuple[Tensor, ...], images: Tensor, tokens: Tokens) -> Tensor:
        """Logits [P] that text i is right for image `images[i]` of a memory; the same as `match`, without dropout."""
        if not len(images):
            return memory[0].new_zeros(0)
        model: Any = self.model
        states = first_states(model.text_encoder, memory, images, self._asking(tokens), tokens["attention_mask"])
        logits: Tensor = model.itm_head(states)
        return logits[:, 1]

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Texts to tokens [B, L]; [CLS] is first, `match` replaces it."""
        tokens = self.tokenizer(
            list(texts) or [""],  # it cannot tokenise nothing
            max_length=self.context,
            truncation=True,
            padding=True,
            return_tensors="pt",
        )
        return {name: tokens[name][: len(texts)].long() for name in ("input_ids", "attention_mask")}

    def set_grad_checkpointing(self) -> None:
        """As in transformers, for both towers."""
        model: Any = self.model
        model.activation_checkpointing_enable()
        model.disable_input_require_grads()  # else backward would run through a frozen tower

    def layer_groups(self, tower: Tower) -> list[list[nn.Parameter]]:
        """Parameters of a tower: embeddings, blocks, heads; cross-attention and matching head belong to the text."""
        model: Any = self.model
        if tower == "image":
            first, blocks = model.vision_model.embeddings, model.vision_model.encoder.layers
            last, heads = [blocks[-1], model.vision_model.post_layernorm], [model.vision_proj]
        else:
            first, blocks = model.text_encoder.embeddings, model.text_encoder.encoder.layer
            last, heads = [blocks[-1]], [model.text_proj, model.itm_head]
        groups = [[first], *([block] for block in blocks[:-1]), last, heads]
        return [[parameter for module in group for parameter in module.parameters()] for group in groups]

    def begin_training(self, config: TrainConfig) -> None:
        """Make the moving average, a copy of the towers without what matching alone needs."""
        self.average = None
        if config.loss.momentum is None:
            return
        average: Any = copy.deepcopy(self.model)
        for layer in average.text_encoder.encoder.layer:
            del layer.crossattention
        del average.itm_head, average.logit_scale
        average.requires_grad_(False).activation_checkpointing_disable()
        self.average = _Average(average, config.loss.momentum, config.seed)

    def training_tensors(self) -> dict[str, Tensor]:
        """The moving average and, after the first step, the queue."""
        if self.average is None:
            return {}
        model, queue = self.average.model, self.average.queue
        tensors = {f"average.{name}": tensor for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        if queue is not None:
            tensors |= {"queue.image": queue.image, "queue.text": queue.text, "queue.keys": queue.keys}
            tensors["queue.position"] = torch.tensor(queue.position)
        return tensors

    @torch.no_grad()
    def resume_training(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the moving average and the queue back."""
        if self.average is None:
            return
        model, device = self.average.model, self.logit_scale.device
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            tensor.copy_(tensors[f"average.{name}"])
        if "queue.keys" in tensors:
            image, text, keys = (tensors[f"queue.{part}"].to(device) for part in ("image", "text", "keys"))
            self.average.queue = FeatureQueue(image, text, keys, int(tensors["queue.position"]))

    def training_step(self, batch: Batch, state: TrainState) -> dict[str, Tensor]:
        """The sum of alignment (`ita`) and matching (`itm`), over all processes."""
        if (state.loss.momentum is None) != (self.average is None):
            raise RuntimeError("training_step wants begin_training called with the same loss before it")
        states = _image_states(self.model, batch.pixels)
        image = F.normalize(_project_image(self.model, states).float(), dim=-1)
        text = F.normalize(_text_features(self.model, batch.tokens).float(), dim=-1)
        keys = _keys(batch, state)
        if self.average is None:
            ita = self.feature_losses(image, text, keys, state)["loss"]
            everywhere = True
        else:
            ita = self._align(self.average, batch, image, text, keys, state)
            everywhere = self.average.config.negatives == "all"
        itm = self._tell_apart(states, batch.tokens, image.detach(), text.detach(), keys, everywhere)
        return {"loss": ita + itm, "ita": ita.detach(), "itm": itm.detach()}

    def after_step(self) -> None:
        """Keep the temperature in its range."""
        with torch.no_grad():
            self.logit_scale.clamp_(-math.log(HOTTEST), -math.log(COLDEST))

    def _align(
        self, average: _Average, batch: Batch, image: Tensor, text: Tensor, keys: Tensor, state: TrainState
    ) -> Tensor:
        """Move the average on, and align with its features of this batch and of the queue."""
        model, config = average.model, average.config
        trained, modules = dict(self.model.named_parameters()), dict(self.model.named_modules())
        names = [name for name, _ in model.named_parameters()]
        move_average(model.parameters(), [trained[name] for name in names], config.momentum)
        for name, module in model.named_modules():  # dropout where the trained model has it
            module.training = modules[name].training
        with torch.no_grad():
            momentum = (
                F.normalize(_project_image(model, _image_states(model, batch.pixels)).float(), dim=-1),
                F.normalize(_text_features(model, batch.tokens).float(), dim=-1),
            )
        entering = [gathered(rows) for rows in (*momentum, keys)]
        if average.queue is None:
            size = min(config.queue_size, state.steps_per_epoch * len(entering[2]))
            average.queue = FeatureQueue.random(size, self.embed_dim, average.seed, keys.device)
        queue = average.queue
        candidates = torch.cat([entering[0], queue.image]), torch.cat([entering[1], queue.text])
        targets = equal_keys(keys, torch.cat([entering[2], queue.keys]))
        alpha = alpha_at(state.step, state.steps_per_epoch, config)
        loss = alignment_loss(image, text, momentum, candidates, self.logit_scale, targets, alpha)
        queue.push(entering[0], entering[1], entering[2])
        return loss

    def _tell_apart(
        self, states: Tensor, tokens: Tokens, image: Tensor, text: Tensor, keys: Tensor, everywhere: bool
    ) -> Tensor:
        """Tell the pairs from a hard negative image per text and a hard negative text per image."""
        pool = (states, tokens, image, text, keys)
        if everywhere:
            features = gathered(image), gathered(text), gathered(keys)
            pool = (gathered(states, grad=True), gathered_tokens(tokens), *features)
        all_states, all_tokens, all_images, all_texts, all_keys = pool
        same = keys[:, None] == all_keys[None, :]
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            factor = self.logit_scale.float().exp()
            images, has_image = draw_negatives(factor * text @ all_images.T, same)
            texts, has_text = draw_negatives(factor * image @ all_texts.T, same)
        own = padded(tokens, all_tokens["input_ids"].shape[1])
        shown = {name: torch.cat([own[name], own[name], all_tokens[name][texts]]) for name in own}
        logits = self._match(torch.cat([states, all_states[images], states]), shown)
        return matching_loss(logits, has_image, has_text)

    def _match(self, image_states: Tensor, tokens: Tokens) -> Tensor:
        """Logits [B, 2] of (wrong, right)."""
        model: Any = self.model
        ids = self._asking(tokens)
        output = model.text_encoder(ids, tokens["attention_mask"], encoder_hidden_states=image_states)
        logits: Tensor = model.itm_head(output.last_hidden_state[:, 0])
        return logits

    def _asking(self, tokens: Tokens) -> Tensor:
        """Ids [B, L] with [ENC] for [CLS]."""
        ids = tokens["input_ids"].clone()
        ids[:, 0] = self.matching_token
        return ids

    @classmethod
    def from_config(cls, architecture: Mapping[str, object], seed: int, texts: Sequence[str] = ()) -> Self:
        """Build a model with random weights, with the vocabulary of a file or of `texts`."""
        sizes: dict[str, Any] = dict(architecture)
        file = sizes.pop("vocabulary", None)
        check_sizes(BlipConfig, sizes)
        text = sizes["text_config"] = dict(sizes.get("text_config", {}))
        # Transformers would draw the weights of the image tower from a range of 1e-10: they would never learn.
        sizes["vision_config"] = {"initializer_range": 0.02, **sizes.get("vision_config", {})}
        vocabulary = vocabulary_of(file, texts, text.get("vocab_size", 30524) - 2)
        tokenizer = BertTokenizer({token: index for index, token in enumerate(vocabulary)}, do_lower_case=True)
        tokenizer.add_special_tokens(ADDED)
        text |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        text |= {"bos_token_id": tokenizer.bos_token_id, "sep_token_id": tokenizer.sep_token_id}
        config: Any = transformers_config(BlipConfig, sizes)
        if not isinstance(config.vision_config.image_size, int):
            raise ArchitectureError(
                "backbone.architecture.vision_config.image_size must be one number: images are square"
            )
        with seeded(seed):
            return cls(BlipForImageTextRetrieval(config), tokenizer, BlipImageProcessor())

    @classmethod
    def from_library(cls, directory: Path, *, weights: bool) -> Self:
        """Open a directory of transformers, or of published weights with a vocab.txt."""
        tensors, file = {}, directory / "config.json"
        if weights:
            file = next(path for name in cls.library_files[2] if (path := directory / name).is_file())
            tensors = read_weights(file)
        if (directory / "config.json").is_file():
            config: Any = BlipConfig.from_pretrained(directory)
        else:
            config = config_of(tensors, file)
        tokenizer = BertTokenizer.from_pretrained(directory, local_files_only=True)
        tokenizer.add_special_tokens(ADDED)
        if (known := config.text_config.vocab_size) < len(tokenizer):
            raise BrokenArtifactError(
                f"{directory}: the vocabulary has {len(tokenizer)} tokens with [DEC] and [ENC], the model embeds only "
                f"{known}. Put the vocab.txt of the model there"
            )
        processor = BlipImageProcessor()
        if (directory / "preprocessor_config.json").is_file():
            processor = BlipImageProcessor.from_pretrained(directory, local_files_only=True)
        backbone = cls(BlipForImageTextRetrieval(config), tokenizer, processor)
        if weights:
            backbone._fill(tensors, file)
        return backbone

    def _fill(self, tensors: dict[str, Tensor], file: Path) -> None:
        """Take the weights of a library; their image size may be another one, and the temperature may be missing."""
        wanted = self.model.state_dict()
        given = {"logit_scale": wanted["logit_scale"], **tensors}
        if POSITIONS in given:
            given[POSITIONS] = resize_positions(given[POSITIONS], wanted[POSITIONS].shape[1])
        left, right = ({name: tensor.shape for name, tensor in side.items()} for side in (wanted, given))
        if wrong := sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name)):
            raise BrokenArtifactError(
                f"{file} is not of the model that config.json describes: {len(wrong)} tensors are missing, too many or "
                f"of another shape, such as {', '.join(wrong[:3])}. Put the config.json of these weights beside them."
            )
        self.model.load_state_dict(given)

    def save_settings(self, directory: Path) -> None:
        """Write config.json, the tokenizer with its vocab.txt, and preprocessor_config.json."""
        model: Any = self.model
        model.config.save_pretrained(directory)
        write_vocabulary(self.tokenizer, directory)
        size = {"height": self.image_size, "width": self.image_size}
        BlipImageProcessor(size=size, image_mean=list(self.mean), image_std=list(self.std)).save_pretrained(directory)


def _image_states(model: Any, pixels: Tensor) -> Tensor:
    states: Tensor = model.vision_model(pixels).last_hidden_state
    return states


def _project_image(model: Any, states: Tensor) -> Tensor:
    features: Tensor = model.vision_proj(states[:, 0])
    return features


def _text_features(model: Any, tokens: Tokens) -> Tensor:
    states = model.text_encoder(tokens["input_ids"], tokens["attention_mask"]).last_hidden_state
    features: Tensor = model.text_proj(states[:, 0])
    return features


def _keys(batch: Batch, state: TrainState) -> Tensor:
    """Keys [B]; without any, each pair of each step has its own."""
    if batch.keys is not None:
        return batch.keys
    size = len(batch.pixels)
    return (state.step << 32) + rank() * size + torch.arange(size, device=batch.pixels.device)

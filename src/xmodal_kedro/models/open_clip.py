"""open_clip models: any of its configs (ViT, ResNet or timm image tower; CLIP or transformers text tower).

Captions are trimmed to the longest of their batch wherever that changes nothing: open_clip itself pads all to the full
context, which costs a multiple of the time on short captions.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import open_clip
import torch
from open_clip import CLIPTextCfg, CLIPVisionCfg
from open_clip.hf_configs import arch_dict
from open_clip.hf_model import HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import HFTokenizer
from open_clip.transformer import text_global_pool
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoTokenizer

from xmodal_kedro.models.backbone import WEIGHTS, ArchitectureError, Backbone, Tokens, Tower, register, seeded

CONFIG = "open_clip_config.json"


@register("open_clip")
class OpenClip(Backbone):
    """`architecture`: `{model_name: ViT-B-32}` for a config that open_clip ships, or such a config itself."""

    library_weights = "open_clip_model.safetensors"
    library_files = (
        (CONFIG,),
        (WEIGHTS, library_weights, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
    )

    def __init__(self, model: nn.Module, tokenizer: Any, settings: Mapping[str, Any]) -> None:
        """Wrap a model of open_clip with the tokenizer and the `open_clip_config.json` that belong to it."""
        visual: Any = model.visual
        height, width = (visual.image_size,) * 2 if isinstance(visual.image_size, int) else visual.image_size
        if height != width:
            raise ArchitectureError(f"vision_cfg.image_size is {height} x {width}: images are packed as squares")
        super().__init__(model, settings["model_cfg"]["embed_dim"], height, visual.image_mean, visual.image_std)
        self.tokenizer = tokenizer
        self.settings = settings
        text = self._text
        self.pool = "" if self._hf else getattr(text, "text_pool_type", None) or text.pool_type
        # Behind a causal mask nothing that follows the pooled token reaches it, so what follows may be left out.
        causal = not self._hf and text.attn_mask is not None and getattr(text, "cls_emb", None) is None
        self.trims = self._hf or (causal and self.pool in ("argmax", "eos"))
        self.context = self.full_context = tokenizer.context_length
        with torch.device("cpu"):  # on the meta device tokens have no values
            self.padding = int(tokenizer([""])[0, -1])  # the tokenizers of open_clip have no common name for it

    @property
    def _text(self) -> Any:
        return getattr(self.model, "text", self.model)  # `CLIP` itself holds the parts of its text tower

    @property
    def _hf(self) -> bool:
        return isinstance(self._text, HFTextEncoder)

    @property
    def _eos(self) -> int:
        return self._text.text_eos_id if isinstance(self._text, open_clip.CLIP) else self._text.eos_id

    def encode_image(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D], not normalised."""
        features: Tensor = self.model.encode_image(pixels, normalize=False)  # type: ignore[operator]
        return features

    def encode_text(self, tokens: Tokens) -> Tensor:
        """Tokens [B, L] -> [B, D], not normalised."""
        ids = tokens["input_ids"]
        if self._hf or not self.trims:
            features: Tensor = self.model.encode_text(ids, normalize=False)  # type: ignore[operator]
            return features
        # open_clip adds the whole positional table and mask; these are its own steps with both cut to the batch.
        text, length = self._text, ids.shape[1]
        dtype = text.transformer.get_cast_dtype()
        x = text.token_embedding(ids).to(dtype) + text.positional_embedding[:length].to(dtype)
        x = text.transformer(x, attn_mask=text.attn_mask[:length, :length])
        x = text_global_pool(text.ln_final(x), ids, self.pool, eos_token_id=self._eos)
        if text.text_projection is None:
            return x
        return text.text_projection(x) if isinstance(text.text_projection, nn.Linear) else x @ text.text_projection

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Texts to tokens [B, L], cut at `context`."""
        ids: Tensor = torch.zeros(0, 1, dtype=torch.long)
        if texts:
            ids = self.tokenizer(list(texts), context_length=self.context)
        if not self.trims:
            # Such a text tower takes nothing shorter.
            ids = F.pad(ids, (0, self.full_context - ids.shape[1]), value=self.padding)
            lengths = torch.full((len(ids),), ids.shape[1])
        elif self._hf:
            lengths = (ids != self._text.config.pad_token_id).sum(1)
        else:
            end: Tensor = ids.eq(self._eos) if self.pool == "eos" else ids
            lengths = end.int().argmax(1) + 1
        longest = int(lengths.max()) if len(ids) else 0
        mask = torch.arange(longest) < lengths[:, None]
        return {"input_ids": ids[:, :longest], "attention_mask": mask.long()}

    def set_grad_checkpointing(self) -> None:
        """As in open_clip, for both towers.

        Raises:
            ValueError: The image tower is one whose library cannot do it.
        """
        visual: Any = self.model.visual
        if isinstance(visual, ModifiedResNet):  # open_clip passes over it in silence
            super().set_grad_checkpointing()
        if isinstance(visual, TimmModel):
            try:
                visual.trunk.set_grad_checkpointing(True)
            except (AssertionError, NotImplementedError, AttributeError) as error:  # open_clip logs it and goes on
                raise ValueError(f"backbone.grad_checkpointing: this timm tower cannot do it ({error})") from error
        visual.set_grad_checkpointing(True)
        if self._hf:
            self._text.transformer.activation_checkpointing_enable()
            self._text.transformer.disable_input_require_grads()  # else backward would run through a frozen tower
        else:
            self._text.transformer.grad_checkpointing = True

    def attention_layers(self, tower: Tower) -> int:
        """Self-attention layers of a tower as its configuration counts them, 0 where it has none."""
        visual: Any = self.model.visual
        if tower == "image":
            if isinstance(visual, TimmModel):
                return len(getattr(visual.trunk, "blocks", ()))
            layers = self.settings["model_cfg"]["vision_cfg"].get("layers", CLIPVisionCfg.layers)
            return layers if isinstance(layers, int) else 0
        if self._hf:
            return int(self._text.config.num_hidden_layers)
        return int(self.settings["model_cfg"]["text_cfg"].get("layers", CLIPTextCfg.layers))

    def layer_groups(self, tower: Tower) -> list[list[nn.Parameter]]:
        """Parameters of a tower from input to output, grouped as open_clip's own locks group them."""
        groups = self._image_parts() if tower == "image" else self._text_parts()
        named = [[p for part in group for p in _parameters(part)] for group in groups]
        return [group for group in named if group]

    @classmethod
    def from_config(cls, architecture: Mapping[str, object], seed: int, texts: Sequence[str] = ()) -> Self:
        """Build a model with random weights; `texts` are not needed, open_clip ships its vocabulary."""
        config = dict(architecture)
        if "model_name" in config:
            name = str(config.pop("model_name"))
            known = open_clip.get_model_config(name)
            if config or known is None:
                close = difflib.get_close_matches(name, open_clip.list_models(), 3)
                raise ArchitectureError(
                    f"backbone.architecture.model_name stands alone, so {sorted(config)} must go"
                    if config
                    else f"backbone.architecture.model_name: open_clip has no '{name}'; similar are {', '.join(close)}"
                )
            config = known
        if missing := {"embed_dim", "vision_cfg", "text_cfg"} - config.keys():
            raise ArchitectureError(f"backbone.architecture of open_clip wants model_name, or also {sorted(missing)}")
        with TemporaryDirectory() as folder:
            directory = Path(folder)
            _write_settings(directory, {"model_cfg": config, "preprocess_cfg": {}})
            text: Any = config["text_cfg"]
            if "hf_model_name" in text:
                AutoConfig.from_pretrained(text["hf_model_name"]).save_pretrained(directory)
            if "hf_tokenizer_name" in text:
                AutoTokenizer.from_pretrained(text["hf_tokenizer_name"]).save_pretrained(directory)
            try:
                with seeded(seed):
                    return cls.from_library(directory, weights=False)
            except (TypeError, RuntimeError, AssertionError) as error:  # of the constructors that take the config
                raise ArchitectureError(f"backbone.architecture is no model config of open_clip: {error}") from error

    @classmethod
    def from_library(cls, directory: Path, *, weights: bool) -> Self:
        """Open a directory through open_clip's `local-dir:` scheme."""
        settings = json.loads((directory / CONFIG).read_text())
        text = settings["model_cfg"]["text_cfg"]
        # A transformers text tower is described by files that lie in the directory too, never by a hub id.
        overrides = {"text_cfg": {**text, "hf_model_name": str(directory), "hf_model_pretrained": False}}
        with _quiet():
            model = open_clip.create_model(
                f"local-dir:{directory}",
                load_weights=weights,
                device=torch.get_default_device(),
                **(overrides if "hf_model_name" in text else {}),
            )
            tokenizer = open_clip.get_tokenizer(f"local-dir:{directory}")
        return cls(model, tokenizer, settings)

    def save_settings(self, directory: Path) -> None:
        """Write `open_clip_config.json`, and the files of a transformers text tower and tokenizer."""
        preprocess = {**self.settings["preprocess_cfg"], "mean": self.mean, "std": self.std}
        _write_settings(directory, {"model_cfg": self.settings["model_cfg"], "preprocess_cfg": preprocess})
        if self._hf:
            self._text.config.save_pretrained(directory)
        if isinstance(self.tokenizer, HFTokenizer):
            self.tokenizer.save_pretrained(directory)

    def _image_parts(self) -> list[list[Any]]:
        visual: Any = self.model.visual
        if isinstance(visual, TimmModel):
            by_layer = group_parameters(visual.trunk, visual.trunk.group_matcher())
            trunk = [[visual.trunk.get_parameter(name) for name in by_layer[layer]] for layer in sorted(by_layer)]
            return [*trunk, [visual.head]]
        if isinstance(visual, ModifiedResNet):
            stem = [visual.conv1, visual.bn1, visual.conv2, visual.bn2, visual.conv3, visual.bn3]
            layers = [visual.layer1, visual.layer2, visual.layer3, visual.layer4]
            return [stem, *([layer] for layer in layers), [visual.attnpool]]
        pooling = [
            part for part in (visual.attn_pool, getattr(visual, "attn_pool_contrastive", None)) if part is not None
        ]
        *blocks, last = visual.transformer.resblocks
        return [
            [visual.conv1, visual.class_embedding, visual.positional_embedding, visual.ln_pre],
            *([block] for block in blocks),
            [last, *pooling, visual.ln_post],
            [visual.proj] if visual.proj is not None else [],
        ]

    def _text_parts(self) -> list[list[Any]]:
        text = self._text
        if self._hf:
            names = arch_dict[text.config.model_type]["config_names"]
            embeddings = getattr(text.transformer, names.get("token_embeddings_attr", "embeddings"))
            layers = getattr(getattr(text.transformer, "encoder", text.transformer), names.get("layer_attr", "layer"))
            pooler = getattr(text.transformer, "pooler", None)
            head = [part for part in (pooler, text.proj) if part is not None]
            return [[embeddings], *([layer] for layer in layers), head]
        *blocks, last = text.transformer.resblocks
        class_token = getattr(text, "cls_emb", None)
        return [
            [text.token_embedding, text.positional_embedding, *([] if class_token is None else [class_token])],
            *([block] for block in blocks),
            [last, text.ln_final],
            [text.text_projection] if text.text_projection is not None else [],
        ]


def _parameters(part: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    return [part] if isinstance(part, nn.Parameter) else list(part.parameters())


def _write_settings(directory: Path, settings: Mapping[str, Any]) -> None:
    (directory / CONFIG).write_text(json.dumps(settings, indent=2))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip from warning, in the root logger, about random weights and about the name of our weight file."""

    def is_foreign(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or "open_clip" not in record.pathname

    root = logging.getLogger()
    root.addFilter(is_foreign)
    try:
        yield
    finally:
        root.removeFilter(is_foreign)

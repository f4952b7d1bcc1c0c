"""open_clip models: any of its configs (ViT, ResNet or timm image tower; CLIP or transformers text tower).

Captions are trimmed to the longest of their batch wherever that changes nothing: open_clip itself pads all to the full
context, which costs a multiple of the time on short captions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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

from xmodal_kedro.config.weights import weights_source
from xmodal_kedro.models.backbone import WEIGHTS, ArchitectureError, Backbone, Tokens, Tower, register, seeded
from xmodal_kedro.models.batch_norm import count_once
from xmodal_kedro.models.open_clip_files import (
    CONFIG,
    SUFFIXES,
    describes_text_tower,
    load_weights,
    missing_text_tower,
    model_config,
    quiet,
    weight_files,
    without_config,
    write_settings,
)
from xmodal_kedro.models.weights import MissingWeightsError, where_to_put


@register("open_clip")
class OpenClip(Backbone):
    """`architecture`: `{model_name: ViT-B-32}` for a config that open_clip ships, or such a config itself.

    `weights`: a directory with open_clip_config.json, a hub id, `ViT-B-32:laion2b_s34b_b79k` as open_clip lists them,
    or, together with `architecture: {model_name: ...}`, a weight file or a directory with one.
    """

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
            count_once(visual.trunk)
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
        return cls._random({"model_cfg": model_config(architecture), "preprocess_cfg": {}}, seed)

    @classmethod
    def from_pretrained(cls, weights: str | Path) -> Self:
        """Load a directory, a model of the hub, or `model:tag` as open_clip lists them.

        Raises:
            MissingWeightsError: Naming what is wanted where.
        """
        source = weights_source(str(weights))
        if source.kind == "tag":
            return cls._from_tag(source.model, source.tag)
        if source.kind == "file":
            raise MissingWeightsError(f"backbone.weights: {without_config(source.path)}")
        return super().from_pretrained(weights)

    @classmethod
    def missing_files(cls, directory: Path) -> str | None:
        """As every family; weights without a config may also be named by `architecture`."""
        if not (directory / CONFIG).is_file() and weight_files(directory):
            return without_config(directory)
        return super().missing_files(directory)

    @classmethod
    def from_published(cls, weights: str, architecture: Mapping[str, object]) -> Self:
        """Load a weight file, or a directory with one, into one of open_clip's own configs.

        Raises:
            ArchitectureError: `architecture` is more than a model_name, or the weights bring a config or do not fit.
            MissingWeightsError: There is no weight file, or more than one.
        """
        if set(architecture) != {"model_name"}:
            raise ArchitectureError(
                "backbone.architecture beside backbone.weights is {model_name: ...} alone, one of open_clip's configs"
            )
        source = weights_source(weights)
        if source.kind in ("hub", "tag") or (source.path / CONFIG).is_file():
            raise ArchitectureError(
                f"backbone.weights: '{weights}' brings its own architecture; set backbone.architecture to null"
            )
        files = [source.path] if source.kind == "file" else weight_files(source.path)
        if len(files) != 1:
            raise MissingWeightsError(
                f"backbone.weights: one weight file (*{', *'.join(SUFFIXES)}) is wanted in {source.path.absolute()}, "
                f"there are {len(files)}. Give the path of the file itself"
            )
        backbone = cls.from_config(architecture, seed=0)
        load_weights(backbone.model, files[0])
        return backbone

    @classmethod
    def _from_tag(cls, name: str, tag: str) -> Self:
        """As open_clip's `create_model(name, pretrained=tag)`."""
        config = model_config({"model_name": name})
        published: Any = open_clip.get_pretrained_cfg(name, tag)
        if not published:
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
            raise MissingWeightsError(f"backbone.weights: open_clip has no '{tag}' for {name}; it has {tags or 'none'}")
        try:
            file = open_clip.download_pretrained(published)
        except (OSError, RuntimeError) as error:
            names = f"{CONFIG}; open_clip_model.safetensors or open_clip_pytorch_model.bin"
            raise MissingWeightsError(
                f"backbone.weights: the weights of '{name}:{tag}' cannot be fetched. "
                f"{where_to_put(published['hf_hub'].strip('/'), names)}; without {CONFIG}, set "
                f"backbone.architecture to {{model_name: {name}}} too"
            ) from error
        config["quick_gelu"] = published.get("quick_gelu", False)  # open_clip warns where they differ, and goes on
        preprocess = {
            key: published[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in published
        }
        backbone = cls._random({"model_cfg": config, "preprocess_cfg": preprocess}, seed=0)
        load_weights(backbone.model, Path(file))
        return backbone

    @classmethod
    def _random(cls, settings: Mapping[str, Any], seed: int) -> Self:
        with TemporaryDirectory() as folder:
            directory = Path(folder)
            write_settings(directory, settings)
            text = settings["model_cfg"]["text_cfg"]
            try:
                if "hf_model_name" in text:
                    AutoConfig.from_pretrained(text["hf_model_name"]).save_pretrained(directory)
                if "hf_tokenizer_name" in text:
                    AutoTokenizer.from_pretrained(text["hf_tokenizer_name"]).save_pretrained(directory)
            except OSError as error:
                raise MissingWeightsError(missing_text_tower(text)) from error
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
        overrides = {}
        if "hf_model_name" in text:
            # The files of a transformers text tower lie in the directory too, unless it was published without them.
            tower = str(directory) if describes_text_tower(directory) else text["hf_model_name"]
            overrides = {"text_cfg": {**text, "hf_model_name": tower, "hf_model_pretrained": False}}
        with quiet():
            try:
                model = open_clip.create_model(
                    f"local-dir:{directory}", load_weights=False, device=torch.get_default_device(), **overrides
                )
                tokenizer = open_clip.get_tokenizer(f"local-dir:{directory}")
            except OSError as error:
                raise MissingWeightsError(missing_text_tower(text)) from error
        backbone = cls(model, tokenizer, settings)
        if weights:
            file = next(file for name in cls.library_files[-1] if (file := directory / name).is_file())
            load_weights(backbone.model, file)
        return backbone

    def save_settings(self, directory: Path) -> None:
        """Write `open_clip_config.json`, and the files of a transformers text tower and tokenizer."""
        preprocess = {**self.settings["preprocess_cfg"], "mean": self.mean, "std": self.std}
        write_settings(directory, {"model_cfg": self.settings["model_cfg"], "preprocess_cfg": preprocess})
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

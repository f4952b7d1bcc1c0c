"""LoRA (arXiv 2106.09685) on query, key and value of every self-attention of a tower: all of them, or an error.

A projection with a matrix of its own is adapted by peft. Where one matrix holds all three (open_clip's and timm's image
towers, BLIP's), peft would give them one A to share and adapt the output projection too; here each third gets an A and
a B of its own, so that the same config means the same in every family: W + alpha / rank * B A.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from xmodal_kedro.config.member import LoraConfig

if TYPE_CHECKING:
    from xmodal_kedro.models.backbone import Backbone, Tower

ADAPTER = "adapter"  # folder in a checkpoint
PROJECTIONS = ("query", "key", "value", "q_proj", "k_proj", "v_proj", "q", "k", "v")  # names of BERT, CLIP and T5
# Names of modules with one matrix for all three, and the matrix's.
FUSED = {"qkv": "weight", "queries_keys_values": "weight", "attn": "in_proj_weight"}
OTHERS = ("crossattention", "attn_pool", "attnpool", "attn_pool_contrastive")  # attention, but not of tokens to tokens


class LoraError(ValueError):
    """The adapters that a config asks for do not fit the model."""


class Target(NamedTuple):
    """A matrix that is adapted."""

    path: str  # of its module
    module: nn.Module
    matrix: str  # its name in the module
    blocks: int  # projections that it holds


class BlockLowRank(nn.Module):
    """A matrix [n * out, in] plus a low-rank update of each of its n blocks of rows."""

    def __init__(self, weight: Tensor, blocks: int, config: LoraConfig) -> None:
        """Initialise as the paper does: A at random, B zero, so that nothing changes at first."""
        super().__init__()
        rows, columns = weight.shape
        self.scale = config.alpha / config.rank
        self.lora_A = nn.Parameter(weight.new_empty(blocks, config.rank, columns))
        self.lora_B = nn.Parameter(weight.new_zeros(blocks, rows // blocks, config.rank))
        for block in self.lora_A:
            nn.init.kaiming_uniform_(block, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """[n * out, in] -> [n * out, in]."""
        return weight + self.scale * (self.lora_B @ self.lora_A).flatten(0, 1).to(weight.dtype)


def add_lora(backbone: Backbone, config: LoraConfig, seed: int = 0) -> dict[Tower, int]:
    """Add adapters to the chosen towers and freeze everything else, the temperature included.

    Args:
        backbone: Without adapters; changed in place.
        config: Rank, scale, dropout, and which towers.
        seed: Of the adapters.

    Returns:
        Adapted projections by tower: 3 for each of its self-attention layers.

    Raises:
        LoraError: In a chosen tower not every self-attention layer is found, or a fused matrix cannot have dropout.
    """
    towers: list[Tower] = ["image", "text"] if config.towers == "both" else [config.towers]
    found = {tower: list(_targets(backbone, tower)) for tower in towers}
    counts = {tower: sum(target.blocks for target in targets) for tower, targets in found.items()}
    for tower, count in counts.items():
        if not (layers := backbone.attention_layers(tower)):
            raise LoraError(
                f"backbone.lora.towers: the {tower} tower of this model has no self-attention to adapt. Leave it out."
            )
        if count != 3 * layers:
            raise LoraError(
                f"backbone.lora: {count} query, key and value projections are found in the {tower} tower, whose "
                f"{layers} layers have {3 * layers}. '{backbone.name}' cannot be adapted there."
            )
    targets = [target for tower in towers for target in found[tower]]
    if config.dropout and any(target.blocks > 1 for target in targets):
        raise LoraError(
            "backbone.lora.dropout must be 0 for this model: query, key and value share one matrix, and its update has "
            "no input of its own that could be dropped"
        )
    backbone.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _adapt_separate(backbone.model, [target.path for target in targets if target.blocks == 1], config)
        for target in targets:
            if target.blocks > 1:
                adapter = BlockLowRank(getattr(target.module, target.matrix), target.blocks, config)
                register_parametrization(target.module, target.matrix, adapter)
    return counts


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """Tensors under the names that they have without adapters, with the adapters added in; `model` is not changed."""
    state = {}
    for name, tensor in model.state_dict().items():
        if ".lora_A." in name or ".lora_B." in name or name.endswith((".0.lora_A", ".0.lora_B")):
            continue
        path, inside, matrix = name.partition(".parametrizations.")
        state[f"{path}.{matrix.removesuffix('.original')}" if inside else name.replace(".base_layer.", ".")] = tensor
    for target in _adapted(model):
        state[f"{target.path}.{target.matrix}"] = _merged(target)
    return state


def write_adapter(model: nn.Module, config: LoraConfig, weights: str | None, directory: Path) -> bool:
    """Write the adapters alone, so that peft applies them to the library's model.

    An update of n blocks of rank r is the same as one of rank n * r whose B is zero outside of its block; that is how
    fused matrices are written.

    Args:
        model: The library's, with adapters.
        config: What made them.
        weights: Where the model came from; none if it had random weights.
        directory: Becomes a directory of peft.

    Returns:
        Whether it was written: not without adapters, nor for modules that peft does not know.
    """
    from peft import LoraConfig as PeftConfig

    targets = list(_adapted(model))
    known = all(
        isinstance(target.module, nn.MultiheadAttention | nn.Linear) or target.blocks == 1 for target in targets
    )
    if not targets or not known:
        return False
    tensors: dict[str, Tensor] = {}
    for target in targets:
        tensors |= _peft_tensors(target)
    fused = {target.path: target.blocks for target in targets if target.blocks > 1}
    settings: Any = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=sorted(target.path for target in targets),
        rank_pattern={path: blocks * config.rank for path, blocks in fused.items()},
        alpha_pattern={path: blocks * config.alpha for path, blocks in fused.items()},
        inference_mode=True,
        base_model_name_or_path=weights,
    )
    directory.mkdir()
    settings.save_pretrained(str(directory))
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    return True


def _targets(backbone: Backbone, tower: Tower) -> Iterator[Target]:
    """The projections of a tower's self-attention, by the names that they have in the libraries."""
    inside = {id(parameter) for group in backbone.layer_groups(tower) for parameter in group}
    for path, module in backbone.model.named_modules():
        *parents, name = path.split(".")
        if any(part in OTHERS for part in parents):
            continue
        separate = name in PROJECTIONS and isinstance(module, nn.Linear)
        matrix = "weight" if separate else FUSED.get(name)
        if matrix is not None and id(getattr(module, matrix, None)) in inside:
            yield Target(path, module, matrix, 1 if separate else 3)


def _adapt_separate(model: nn.Module, paths: list[str], config: LoraConfig) -> None:
    if not paths:
        return
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    settings = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        bias="none",
        target_modules=paths,
    )
    inject_adapter_in_model(settings, model)
    adapted = {path for path, module in model.named_modules() if isinstance(module, LoraLayer)}
    if adapted != set(paths):  # it says nothing when it finds only some
        wrong = sorted(adapted ^ set(paths))
        raise LoraError(f"backbone.lora: peft adapted {len(adapted)} of {len(paths)} projections; see {wrong[0]}")


def _adapted(model: nn.Module) -> Iterator[Target]:
    for path, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):  # a layer of peft
            yield Target(path, module, "weight", 1)
        elif is_parametrized(module):
            for matrix, (adapter, *_) in module.parametrizations.items():
                if isinstance(adapter, BlockLowRank):
                    yield Target(path, module, matrix, len(adapter.lora_A))


@torch.no_grad()
def _merged(target: Target) -> Tensor:
    layer: Any = target.module
    if target.blocks == 1:
        base: Tensor = layer.get_base_layer().weight
        return base + layer.get_delta_weight("default").to(base.dtype)
    weight: Tensor = getattr(layer, target.matrix)
    return weight.clone()


@torch.no_grad()
def _peft_tensors(target: Target) -> dict[str, Tensor]:
    layer: Any = target.module
    path = f"base_model.model.{target.path}"
    if target.blocks == 1:
        pair = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        return {f"{path}.lora_{side}.weight": tensor.clone() for side, tensor in zip("AB", pair, strict=True)}
    adapter = layer.parametrizations[target.matrix][0]
    low, high = adapter.lora_A.flatten(0, 1).clone(), torch.block_diag(*adapter.lora_B)
    tensors = {f"{path}.lora_A.weight": low, f"{path}.lora_B.weight": high}
    if isinstance(layer, nn.MultiheadAttention):  # peft always adapts the output too: by nothing
        output = f"{path}.base_layer.out_proj"
        tensors[f"{output}.lora_A.weight"] = torch.zeros(len(low), layer.embed_dim)
        tensors[f"{output}.lora_B.weight"] = torch.zeros(layer.embed_dim, len(low))
    return tensors

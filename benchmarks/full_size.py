"""Every member of every recipe at its full size, with random weights: what it takes, and how fast a GPU trains it.

`python -m benchmarks full_size --device cuda` trains and encodes with each and prints throughput, the share of the
device's matrix product (MFU) and peak memory beside the estimate. Without a GPU it prints the estimates alone.
`python -m benchmarks.full_size` writes these into the pages of `docs/recipes/`.
"""

from __future__ import annotations

import gc
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import torch
from tokenizers import SentencePieceUnigramTokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig

from benchmarks.contest import Options
from xmodal_kedro.config.captioning import CaptionerConfig
from xmodal_kedro.config.member import MemberConfig
from xmodal_kedro.config.recipe import read_recipe
from xmodal_kedro.config_loader import CONFIG_LOADER_ARGS, RecipeConfigLoader
from xmodal_kedro.models import build
from xmodal_kedro.models.backbone import Backbone
from xmodal_kedro.retrieval.embed import embed_images
from xmodal_kedro.training.footprint import GIB, Footprint, captioner_footprint, footprint, meta_device
from xmodal_kedro.training.loop import train

ROOT = Path(__file__).parents[1]
RECIPES = ("iflytek", "contrastive", "traffic_a3r", "traffic_first", "clipcap_zh")
PROCESSES = {"traffic_first": 4, "clipcap_zh": 2}  # that the publication trained on, where it says so
WORDS = ["a red car", "a man in a long coat", "一只狗在草地上"]
STEPS = 6  # measured; the first one is not counted
MARKED = re.compile(r"<!-- memory -->\n.*?<!-- /memory -->", re.DOTALL)

# Lengths of captions: that of the context where captions are long, else what they are cut or trimmed to.
TOKENS = {"chinese_clip": 52, "open_clip": 77, "blip": 100, "resnet_roberta": 32, "res2net_gpt": 40}
CHARACTERS = 6000  # of a vocabulary that is learned from captions: those of a million Chinese ones, about


def _vocabulary(folder: Path, size: int) -> str:
    """A vocab.txt with as many tokens as the published one has; which ones does not matter here."""
    file = folder / f"vocab-{size}.txt"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    file.write_text(
        "".join(f"{token}\n" for token in [*special, *(f"[unused{i}]" for i in range(size - len(special)))])
    )
    return str(file)


def _vit(width: int, layers: int, patch: int) -> dict[str, int]:
    return {
        **{"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers},
        **{"num_attention_heads": 16, "image_size": 224, "patch_size": patch},
    }


def _bert(width: int, layers: int, **more: int) -> dict[str, int]:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    return {**sizes, "num_attention_heads": width // 64, "max_position_embeddings": 512, **more}


def _chinese_clip_huge(folder: Path) -> dict[str, Any]:
    text = _bert(1024, 24, type_vocab_size=2, vocab_size=21128)
    sizes = {"projection_dim": 1024, "vision_config": _vit(1280, 32, 14), "text_config": text}
    return {**sizes, "vocabulary": _vocabulary(folder, 21128)}


def _blip_large(folder: Path) -> dict[str, Any]:
    text = _bert(768, 12, encoder_hidden_size=1024, vocab_size=30524)
    sizes = {"image_text_hidden_size": 256, "vision_config": _vit(1024, 24, 16), "text_config": text}
    return {**sizes, "vocabulary": _vocabulary(folder, 30522)}


def _resnet_roberta(folder: Path) -> dict[str, Any]:
    directory = folder / "roberta-base"
    directory.mkdir(exist_ok=True)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokens = [*special, *sorted(ByteLevel.alphabet())]
    tokens += [f"[unused{i}]" for i in range(50264 - len(tokens))] + ["<mask>"]
    (directory / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    return {"vocabulary": str(directory)}


def _xlm_roberta(folder: Path) -> dict[str, Any]:
    """open_clip would ask the hub for the text tower's config: here it lies in a directory."""
    directory = folder / "xlm-roberta-large"
    sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    XLMRobertaConfig(vocab_size=250002, max_position_embeddings=514, type_vocab_size=1, **sizes).save_pretrained(
        directory
    )
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = SentencePieceUnigramTokenizer()
    tokenizer.train_from_iterator(WORDS, vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(directory)
    config: dict[str, Any] = open_clip.get_model_config("xlm-roberta-large-ViT-H-14") or {}
    text = {**config["text_cfg"], "hf_model_name": str(directory), "hf_tokenizer_name": str(directory)}
    return {**config, "text_cfg": {**text, "hf_model_pretrained": False}}


def _res2net_gpt(folder: Path, architecture: dict[str, Any]) -> dict[str, Any]:
    """What the recipe says itself, but for weights of parts and for characters, which it would learn."""
    file = folder / "characters.json"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(chr(0x4E00 + i) for i in range(CHARACTERS - 4))]
    file.write_text(json.dumps({token: row for row, token in enumerate(tokens)}))
    return {**architecture, "image_weights": None, "text_weights": None, "vocabulary": str(file)}


ARCHITECTURES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "OFA-Sys/chinese-clip-vit-huge-patch14": _chinese_clip_huge,
    "data/01_raw/contrastive/pretrains": _resnet_roberta,
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": lambda folder: {"model_name": "ViT-bigG-14"},
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": lambda folder: {"model_name": "ViT-H-14"},
    "laion/CLIP-ViT-H-14-frozen-xlm-roberta-large-laion5B-s13B-b90k": _xlm_roberta,
    "data/01_raw/weights/blip_large": _blip_large,
}


@dataclass(frozen=True)
class FullSize:
    """A member of a recipe with the architecture of its weights."""

    recipe: str
    member: MemberConfig  # as the recipe has it, with random weights
    processes: int  # that the publication trained on: they share the batch
    captioners: tuple[CaptionerConfig, ...] = ()  # that begin with it

    @property
    def pairs(self) -> int:
        """Computed at once by one process."""
        whole = -(-self.member.train.batch_size // self.processes)
        return min(self.member.train.micro_batch or whole, whole)

    @property
    def tokens(self) -> int:
        """Length of the captions that are counted."""
        return TOKENS[self.member.backbone.name]


@contextmanager
def full_size(recipes: tuple[str, ...] = RECIPES) -> Iterator[list[FullSize]]:
    """The members of the recipes, while the files that their architectures name exist."""
    with TemporaryDirectory() as folder:
        found = []
        for recipe in recipes:
            parameters = RecipeConfigLoader(ROOT / "conf", recipe, **CONFIG_LOADER_ARGS)["parameters"]
            read = read_recipe(parameters)
            for name, member in read.members.items():
                if member.backbone.weights is None:
                    architecture = _res2net_gpt(Path(folder), member.backbone.architecture or {})
                else:
                    architecture = ARCHITECTURES[member.backbone.weights](Path(folder))
                backbone = member.backbone.model_copy(update={"weights": None, "architecture": architecture})
                captioners = tuple(one for one in read.captioners.values() if one.member == name)
                sized = member.model_copy(update={"backbone": backbone})
                found.append(FullSize(recipe, sized, PROCESSES.get(recipe, 1), captioners))
        yield found


def estimate(one: FullSize) -> Footprint:
    """What training the member takes, by its shapes."""
    with meta_device():
        backbone = build(one.member.backbone, texts=WORDS)
    return footprint(backbone.train(), one.member.train, min(one.tokens, backbone.context))


def estimate_captioner(one: FullSize, captioner: CaptionerConfig) -> Footprint:
    """What training a captioner takes that begins with the member."""
    with meta_device():
        backbone = build(one.member.backbone, texts=WORDS)
    writer: Any = backbone.captioner().train().requires_grad_(True)
    assert captioner.train is not None
    return captioner_footprint(writer, backbone.image_size, captioner.train, one.tokens)


def memory_table(estimates: list[tuple[FullSize, Footprint]]) -> str:
    """The table of a recipe's page; captioners that are trained alike share a row."""
    lines = [
        "| member | parameters | trained | weights, gradients, AdamW | one pair in training | at once | in all |",
        "|---|---|---|---|---|---|---|",
    ]
    for one, found in estimates:
        lines.append(_row(f"`{one.member.name}`", found, one.pairs, "pairs"))
        alike: dict[tuple[int, str], list[CaptionerConfig]] = {}
        for captioner in one.captioners:
            assert captioner.train is not None
            at_once = -(-captioner.train.batch_size // one.processes)
            alike.setdefault((at_once, captioner.train.precision), []).append(captioner)
        for (at_once, _), captioners in alike.items():
            names = ", ".join(f"`{captioner.name}`" for captioner in captioners)
            lines.append(_row(names, estimate_captioner(one, captioners[0]), at_once, "captions"))
    return "\n".join(lines) + "\n"


def _row(names: str, found: Footprint, at_once: int, unit: str) -> str:
    return (
        f"| {names} | {found.parameters / 1e6:.1f} M | {found.trainable / 1e6:.1f} M "
        f"| {found.total(0) / GIB:.1f} GiB | {found.activations_per_pair / (1 << 20):.0f} MiB "
        f"| {at_once} {unit} | {found.total(at_once) / GIB:.1f} GiB |"
    )


def run(options: Options) -> list[dict[str, Any]]:
    """One case per member (`quick`: of the smallest recipe); it has no peer and no goal but to run."""
    cases = []
    with full_size(("contrastive",) if options.quick else RECIPES) as members:
        for one in members:
            found = estimate(one)
            label = f"{one.recipe} {one.member.name}"
            print(
                f"{label}: {found.parameters / 1e6:.0f} M parameters, {found.trainable / 1e6:.0f} M trained,", end=" "
            )
            print(f"a step of {one.pairs} pairs takes about {found.total(one.pairs) / GIB:.1f} GiB")
            if options.device == "cuda":
                cases.append(measure(one, found, torch.device("cuda"), pairs=8 if options.quick else one.pairs))
                gc.collect()
                torch.cuda.empty_cache()
    return cases


def measure(one: FullSize, found: Footprint, device: torch.device, pairs: int) -> dict[str, Any]:
    """Train and encode with a member on a device.

    Args:
        one: The member.
        found: Its estimate.
        device: Where; on a CPU there is no figure of memory.
        pairs: Of a batch; smaller ones than the recipe's are no smaller share of the matrix product.

    Returns:
        A case as the contests have them, and `train` and `encode` with items a second and MFU.
    """
    config = one.member.train.model_copy(
        update={"batch_size": max(2, pairs), "micro_batch": None, "epochs": 1, "keep": "last", "patience": None}
    )
    with torch.device(device):
        backbone = build(one.member.backbone, texts=WORDS)
    pixels = np.random.default_rng(0).integers(
        0, 256, (64, backbone.image_size, backbone.image_size, 3), dtype=np.uint8
    )
    speeds = _training_speeds(backbone, pixels, config, one.tokens, device)
    peak = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None
    speed = statistics.median(speeds)
    encoded = _encoding_speed(backbone, pixels, one.member, device)
    limit = _matrix_product(device, config.precision)  # operations a second
    mfu = speed * _plain_training_flops(one) / limit
    label = f"{one.recipe} {one.member.name}"
    print(f"{label}: trains {speed:.1f} pairs/s (MFU {mfu:.0%}), encodes {encoded:.1f} images/s", end="")
    print(f", peak {peak / 1e3:.1f} GB; estimated {found.total(config.batch_size) / 1e9:.1f} GB" if peak else "")
    return {
        "workload": f"{label}: a training step of {config.batch_size} pairs, {config.precision}, random weights",
        "ours": {"seconds": config.batch_size / speed, "peak_mb": peak},
        "peers": {},
        "limit": {
            "what": f"the matrix products alone ({limit / 1e12:.1f} TFLOP/s)",
            "seconds": config.batch_size * _plain_training_flops(one) / limit,
            "share": mfu,
        },
        "train": {"pairs_per_second": speed, "mfu": mfu, "estimated_mb": found.total(config.batch_size) / 1e6},
        "encode": {"images_per_second": encoded},
        "passed": True,
    }


def _training_speeds(
    backbone: Backbone, pixels: np.ndarray, config: Any, tokens: int, device: torch.device
) -> list[float]:
    """Pairs a second of each step but the first, of captions that fill the length."""
    rows = np.arange(STEPS * config.batch_size)
    text = " ".join(["red car"] * tokens)
    examples = pd.DataFrame({"text": text, "image_row": rows % len(pixels), "key": rows})
    backbone.limit_context(min(tokens, backbone.context))
    ends: list[float] = []

    def report(step: int, numbers: dict[str, float]) -> None:
        ends.append(time.perf_counter())  # the loss was read from the device: the step before is over

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    train(backbone, pixels, examples, None, config, device, report)
    return [config.batch_size / (after - before) for before, after in pairwise(ends)]


def _encoding_speed(backbone: Backbone, pixels: np.ndarray, member: MemberConfig, device: torch.device) -> float:
    rows = np.arange(4 * len(pixels)) % len(pixels)
    options: dict[str, Any] = {"batch_size": 64, "device": device, "precision": member.embed.precision}
    embed_images(backbone, pixels, rows[: len(pixels)], **options)
    start = time.perf_counter()
    embed_images(backbone, pixels, rows, **options)
    return len(rows) / (time.perf_counter() - start)


def _plain_training_flops(one: FullSize) -> int:
    """Operations per pair without what checkpointing computes again: that is no progress."""
    plain = one.member.backbone.model_copy(update={"grad_checkpointing": False})
    return estimate(
        FullSize(one.recipe, one.member.model_copy(update={"backbone": plain}), one.processes)
    ).training_flops_per_pair


def _matrix_product(device: torch.device, precision: str) -> float:
    """Operations a second of a large square product, the limit of all the rest."""
    size, dtype = (8192 if device.type == "cuda" else 1024), torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[1:])


def write_docs() -> None:
    """Put the memory tables into the recipes' pages."""
    for recipe in RECIPES:
        page = ROOT / "docs" / "recipes" / f"{recipe}.md"
        with full_size((recipe,)) as members:
            table = memory_table([(one, estimate(one)) for one in members])
        before, after = MARKED.split(page.read_text())
        page.write_text(f"{before}<!-- memory -->\n{table}<!-- /memory -->{after}")


if __name__ == "__main__":
    write_docs()

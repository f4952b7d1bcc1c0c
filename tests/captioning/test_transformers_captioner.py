"""Models of transformers, saved as published ones are, caption here as their own `generate` does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    CLIPImageProcessor,
    GitConfig,
    GitForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    RobertaConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

from xmodal_kedro.captioning.decode import Captioner, decode, decode_batches
from xmodal_kedro.captioning.ensemble import EnsembleCaptioner, VocabularyMismatchError
from xmodal_kedro.captioning.transformers_captioner import load_captioner
from xmodal_kedro.config.decoding import DecodingConfig
from xmodal_kedro.data.manifest import BrokenArtifactError
from xmodal_kedro.models.weights import MissingWeightsError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"一只狗在草地上", *"abcdefghij", "##a", "##b", "."]
SIZES: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VISION: dict[str, Any] = {"image_size": 16, "patch_size": 8, **SIZES}
KINDS = ("blip", "git", "bert", "gpt2")
PIXELS = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def shaken(model: Any, seed: int, end: torch.Tensor | None) -> Any:
    """A model whose random weights are large enough that images and tokens matter, and captions end at times."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or name.endswith("class_embedding"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        if end is not None:
            end += 1.5
    return model.eval()


def save_blip(directory: Path, seed: int = 0) -> None:
    tokenizer = BertTokenizer({token: index for index, token in enumerate(WORDS)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "max_position_embeddings": 12, **SIZES}
    ids = {"bos_token_id": tokenizer.bos_token_id, "sep_token_id": tokenizer.sep_token_id, "pad_token_id": 0}
    config = BlipConfig(text_config={**text, **ids}, vision_config={"hidden_size": 24, **VISION})
    model = BlipForConditionalGeneration(config)
    bias = model.text_decoder.cls.predictions.bias
    shaken(model, seed, bias[tokenizer.sep_token_id : tokenizer.sep_token_id + 1].data).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    BlipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(directory)


def save_git(directory: Path, seed: int = 0) -> None:
    tokenizer = BertTokenizer({token: index for index, token in enumerate(WORDS)})
    ids = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id, "pad_token_id": 0}
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "max_position_embeddings": 12, **SIZES}
    model = GitForCausalLM(GitConfig(vision_config={"hidden_size": 24, **VISION}, **text, **ids))
    end = model.output.bias[tokenizer.sep_token_id : tokenizer.sep_token_id + 1].data
    shaken(model, seed, end).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    side = {"height": 16, "width": 16}
    CLIPImageProcessor(size=side, crop_size=side).save_pretrained(directory)


def save_bert(directory: Path, seed: int = 0) -> None:
    tokenizer = BertTokenizer({token: index for index, token in enumerate(WORDS)})
    decoder = BertConfig(vocab_size=len(tokenizer), hidden_size=24, max_position_embeddings=12, **SIZES)
    model = encoder_decoder(decoder, start=tokenizer.cls_token_id, end=tokenizer.sep_token_id, pad=0)
    assert isinstance(model.decoder, BertLMHeadModel)
    bias = model.decoder.cls.predictions.bias
    shaken(model, seed, bias[tokenizer.sep_token_id : tokenizer.sep_token_id + 1].data).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(directory)


def save_gpt2(directory: Path, seed: int = 0) -> None:
    tokens = [*sorted(ByteLevel.alphabet()), "<|endoftext|>"]
    tokenizer = GPT2Tokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])
    decoder = GPT2Config(vocab_size=257, n_embd=16, n_layer=2, n_head=2, n_positions=12)
    model = encoder_decoder(decoder, start=256, end=256, pad=256)
    assert isinstance(model.decoder, GPT2LMHeadModel)
    shaken(model, seed, None)
    with torch.no_grad():
        model.decoder.transformer.wte.weight[256] *= 2  # it is the head, too
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(directory)


def encoder_decoder(decoder: Any, start: int, end: int, pad: int) -> Any:
    encoder = ViTConfig(hidden_size=24, **VISION)
    model = VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))
    model.generation_config.decoder_start_token_id = start
    model.generation_config.eos_token_id = end
    model.generation_config.pad_token_id = pad
    return model


SAVE = {"blip": save_blip, "git": save_git, "bert": save_bert, "gpt2": save_gpt2}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory per kind; tests change none of them."""
    folder = tmp_path_factory.mktemp("captioners")
    for kind, save in SAVE.items():
        save(folder / kind)
    return folder


def generated(directory: Path, config: DecodingConfig) -> list[tuple[tuple[int, ...], bool]]:
    """Ids of the library's own `generate`, without start and end, and whether the end was reached."""
    families: dict[str, Any] = {"blip": BlipForConditionalGeneration, "git": GitForCausalLM}
    model = (
        families.get(directory.name, VisionEncoderDecoderModel).from_pretrained(directory, local_files_only=True).eval()
    )
    end = model.config.text_config.sep_token_id if directory.name == "blip" else model.generation_config.eos_token_id
    beams = config.beams if config.method == "beam" else 1
    options = {"length_penalty": config.length_penalty, "early_stopping": False} if beams > 1 else {}
    rows = model.generate(
        pixel_values=PIXELS, max_new_tokens=config.max_steps, num_beams=beams, do_sample=False, **options
    ).tolist()
    results = []
    for row in rows:
        ids = row[1:]
        ended = end in ids
        results.append((tuple(ids[: ids.index(end)] if ended else ids[: config.max_steps]), ended))
    return results


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "config",
    [
        DecodingConfig(max_steps=8),
        DecodingConfig(method="beam", beams=2, max_steps=9),
        DecodingConfig(method="beam", beams=5, max_steps=7, length_penalty=0.0),
        DecodingConfig(method="beam", beams=4, max_steps=8, length_penalty=2.0),
    ],
    ids=str,
)
def test_captions_are_those_of_the_library(saved: Path, kind: str, config: DecodingConfig) -> None:
    captioner = load_captioner(saved / kind)
    captions = decode(captioner, PIXELS, config)
    assert [(caption.ids, caption.ended) for caption in captions] == generated(saved / kind, config)
    if config.method == "greedy":
        assert len({caption.ids for caption in captions}) > 2
        assert kind == "gpt2" or len({len(caption.ids) for caption in captions}) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_the_batch_changes_no_caption(saved: Path, kind: str) -> None:
    captioner: Captioner[Any] = load_captioner(saved / kind)
    for method in ("greedy", "beam", "nucleus"):
        config = DecodingConfig.model_validate({"method": method, "max_steps": 8})
        whole = decode(captioner, PIXELS, config)
        parts = list(decode_batches(captioner, PIXELS.split(2), config))
        assert [part.ids for part in parts] == [one.ids for one in whole]


@pytest.mark.parametrize("kind", KINDS)
def test_the_log_probability_is_that_of_the_whole_caption(saved: Path, kind: str) -> None:
    captioner = load_captioner(saved / kind)
    model: Any = captioner.model
    vocabulary = captioner.vocabulary
    for row, caption in enumerate(decode(captioner, PIXELS, DecodingConfig(method="beam", beams=3, max_steps=8))):
        targets = torch.tensor([[*caption.ids, *([vocabulary.end] if caption.ended else [])]])
        given = torch.cat([torch.tensor([[vocabulary.start]]), targets[:, :-1]], dim=1)
        named = {"input_ids" if kind in ("blip", "git") else "decoder_input_ids": given}
        with torch.no_grad():
            logits = model(pixel_values=PIXELS[row : row + 1], **named).logits[:, -targets.shape[1] :]
        expected = logits.log_softmax(2).gather(2, targets[:, :, None]).sum()
        assert caption.log_probability == pytest.approx(float(expected), abs=1e-4)


def test_models_with_one_tokenizer_can_be_mixed_and_others_are_refused(saved: Path, tmp_path: Path) -> None:
    save_blip(tmp_path / "blip", seed=1)
    members = {
        "first": load_captioner(saved / "blip"),
        "second": load_captioner(tmp_path / "blip"),
    }
    config = DecodingConfig(max_steps=8)
    alone = [[one.ids for one in decode(member, PIXELS, config)] for member in members.values()]
    assert alone[0] != alone[1]
    assert [one.ids for one in decode(EnsembleCaptioner(members, (1, 0)), PIXELS, config)] == alone[0]
    assert [one.ids for one in decode(EnsembleCaptioner(members, (0.5, 0.5)), PIXELS, config)] not in alone
    other = load_captioner(saved / "gpt2")
    with pytest.raises(VocabularyMismatchError, match=r"'first' and 'other' .*id 0 is '\[PAD\]' for 'first' and '!'"):
        EnsembleCaptioner({**members, "other": other})


def test_texts_are_what_a_person_reads(saved: Path) -> None:
    bert = load_captioner(saved / "bert").vocabulary
    assert bert.tokens == WORDS
    ids = [WORDS.index(token) for token in ("[CLS]", "一", "只", "a", "##b", "c", "狗", "[SEP]", "[PAD]")]
    assert bert.text(ids) == "一只 ab c 狗"
    gpt2 = load_captioner(saved / "gpt2").vocabulary
    assert gpt2.text([*(gpt2.tokens.index(token) for token in "ĠaĠdog"), 256]) == "a dog"
    assert (gpt2.start, gpt2.end) == (256, 256)


def test_images_are_transformed_as_the_image_processor_says(saved: Path) -> None:
    images = torch.randint(256, (2, 16, 16, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    for kind, family in (("blip", BlipImageProcessor), ("git", CLIPImageProcessor), ("bert", ViTImageProcessor)):
        ours = load_captioner(saved / kind).image_transform(images)
        processor = family.from_pretrained(saved / kind, local_files_only=True)
        theirs = processor(list(images.permute(0, 3, 1, 2)), return_tensors="pt")["pixel_values"]
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_a_caption_longer_than_the_model_is_refused(saved: Path) -> None:
    captioner = load_captioner(saved / "blip")
    assert decode(captioner, PIXELS, DecodingConfig(max_steps=12))
    with pytest.raises(ValueError, match="max_steps is 13: this captioner writes 12 tokens at most"):
        decode(captioner, PIXELS, DecodingConfig(max_steps=13))


def test_roberta_counts_positions_from_behind_its_padding(tmp_path: Path) -> None:
    tokenizer = BertTokenizer({token: index for index, token in enumerate(WORDS)})
    sizes = {"hidden_size": 24, "max_position_embeddings": 12, "pad_token_id": 1, **SIZES}
    decoder = RobertaConfig(vocab_size=len(tokenizer), **sizes)
    shaken(encoder_decoder(decoder, start=2, end=3, pad=1), 0, None).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    captioner = load_captioner(tmp_path)
    captions = decode(captioner, PIXELS, DecodingConfig(max_steps=10))
    assert [(caption.ids, caption.ended) for caption in captions] == generated(tmp_path, DecodingConfig(max_steps=10))
    assert not all(caption.ended for caption in captions)  # some do come to the last position
    with pytest.raises(ValueError, match="max_steps is 11: this captioner writes 10 tokens at most"):
        decode(captioner, PIXELS, DecodingConfig(max_steps=11))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_computed_with_in_full(
    saved: Path, kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    shutil.copytree(saved / kind, tmp_path / kind)
    load_captioner(saved / kind).model.to(dtype).save_pretrained(tmp_path / kind)
    assert {one.dtype for one in load_file(tmp_path / kind / "model.safetensors").values()} == {dtype}
    captioner = load_captioner(tmp_path / kind)
    assert {one.dtype for one in captioner.parameters()} == {torch.float32}
    assert len(decode(captioner, PIXELS, DecodingConfig(max_steps=8))) == len(PIXELS)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    save_bert(tmp_path / "bert")
    return tmp_path / "bert"


def test_what_is_missing_is_named(broken: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"there is no directory .*nowhere"):
        load_captioner(broken / "nowhere")
    for name in ("tokenizer.json", "vocab.txt"):
        (broken / name).unlink(missing_ok=True)
    with pytest.raises(MissingWeightsError, match=r"bert holds no tokenizer.json or vocab.txt or .*save_pretrained"):
        load_captioner(broken)


def test_weights_that_lack_tensors_are_refused_instead_of_drawn_at_random(broken: Path) -> None:
    file = broken / "model.safetensors"
    tensors = {name: one for name, one in load_file(file).items() if "crossattention.self.query" not in name}
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(BrokenArtifactError, match=r"lack 4 tensors .*crossattention.self.query"):
        load_captioner(broken)


def test_damaged_files_and_other_models_are_refused(broken: Path) -> None:
    (broken / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(BrokenArtifactError, match="bert holds no captioning model that transformers can open"):
        load_captioner(broken)
    BertForMaskedLM(BertConfig(vocab_size=len(WORDS), hidden_size=24, **SIZES)).save_pretrained(broken)
    with pytest.raises(ValueError, match=r"a model of the type 'bert', .* blip, git, vision-encoder-decoder"):
        load_captioner(broken)


def test_a_model_that_does_not_say_how_captions_end_is_refused(broken: Path) -> None:
    settings = json.loads((broken / "generation_config.json").read_text())
    (broken / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [2, 3]}))
    with pytest.raises(BrokenArtifactError, match=r"ends \(eos_token_id\) a caption: \[2, 3\]"):
        load_captioner(broken)

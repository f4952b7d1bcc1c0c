"""Characters and Chinese words: lower case, no blanks, no punctuation of any script."""

import pytest

from xmodal_kedro.captioning.metrics import tokenisers
from xmodal_kedro.captioning.metrics.tokenisers import TOKENISERS, characters, load_jieba, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("一只狗 在草地上。", "一只狗在草地上"),
        ("“Ａ”，B-c！\n3…", "ａbc3"),
        ("\u3000、。·《》() 'x' ", "x"),
        ("价格$5+", "价格$5+"),  # symbols are no punctuation
        ("", ""),
        ("……", ""),
    ],
)
def test_characters(text, expected):
    assert characters(text) == list(expected)


@pytest.mark.parametrize("name", ["characters", "words", "ptb"])
def test_what_nobody_sees_does_not_count(name):
    if name == "words":
        pytest.importorskip("jieba", reason="jieba is not installed (the extra `captioning`)")
    cut = TOKENISERS[name]
    assert cut("\ufeffa do\u200bg \u200d runs\u00ad on 草\u200e地") == cut("a dog runs on 草地")


def test_words():
    pytest.importorskip("jieba", reason="jieba is not installed (the extra `captioning`)")
    found = words("一只棕色的狗在草地上奔跑，Dog 跑。")
    assert "".join(found) == "一只棕色的狗在草地上奔跑dog跑"
    assert {"棕色", "奔跑", "dog"} <= set(found)
    assert words(" 。， ") == []


def test_words_are_what_jieba_cuts(monkeypatch):
    class Jieba:
        @staticmethod
        def lcut(text):
            return text.split("|")

    monkeypatch.setattr(tokenisers, "load_jieba", lambda: Jieba)
    assert words("棕色|，| |Dog's|……|的") == ["棕色", "dog's", "的"]


def test_missing_jieba_names_the_extra(monkeypatch):
    monkeypatch.setattr(tokenisers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"xmodal-kedro\[captioning\].*_characters"):
        load_jieba()
    with pytest.raises(ModuleNotFoundError, match="jieba"):
        words("狗")

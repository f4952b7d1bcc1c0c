"""Self-critical training: captions are drawn, and those that are closer to the references than a baseline are learned.

REINFORCE with CIDEr-D as the reward (Rennie et al., arXiv 1612.00563). The baseline is the reward of the greedy
caption, as there, or the mean reward of the image's other samples (arXiv 2003.09971). Neither depends on the sample
that it is taken from, so the expected gradient is exactly that of the expected reward.

The captioner is in eval mode throughout: what is drawn from, without dropout and by BatchNorm's running statistics, is
what is differentiated, and what decodes afterwards. A temperature belongs to the policy, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xmodal_kedro.captioning.decode import LEAVING, decode
from xmodal_kedro.captioning.metrics.cider import CiderReward
from xmodal_kedro.captioning.metrics.tokenisers import TOKENISERS
from xmodal_kedro.config.captioning import SelfCriticalConfig
from xmodal_kedro.config.decoding import DecodingConfig
from xmodal_kedro.losses.gather import processes, rank
from xmodal_kedro.models.captioner import Captioner
from xmodal_kedro.training.processes import averaged


class SelfCritical:
    """Losses of batches of images; of several processes each draws and rewards the captions of its share."""

    def __init__(
        self,
        captioner: Captioner,
        references: Sequence[Sequence[str]],
        tokeniser: str,
        config: SelfCriticalConfig,
        max_steps: int,
    ) -> None:
        """Cut the references, and count how frequent their n-grams are.

        Args:
            captioner: Trained in place, by the caller.
            references: [N] all sentences of every image of train.
            tokeniser: How sentences are cut for CIDEr-D: `characters`, `words` or `ptb`.
            config: All but its `epochs`, `lr` and `batch_size` count here.
            max_steps: Tokens of a caption at most, the end included; a longer one is cut and rewarded as it is.

        Raises:
            ValueError: There are fewer than two images, or the captioner has no positions for so many tokens.
        """
        positions = captioner.gpt.sizes.block_size
        if max_steps > positions:
            raise ValueError(
                f"captioning.decoding.max_steps is {max_steps}, and the captioner has {positions} positions: lower it"
            )
        self.captioner, self.config, self.max_steps = captioner, config, max_steps
        self.cut = TOKENISERS[tokeniser]
        self.reward = CiderReward([[self.cut(text) for text in texts] for texts in references])

    def own(self, rows: np.ndarray) -> np.ndarray:
        """Which images of a batch [I] this process shows the captioner.

        Where there are fewer images than processes, one without gets the first, which weighs nothing.
        """
        share = _share(rows)
        return share if len(share) else rows[:1]

    def losses(self, images: Tensor, rows: np.ndarray, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw captions and weigh them.

        Args:
            images: What the captioner is shown of `own(rows)`: pixels [I, 3, H, W] or vectors [I, W].
            rows: Of the whole batch, those of the references; the same in all processes.
            generator: On the CPU, and alike in all processes: captions do not depend on who draws them.

        Returns:
            Scalars whose means over the processes are those of the whole batch: `loss`, with a gradient; mean `reward`
            and `baseline`; mean number of `tokens`, and share of captions that `ended`.
        """
        samples, model = self.config.samples, self.captioner.eval()
        vectors = model.encode(images)  # once, for the draw, the baseline and the gradient
        draws = torch.rand(len(rows) * samples, self.max_steps, generator=generator, dtype=torch.float64)
        captions = np.arange(len(rows) * samples).reshape(len(rows), samples)
        mine = torch.from_numpy(self.own(captions).flatten())
        ids, lengths = draw_captions(model, vectors.detach(), samples, draws[mine], self.config.temperature)
        images_of = self.own(rows)
        rewards = self.rewards(images_of, ids, lengths)
        if self.config.baseline == "mean":
            baselines = mean_of_others(rewards)
        else:
            baselines = self.greedy_rewards(images_of, vectors.detach())[:, None].expand_as(rewards)
        log_p = log_likelihood(model, vectors, ids, lengths, self.config.temperature)
        # Shares may differ by an image: dividing by their mean size makes the mean over processes that of all captions.
        counts = float(len(_share(rows)) > 0)
        weight = counts / averaged({"size": torch.tensor(counts * len(log_p))})["size"]
        last = ids.gather(1, lengths[:, None])[:, 0]
        of_each = {
            "loss": -(rewards - baselines).flatten().to(log_p) * log_p,
            "reward": rewards,
            "baseline": baselines,
            "tokens": lengths,
            "ended": last == model.vocabulary.end,
        }
        return {name: values.sum() * weight for name, values in of_each.items()}

    def rewards(self, images: np.ndarray, ids: Tensor, lengths: Tensor) -> Tensor:
        """CIDEr-D [I, S] of captions [I * S, 1 + L], S for each image, in fp64 on the CPU."""
        text = self.captioner.vocabulary.text
        rows = zip(ids.tolist(), lengths.tolist(), strict=True)
        cut = [self.cut(text(row[1 : 1 + length])) for row, length in rows]
        samples = len(cut) // len(images)
        return torch.tensor(
            [
                self.reward(image, cut[place * samples : (place + 1) * samples])
                for place, image in enumerate(images.tolist())
            ],
            dtype=torch.float64,
        )

    def greedy_rewards(self, images: np.ndarray, vectors: Tensor) -> Tensor:
        """CIDEr-D [I] of the greedy captions of images, in fp64 on the CPU."""
        decoding = DecodingConfig(method="greedy", max_steps=self.max_steps)
        captions = decode(self.captioner, vectors, decoding)
        each = [
            self.reward(image, [self.cut(caption.text)])[0]
            for image, caption in zip(images.tolist(), captions, strict=True)
        ]
        return torch.tensor(each, dtype=torch.float64)


def deal_images(images: int, batch_size: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Shuffle images into the fewest batches of at most `batch_size` that are as even as they can be."""
    return np.array_split(generator.permutation(images), math.ceil(images / batch_size))


@torch.no_grad()
def draw_captions(
    captioner: Captioner, vectors: Tensor, samples: int, draws: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Draw captions from softmax(logits / temperature), token by token, with everything that was read kept.

    Args:
        captioner: In eval mode.
        vectors: [I, W] encoded images.
        samples: S, captions per image.
        draws: [I * S, T] fp64, even in [0, 1): a number decides a token, as a point on the cumulative probabilities.
        temperature: Of the draw.

    Returns:
        Ids [I * S, 1 + L]: the start, at most T tokens, the end where it was drawn, padding; captions of an image side
        by side. And how many tokens [I * S] were drawn, the end included.
    """
    vocabulary, device = captioner.vocabulary, vectors.device
    count, steps = draws.shape
    draws = draws.to(device)
    ids = torch.full((count, 1 + steps), vocabulary.pad, device=device)
    ids[:, 0] = vocabulary.start
    lengths = torch.zeros(count, dtype=torch.long, device=device)
    over = torch.zeros(count, dtype=torch.bool, device=device)
    present = torch.arange(count, device=device)  # those that the state has rows of; some of them may be over
    state = captioner.select(captioner.begin(vectors, steps), present // samples)
    for step in range(steps):
        logits, state = captioner.step(ids[present, step], state)
        cumulative = (logits.double() / temperature).softmax(1).cumsum(1)
        target = draws[present, step, None] * cumulative[:, -1:]
        tokens = (cumulative <= target).sum(1).clamp(max=logits.shape[1] - 1)
        going = ~over[present]
        rows = present[going]
        ids[rows, step + 1] = tokens[going]
        lengths[rows] += 1
        over[rows] = tokens[going] == vocabulary.end
        staying = ~over[present]
        left = int(staying.sum())
        if left == 0:
            break
        if len(present) - left >= LEAVING * len(present):
            state, present = captioner.select(state, staying.nonzero()[:, 0]), present[staying]
    return ids[:, : 1 + int(lengths.max())], lengths


def log_likelihood(
    captioner: Captioner, vectors: Tensor, ids: Tensor, lengths: Tensor, temperature: float = 1.0
) -> Tensor:
    """Logarithm [I * S] of the probability of drawn captions, the start given; with a gradient, in fp32.

    Args:
        captioner: Who drew them.
        vectors: [I, W] encoded images.
        ids: [I * S, 1 + L] as drawn.
        lengths: [I * S] tokens that count: padding may have been drawn as a token, so it does not tell.
        temperature: Of the draw.
    """
    # Weights that autocast has cast for the draw, without a gradient, must be cast anew: some torch keeps them
    torch.clear_autocast_cache()
    logits = captioner(vectors.repeat_interleave(len(ids) // len(vectors), dim=0), ids)[:, 1:]
    logits = (logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits) / temperature
    each = -F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
    counts = torch.arange(each.shape[1], device=ids.device) < lengths[:, None]
    return each.masked_fill(~counts, 0.0).sum(1)


def mean_of_others(rewards: Tensor) -> Tensor:
    """For rewards [I, S] of S > 1 samples the mean of those of the image's other samples [I, S]."""
    return (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)


def _share(rows: np.ndarray) -> np.ndarray:
    return np.array_split(rows, processes())[rank()]

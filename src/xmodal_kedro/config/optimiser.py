"""What a recipe says about the steps of any training: rates, their schedule, decay, precision, seed."""

from typing import Literal, Self

from pydantic import Field, model_validator

from xmodal_kedro.config.frozen import Frozen


class OptimiserConfig(Frozen):
    """AdamW and the course of its learning rate; members and captioners say the rest of their training beside it."""

    epochs: int = Field(ge=1, description="times that every pair or caption is seen")
    lr: float = Field(gt=0.0, description="after the warm-up")
    weight_decay: float = Field(0.1, ge=0.0, description="of AdamW, of what `decay` says")
    decay: Literal["matrices", "all"] = Field("matrices", description="all: also norms, biases and the logit scale")
    betas: list[float] = Field([0.9, 0.98], min_length=2, max_length=2, description="of AdamW's moments")
    eps: float = Field(1.0e-6, description="of AdamW")
    warmup_steps: int = Field(0, ge=0, description="over which the rate rises linearly to `lr`")
    schedule: Literal["cosine", "cosine_by_epoch", "constant"] = Field(
        "cosine", description="after the warm-up; by_epoch keeps the rate of an epoch's start for the whole epoch"
    )
    schedule_epochs: int | None = Field(
        None, ge=1, description="over which the cosine falls to 0, where that is not `epochs`; at least `epochs`"
    )
    grad_clip: float | None = Field(1.0, gt=0.0, description="norm of the gradient at most")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: by autocast, weights stay fp32")
    seed: int = Field(0, description="of random weights, batches, views and dropout")

    @model_validator(mode="after")
    def _schedule_reaches_the_end(self) -> Self:
        if self.schedule_epochs is not None and self.schedule == "constant":
            raise ValueError(
                "schedule_epochs says how long a cosine is, but schedule is constant: leave one of them out"
            )
        if self.schedule_epochs is not None and self.schedule_epochs < self.epochs:
            raise ValueError(f"schedule_epochs ({self.schedule_epochs}) is less than epochs ({self.epochs})")
        return self

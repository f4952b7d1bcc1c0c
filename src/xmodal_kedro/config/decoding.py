"""What a recipe says about how captions are decoded."""

from typing import Literal

from pydantic import Field

from xmodal_kedro.config.frozen import Frozen


class DecodingConfig(Frozen):
    """One way to turn the probabilities of a captioner into captions."""

    method: Literal["greedy", "beam", "nucleus"] = "greedy"
    max_steps: int = Field(30, ge=1, description="tokens of a caption at most, its end counted; then it is cut")
    beams: int = Field(5, ge=1, description="of method beam: captions under way per image")
    length_penalty: float = Field(
        1.0, ge=0.0, description="of method beam: log-probabilities are divided by length ** length_penalty"
    )
    top_p: float = Field(0.9, gt=0.0, le=1.0, description="of method nucleus: share of the probability to draw from")
    temperature: float = Field(1.0, ge=1.0e-4, le=1.0e4, description="of method nucleus: divides the logits")
    seed: int = Field(0, ge=0, description="of method nucleus")

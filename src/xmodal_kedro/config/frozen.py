"""The base of every config: frozen, strict about types, and deaf to unknown keys only by an error."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A config section. Unknown keys and wrong types (also "3" for 3) are errors that name the key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

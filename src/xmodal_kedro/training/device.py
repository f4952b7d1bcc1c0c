"""Which device a node works on."""

import torch

from xmodal_kedro.config.ensemble import RuntimeConfig


def pick_device(runtime: RuntimeConfig) -> torch.device:
    """The device that `runtime` asks for; `auto` takes a GPU when there is one. Also sets torch's CPU threads.

    Raises:
        RuntimeError: A GPU is asked for and there is none.
    """
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    name = runtime.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RuntimeError(f"runtime.device is '{name}', but torch sees no GPU here; set it to auto or cpu")
    return torch.device(name)

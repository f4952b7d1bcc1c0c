"""Which device a process works on."""

import os

import torch

from xmodal_kedro.config.ensemble import RuntimeConfig
from xmodal_kedro.losses.gather import processes


def pick_device(runtime: RuntimeConfig) -> torch.device:
    """The device that `runtime` asks for; `auto` takes a GPU when there is one. Also sets torch's CPU threads.

    Processes that train together take one GPU each, in the order of their ranks.

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
    if name == "cuda" and processes() > 1:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    return torch.device(name)


def count_processes(runtime: RuntimeConfig) -> int:
    """How many processes train a member: `auto` is one per GPU, and one where there is none.

    Raises:
        ValueError: There are fewer GPUs than processes.
    """
    gpus = 0
    if runtime.device in ("auto", "cuda"):
        gpus = torch.cuda.device_count()
    elif runtime.device.startswith("cuda"):
        gpus = 1  # that one
    if runtime.processes == "auto":
        return max(1, gpus)
    if 0 < gpus < runtime.processes:
        raise ValueError(
            f"runtime.processes is {runtime.processes}, but with runtime.device '{runtime.device}' there are {gpus} "
            "GPUs for them, and each takes one: lower it, set it to auto, or set runtime.device to cpu"
        )
    return runtime.processes

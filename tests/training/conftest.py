"""One thread: these models are too small to share, and results to the bit must not depend on the machine."""

import torch

torch.set_num_threads(1)

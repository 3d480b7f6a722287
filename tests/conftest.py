"""What all tests share: no deadline for hypothesis, one thread for torch."""

import torch
from hypothesis import settings

settings.register_profile("opdprobe", deadline=None)
settings.load_profile("opdprobe")
torch.set_num_threads(1)

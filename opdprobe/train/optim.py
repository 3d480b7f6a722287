"""Optimiser, schedule and clipping: what the three trainers share."""

from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from opdprobe.errors import NonFiniteError


class Optimization:
    """AdamW, or Muon for matrices with AdamW for the rest, under one schedule.

    Parameters
    ----------
    model
        Its trainable parameters are updated.
    learning_rate, weight_decay, max_grad_norm
        Of AdamW; the norm is global.
    schedule
        A name transformers' `get_scheduler` knows.
    total_steps, warmup_steps
        Of the schedule.
    muon_learning_rate
        If given, the matrices inside the layers are trained with Muon at this rate.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        total_steps: int,
        warmup_steps: int = 0,
        schedule: str = "constant",
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        muon_learning_rate: float | None = None,
    ):
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self._parameters = [p for _, p in named]
        self._max_grad_norm = max_grad_norm
        # Matrices between hidden states; embeddings and head are lookup tables, which Muon's
        # orthogonalised updates do not suit.
        matrices = {n for n, p in named if p.ndim == 2 and ".layers." in n}
        if muon_learning_rate is None:
            matrices = set()
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [p for n, p in named if n not in matrices],
                lr=learning_rate,
                weight_decay=weight_decay,
            )
        ]
        if muon_learning_rate is not None:
            self.optimizers.append(
                torch.optim.Muon(
                    [p for n, p in named if n in matrices],
                    lr=muon_learning_rate,
                    weight_decay=weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if schedule == "constant" and warmup_steps:
            schedule = "constant_with_warmup"  # transformers' "constant" ignores the warm-up
        self._schedulers = [
            get_scheduler(
                schedule, o, num_warmup_steps=warmup_steps, num_training_steps=total_steps
            )
            for o in self.optimizers
        ]

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self.optimizers[0].param_groups[0]["lr"]

    def step(self) -> float:
        """Clip, update, advance the schedule, clear gradients.

        Returns
        -------
        float
            Global gradient norm before clipping.

        Raises
        ------
        NonFiniteError
            If the norm is NaN or infinite; no weight was changed.
        """
        norm = float(nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm))
        if not norm < float("inf"):
            raise NonFiniteError(f"the gradient norm is {norm}; the weights were left unchanged.")
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for scheduler in self._schedulers:
            scheduler.step()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to go on bit for bit."""
        return {
            "optimizers": [o.state_dict() for o in self.optimizers],
            "schedulers": [s.state_dict() for s in self._schedulers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for scheduler, saved in zip(self._schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)

"""Optimiser, schedule and clipping: what the three trainers share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_scheduler

from opdprobe.errors import ConfigError, NonFiniteError
from opdprobe.models.devices import is_out_of_memory, out_of_memory, reason_of, resolve_dtype
from opdprobe.models.sharding import full, on_main, part


def refuse_float16(dtype: torch.dtype | str | None) -> None:
    """Refuse float16 for a student that is to be trained.

    Parameters
    ----------
    dtype
        As for `opdprobe.load_model`.

    Raises
    ------
    ConfigError
        It is float16, or no dtype of weights.
    """
    if resolve_dtype(dtype) == torch.float16:
        raise ConfigError(
            "dtype = float16: the student is to be trained, and the loss is not scaled, so that "
            "small gradients underflow to zero in float16; expected float32 or bfloat16 (auto, if "
            "it was saved in one of these)."
        )


class Optimization:
    """AdamW, or Muon for matrices with AdamW for the rest, under one schedule.

    A parameter in bfloat16 is trained as a float32 copy and set to it after each step.
    With its 8 significant bits it would otherwise never change: a step at the paper's
    learning rate is less than half of the last bit.

    With a sharded model, each process keeps and updates only its shards, with their optimiser
    states and copies.

    Parameters
    ----------
    model
        Its trainable parameters are updated.
    learning_rate, weight_decay, max_grad_norm
        AdamW's settings; the norm is global.
    schedule
        One of the names that transformers' `get_scheduler` takes.
    total_steps, warmup_steps
        Length of the schedule and of its warm-up.
    muon_learning_rate
        If given, the matrices inside the layers are trained with Muon at this rate.

    Raises
    ------
    ConfigError
        The model has no trainable parameter, or it is in float16.
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
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        if not trained:
            raise ConfigError(
                f"{type(model).__name__} has no trainable parameter: all have requires_grad=False. "
                "Set it to True for some, or add an adapter."
            )
        if any(weight.dtype == torch.float16 for weight in model.parameters()):
            refuse_float16(torch.float16)
        named = [(n, _at_least_float32(p)) for n, p in trained]
        self._weights = [p for _, p in trained]
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
                fused=True,  # one pass over the weights instead of a dozen
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

    def collect(self) -> list[Tensor]:
        """Return the trained tensors, with all gradients so far in `grad`.

        These are the model's parameters, or their float32 copies, to which the gradients move.
        Call this after each micro-batch, so that gradients add up in float32.
        """
        for weight, parameter in self._copied():
            if weight.grad is not None:
                grad = weight.grad.float()
                parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)
                weight.grad = None
        return self._parameters

    def zero_grad(self) -> None:
        """Clear all gradients."""
        for tensor in (*self._weights, *self._parameters):
            tensor.grad = None

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
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
        OutOfMemoryError
            There is no room for the optimiser's states.
        """
        norm = float(full(nn.utils.clip_grad_norm_(self.collect(), self._max_grad_norm)))
        if not norm < float("inf"):
            raise NonFiniteError(f"the gradient norm is {norm}; the weights were left unchanged.")
        try:
            for optimizer in self.optimizers:
                optimizer.step()
        except Exception as error:
            if is_out_of_memory(error):
                raise out_of_memory(
                    "the optimiser's states",
                    "train a smaller student, an adapter, or in shards (FSDP)",
                    reason_of(error),
                ) from error
            raise
        self.zero_grad()
        for scheduler in self._schedulers:
            scheduler.step()
        for weight, parameter in self._copied():
            weight.data.copy_(parameter)
        return norm

    def _copied(self) -> list[tuple[Tensor, Tensor]]:
        pairs = zip(self._weights, self._parameters, strict=True)
        return [(weight, parameter) for weight, parameter in pairs if weight is not parameter]

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to continue bit for bit.

        Tensors of a sharded model are gathered: all processes must call this; process 0 gets them.
        """
        return {
            "optimizers": [
                _mapped(o.state_dict(), lambda _, state: on_main(state)) for o in self.optimizers
            ],
            "schedulers": [s.state_dict() for s in self._schedulers],
            "float32": [on_main(parameter) for _, parameter in self._copied()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            numbered = dict(enumerate(p for g in optimizer.param_groups for p in g["params"]))
            optimizer.load_state_dict(
                _mapped(saved, lambda i, state, to=numbered: part(state, to.get(i, state)))
            )
        for scheduler, saved in zip(self._schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        for (_, parameter), saved in zip(self._copied(), state["float32"], strict=True):
            parameter.copy_(part(saved, parameter))


def _mapped(state: dict[str, Any], change: Callable[[int, Tensor], Tensor]) -> dict[str, Any]:
    """Apply `change` to each tensor of an optimiser's state, with the number of its parameter."""
    per_parameter = {
        i: {
            # A tensor without axes is a number of steps.
            name: change(i, value) if isinstance(value, Tensor) and value.ndim else value
            for name, value in values.items()
        }
        for i, values in state["state"].items()
    }
    return state | {"state": per_parameter}


def _at_least_float32(parameter: Tensor) -> Tensor:
    return parameter.detach().float() if parameter.dtype == torch.bfloat16 else parameter

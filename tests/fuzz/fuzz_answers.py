"""Fuzzing of what reads the answers of a server.

    python tests/fuzz/fuzz_answers.py --seconds 600

The first byte of an input says which answer the rest is: the list of models, a sampled response,
the log-probabilities of a text, or a text's tokens.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.request import Request

import run_fuzzer

with run_fuzzer.instrumented():
    from opdprobe.errors import OPDProbeError
    from opdprobe.hooks.served.connection import Connection
    from opdprobe.hooks.served.model import ServedModel
    from opdprobe.rollout.sample import Rollouts

MODELS = json.dumps({"data": [{"id": "m", "max_model_len": 100}]}).encode()
ENTRY = {str(token): {"logprob": -1.0 - token / 8, "rank": 1} for token in (3, 4, 5, 8)}
CHOICE = {"index": 0, "text": "9", "token_ids": [8, 2], "finish_reason": "stop"}
SAMPLED = {"choices": [CHOICE]}
TOLD = {"choices": [{"index": 0, "text": "", "prompt_logprobs": [None, ENTRY, ENTRY]}]}
ANSWERS = [MODELS, *(json.dumps(a).encode() for a in (SAMPLED, TOLD, {"tokens": [7, 8]}))]


@dataclass(frozen=True)
class Fixed(Connection):
    """Gives one answer to every request but the first, for the models, unless it is that one."""

    answer: bytes = b""
    is_list: bool = False

    def _answer(self, request: Request, *limits: Any) -> bytes:
        if request.full_url.endswith("/models") and not self.is_list:
            return MODELS
        return self.answer


def seeds() -> Iterator[bytes]:
    """An honest answer of each kind."""
    for number, answer in enumerate(ANSWERS):
        yield bytes([number]) + answer


def one_input(data: bytes) -> None:
    """Ask; whatever is wrong with the answer must be an opdprobe error."""
    if not data:
        return
    kind = data[0] % len(ANSWERS)
    said = ""
    connection = Fixed(tries=1, backoff=0, answer=data[1:], is_list=kind == 0)
    try:
        model = ServedModel("http://localhost:1/v1", connection)
        if kind == 1:
            model.sample([[7]], num_generations=1, max_completion_length=2, seed=[0])
        elif kind == 2:
            model.tell(Rollouts([[7]], [[8, 3]], [True], [0]), k=2, width=64)
        elif kind == 3:
            model.tokenize("7 8")
    except OPDProbeError as error:
        said = str(error)
    assert len(said) < 3000 + len(data) / 2, "a message far longer than its cause"


if __name__ == "__main__":
    run_fuzzer.main(one_input, seeds)

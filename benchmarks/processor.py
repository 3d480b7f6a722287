"""Which choices depend on the processor: each beside its alternatives.

    python benchmarks/processor.py           # about five minutes

Three constants and one switch of the scoring and sampling code were chosen by measurement: how
large a tile of logits is, how many tokens a pile has, whether NumPy sorts short rows, and for how
many rows weights are packed. This measures every one of them here with other values, in turn, in
CPU time of one thread: the ratio of a round's time to that of the chosen value (median, least and
most of the rounds; below 1 is faster than what was chosen). Run it on another processor to see
whether the choices hold there.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from opdprobe.models.head import Head
from opdprobe.rollout import packed_weights, tiles, top_tokens
from opdprobe.rollout.score import score

K = 16
ROUNDS = 7


@contextmanager
def constant(module: object, name: str, value: object) -> Iterator[None]:
    """Set a module's constant for a while."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def compare(contenders: Mapping[str, Callable[[], object]], chosen: str) -> dict[str, list[float]]:
    """Time contenders in turn; return the ratios of each round to the chosen one's time."""
    ratios: dict[str, list[float]] = {which: [] for which in contenders}
    for round_ in range(ROUNDS + 1):
        seconds = {}
        for which, work in contenders.items():
            start = time.process_time()
            work()
            seconds[which] = time.process_time() - start
        if round_:  # the first warms up
            for which, found in seconds.items():
                ratios[which].append(found / seconds[chosen])
    return ratios


def show(what: str, ratios: Mapping[str, list[float]], chosen: str) -> None:
    """Print one row per value."""
    for which, found in ratios.items():
        mark = " (chosen)" if which == chosen else ""
        middle, least, most = statistics.median(found), min(found), max(found)
        print(f"| {what} | {which}{mark} | {middle:.2f} ({least:.2f}–{most:.2f}) |", flush=True)


def scoring(vocabulary: int, width: int, n_states: int, repeats: int) -> Callable[[], None]:
    """Score random states with two random heads."""
    heads = [Head(nn.Linear(width, vocabulary, bias=False), vocabulary) for _ in range(2)]
    student, teacher = torch.randn(2, n_states, width)
    sampled = torch.zeros(n_states, dtype=torch.long)

    def work() -> None:
        with torch.no_grad():
            for _ in range(repeats):
                score(student, teacher, heads[0], heads[1], sampled, k=K)

    return work


def with_constant(
    module: object, name: str, value: object, work: Callable[[], None]
) -> Callable[[], None]:
    """Do some work with another value of a constant."""

    def changed() -> None:
        with constant(module, name, value):
            work()

    return changed


def packing() -> None:
    """Products with packed weights against the layers' own, by rows."""
    layers = nn.ModuleList(nn.Linear(576, 1536, bias=False) for _ in range(60))  # 212 MB
    for rows in (1, 2, 3, 4, 8, 16, 32, 48, 64, 128):
        x = torch.randn(rows, 576)

        def plain(x: torch.Tensor = x) -> None:
            with torch.no_grad():
                for layer in layers:
                    layer(x)

        with (
            constant(packed_weights, "packs", lambda rows: True),
            torch.no_grad(),
            packed_weights.packed_weights(layers, rows),
        ):
            packed = [vars(layer)["forward"] for layer in layers]
        chosen = "packed" if packed_weights.packs(rows) else "plain"
        contenders = {"plain": plain, "packed": lambda x=x, f=packed: [one(x) for one in f]}
        show(f"weights for {rows} rows", compare(contenders, chosen), chosen)


def main() -> None:
    """Print one row per choice and value."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch works with {torch.backends.cpu.get_cpu_capability()}\n")
    print("| choice | value | time against the chosen |")
    print("|---|---|---|")
    wide = {
        "V = 151,936, D = 64": scoring(151_936, 64, 256, 1),
        "V = 49,152, D = 576": scoring(49_152, 576, 256, 1),
    }
    for name, work in wide.items():
        sizes = [2**n for n in range(14, 21)]
        contenders = {
            f"{4 * n // 1024} KiB": with_constant(tiles, "_TILE_ELEMENTS", n, work) for n in sizes
        }
        chosen = f"{4 * tiles._TILE_ELEMENTS // 1024} KiB"
        show(f"tile, {name}", compare(contenders, chosen), chosen)
        piles = {str(n): with_constant(top_tokens, "_PILE", n, work) for n in (8, 16, 32, 64)}
        chosen = str(top_tokens._PILE)
        show(f"tokens in a pile, {name}", compare(piles, chosen), chosen)
    for vocabulary in (512, 4096):
        work = scoring(vocabulary, 64, 2048, 2)
        sorts = {
            which: with_constant(top_tokens, "_SHORT", limit, work)
            for which, limit in (("NumPy's sort", top_tokens._SHORT), ("topk", 0))
        }
        show(f"short rows, V = {vocabulary:,}", compare(sorts, "NumPy's sort"), "NumPy's sort")
    packing()


if __name__ == "__main__":
    main()

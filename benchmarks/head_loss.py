"""Output head and loss alone, forward and backward: ours, TRL's chunked loss, and a naive one.

    python benchmarks/head_loss.py                                  # about 25 minutes
    python benchmarks/head_loss.py --rows 1024 --hidden 576 --rounds 1

Each contender goes from the hidden states of N states and two heads of V x D to the gradients of
the student's hidden states and head:

* topk: both models' top 16, entropies, normalisers and KL, then the loss of Eq. 5 (`score`,
  `distillation_loss`);
* full: reverse KL over the full vocabulary (`full_divergence`);
* TRL: `_chunked_divergence_loss`, reverse KL over the full vocabulary;
* naive: both (N, V) logits at once, log-softmax, autograd (up to NAIVE_ROWS rows).

Contenders run in turn, in fresh processes of one thread. Extra memory is the peak minus what the
process held before. The limit is the time of the matrix products alone, two for topk and four for
full, at the speed of one large product measured in the same run.
"""

import argparse
import json
import resource
import statistics
import time

from fresh import fresh

VOCABULARY = 151_936
K = 16
# Six copies of the float32 logits of more rows than this do not fit in most machines.
NAIVE_ROWS = 1024


def measure(contender: str, rows: int, width: int) -> dict[str, float]:
    """Time one contender in this process."""
    import torch
    from torch import nn

    from opdprobe.models.head import Head
    from opdprobe.rollout.pair import Scored
    from opdprobe.rollout.score import score
    from opdprobe.train.full_vocabulary import full_divergence
    from opdprobe.train.losses import distillation_loss

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [nn.Linear(width, VOCABULARY, bias=False) for _ in range(2)]
    layers[1].requires_grad_(False)
    heads = [Head(layer, VOCABULARY) for layer in layers]
    hidden = torch.randn(rows, width, requires_grad=True)
    teacher_hidden = torch.randn(rows, width)

    def topk():
        from types import SimpleNamespace

        from opdprobe import OPDConfig

        sampled = torch.zeros(rows, dtype=torch.long)
        scores = score(hidden, teacher_hidden, *heads, sampled, k=K)
        batch = SimpleNamespace(sampled_ids=sampled)
        pair = SimpleNamespace(student_head=heads[0], teacher_head=heads[1])
        part = Scored(batch, hidden, teacher_hidden, scores)
        distillation_loss(part, pair, OPDConfig(k=K)).backward()

    def full():
        full_divergence(hidden, teacher_hidden, *heads).backward()

    def trl():
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

        loss, *_ = _chunked_divergence_loss(
            hidden[None],
            teacher_hidden[None],
            layers[0].weight,
            layers[1].weight,
            torch.ones(1, rows, dtype=torch.long),
            beta=1.0,
        )
        loss.backward()

    def naive():
        logp = layers[0](hidden).log_softmax(-1)
        logq = layers[1](teacher_hidden).log_softmax(-1)
        (logp.exp() * (logp - logq)).sum().backward()

    a = torch.randn(256, width)
    start = time.perf_counter()
    for i in range(0, VOCABULARY, 1024):
        a @ layers[1].weight[i : i + 1024].T
    flops = 2 * a.numel() * VOCABULARY / (time.perf_counter() - start)

    run = {"topk": topk, "full": full, "trl": trl, "naive": naive}[contender]
    if contender == "trl":
        import trl.trainer.distillation_trainer  # not to be counted
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    run()
    return {
        "seconds": time.perf_counter() - start,
        "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "product": 2 * rows * width * VOCABULARY / flops,
    }


def main() -> None:
    """Print one row per shape and contender: medians, and ratios to TRL's in the same round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, action="append")
    parser.add_argument("--hidden", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        found = measure(arguments.measure, arguments.rows[0], arguments.hidden[0])
        return print(json.dumps(found))
    print(
        "| rows × width | | time, s | against TRL (min–max) | extra MiB | against TRL | limit, s |"
    )
    print("|---|---|---|---|---|---|---|")
    for width in arguments.hidden or (576, 1536):
        for rows in arguments.rows or (1024, 4096, 8192):
            contenders = ["topk", "full", "trl"] + ["naive"] * (rows <= NAIVE_ROWS)
            rounds = [
                {
                    c: fresh(__file__, "--measure", c, "--rows", rows, "--hidden", width)
                    for c in contenders
                }
                for _ in range(arguments.rounds)
            ]
            for c in contenders:
                seconds = statistics.median(r[c]["seconds"] for r in rounds)
                ratios = [r[c]["seconds"] / r["trl"]["seconds"] for r in rounds]
                mib = statistics.median(r[c]["mib"] for r in rounds)
                memory = statistics.median(r[c]["mib"] / r["trl"]["mib"] for r in rounds)
                products = {"topk": 2, "full": 4}.get(c, 0)
                limit = products * statistics.median(r[c]["product"] for r in rounds)
                print(
                    f"| {rows} × {width} | {c} | {seconds:.1f} | {statistics.median(ratios):.2f} "
                    f"({min(ratios):.2f}–{max(ratios):.2f}) | {mib:,.0f} | {memory:.2f} "
                    f"| {f'{limit:.1f}' if limit else ''} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()

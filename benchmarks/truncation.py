"""What does it do to each probe that a store holds k tokens instead of the vocabulary?

    python benchmarks/truncation.py                        # two pairs of the testbed: a minute
    python benchmarks/truncation.py --pair success=STUDENT,TEACHER --prompts real:train -n 24

Samples one rollout a prompt and computes each probe from lists of several lengths and from the
whole vocabulary, or its `MOST` most probable tokens, at the same states. The last column is the
rank correlation, over these states, of the value from k = 16 with that from the longest lists.
"""

import argparse
from collections.abc import Iterator

import numpy as np
import torch
import xarray as xr
from scipy.stats import spearmanr

from opdprobe.cli.names import resolve_model, resolve_prompts
from opdprobe.probes import from_logits
from opdprobe.probes.quantities import PER_STATE
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.prompts import encode_prompts
from opdprobe.train.losses import divergence, restrict

PAIRS = ("success=zoo:sft-small,zoo:rl-small", "failure=zoo:sft-small,zoo:sft-large")
KS = (8, 16, 64)
LOSS = "loss of Eq. 5"
MOST = 1024

Values = dict[int, dict[str, np.ndarray]]


def states(pair: Pair, source: str, n_prompts: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield, for each prompt, both models' logits at a rollout's states, and what was drawn."""
    torch.manual_seed(0)
    for prompt in encode_prompts(pair.tokenizer, resolve_prompts(source, n_prompts)[0]):
        ids = torch.tensor([prompt.ids])
        with torch.no_grad():
            whole = pair.student.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                max_new_tokens=64,
            )
            both = [
                model(whole).logits[0, ids.shape[1] - 1 : -1].float()
                for model in (pair.student, pair.teacher)
            ]
        width = min(logits.shape[-1] for logits in both)
        yield (*(logits[:, :width] for logits in both), whole[0, ids.shape[1] :])


def values(ds: xr.Dataset, logits: tuple[torch.Tensor, ...], k: int) -> dict[str, np.ndarray]:
    """Compute every probe of a step, and the loss on the student's k tokens."""
    found = {
        name: np.asarray(quantity.compute(ds))
        for name, quantity in PER_STATE.items()
        if quantity.needs in ds
    }
    logp = [part.log_softmax(-1) for part in logits]
    ids = logp[0].topk(k).indices
    inside = [
        restrict(part.gather(1, ids), torch.ones_like(ids) > 0, "renormalise") for part in logp
    ]
    return {**found, LOSS: divergence(*inside, "reverse_kl").numpy()}


def measure(names: tuple[str, ...], source: str, n_prompts: int) -> tuple[int, Values]:
    """Return the length of the longest lists, and by length of the lists each probe's values."""
    pair = Pair.load(*map(resolve_model, names), device="cpu")
    parts: dict[int, list[dict[str, np.ndarray]]] = {}
    for student, teacher, drawn in states(pair, source, n_prompts):
        longest = min(student.shape[-1], MOST)
        for k in (*KS, longest):
            ds = from_logits(student, teacher, k=k, sampled_ids=drawn)
            parts.setdefault(k, []).append(values(ds, (student, teacher), k))
    return longest, {
        k: {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}
        for k, rows in parts.items()
    }


def alike(few: np.ndarray, whole: np.ndarray) -> str:
    """Return the rank correlation of two probes' values, if both vary."""
    known = np.isfinite(few) & np.isfinite(whole)
    few, whole = few[known], whole[known]
    if len(few) < 3 or np.ptp(few) == 0 or np.ptp(whole) < 1e-5:
        return "–"
    return f"{spearmanr(few, whole).statistic:.3f}"


def main(pairs: list[str], source: str, n_prompts: int) -> None:
    """Print a row a probe and pair; none for a probe that the length does not change."""
    print(f"| probe | pair | {' | '.join(f'k = {k}' for k in KS)} | longest lists | ranks alike |")
    print("|---|---|" + "---|" * (len(KS) + 2))
    for given in pairs:
        label, names = given.split("=", 1)
        longest, found = measure(tuple(names.split(",")), source, n_prompts)
        for name, at_16 in found[16].items():
            rows = [found[k][name] for k in (*KS, longest)]
            if all(np.array_equal(row, at_16, equal_nan=True) for row in rows):
                continue
            means = " | ".join(f"{np.nanmean(row):.4g}" for row in rows)
            shown = name if name == LOSS else f"`{name}`"
            print(f"| {shown} | {label} | {means} | {alike(at_16, rows[-1])} |")
        print(f"{label}: {len(at_16)} states, {longest} tokens at most", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pair", action="append", help="LABEL=STUDENT,TEACHER")
    parser.add_argument("--prompts", default="zoo:train")
    parser.add_argument("-n", type=int, default=64, help="prompts")
    arguments = parser.parse_args()
    main(arguments.pair or list(PAIRS), arguments.prompts, arguments.n)

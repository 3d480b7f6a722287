"""What does it do to each diagnostic that a store holds k tokens instead of the vocabulary?

    python benchmarks/truncation.py          # a minute

Samples rollouts of two pairs of the zoo, whose vocabulary is small, and computes every diagnostic
from lists of several lengths and from the whole vocabulary.
"""

import numpy as np
import torch

from opdprobe.cli.names import resolve_model, resolve_prompts
from opdprobe.probes import from_logits
from opdprobe.probes.quantities import DIAGNOSTICS
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.prompts import encode_prompts

PAIRS = {"success": ("sft-small", "rl-small"), "failure": ("sft-small", "sft-large")}
KS = (8, 16, 64)
EXACT = frozenset(
    {
        "argmax_disagreement",
        "student_effective_support",
        "teacher_effective_support",
        "teacher_unsure",
        "positive_reward",
    }
)
"""What needs no list, or its first token only."""


def main(n_prompts: int = 64) -> None:
    """Print a row a diagnostic and pair."""
    print(f"| diagnostic | pair | {' | '.join(f'k = {k}' for k in KS)} | whole vocabulary |")
    print("|---|---|" + "---|" * (len(KS) + 1))
    for label, names in PAIRS.items():
        pair = Pair.load(*(resolve_model(f"zoo:{name}") for name in names), device="cpu")
        prompts = encode_prompts(pair.tokenizer, resolve_prompts("zoo:train", n_prompts)[0])
        torch.manual_seed(0)
        logits, drawn = [[], []], []
        for prompt in prompts:
            ids = torch.tensor([prompt.ids])
            with torch.no_grad():
                whole = pair.student.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=True,
                    top_k=0,
                    max_new_tokens=64,
                )
                for i, model in enumerate((pair.student, pair.teacher)):
                    logits[i].append(model(whole).logits[0, ids.shape[1] - 1 : -1])
            drawn.append(whole[0, ids.shape[1] :])
        width = min(part.shape[-1] for parts in logits for part in parts)
        both = [torch.cat(parts)[:, :width].float() for parts in logits]
        y = torch.cat(drawn)
        steps = {k: from_logits(*both, k=k, sampled_ids=y) for k in (*KS, width)}
        for name, quantity in DIAGNOSTICS.items():
            if name not in EXACT:
                means = [float(np.nanmean(quantity.compute(ds))) for ds in steps.values()]
                print(
                    f"| `{name}` | {label} | {' | '.join(f'{m:.4g}' for m in means)} |", flush=True
                )


if __name__ == "__main__":
    main()

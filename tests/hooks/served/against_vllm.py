"""Compare a real server's scores and samples of a model with the local model's.

    vllm serve opdprobe/testbed/models/rl-large --dtype float32 --max-logprobs 64 \
        --max-model-len 256 --no-enable-prefix-caching
    python tests/hooks/served/against_vllm.py 'http://127.0.0.1:8000/v1' zoo:rl-large --k 64

Rollouts of the server's model are scored by the server and locally, both in float32, and the
largest differences are printed. Ids may differ only if two tokens are about equally probable. The
script fails if a difference is above the tolerance, a response does not end as the server reports,
or the tokens drawn at a state do not have the expected frequencies.
"""

import argparse
import sys

import numpy as np
import torch

from opdprobe.cli.names import resolve_model, resolve_prompts
from opdprobe.hooks.served import ServedModel
from opdprobe.hooks.served.scores import vocabulary_width
from opdprobe.models.load import load_model, load_tokenizer
from opdprobe.models.vocabulary import eos_ids
from opdprobe.rollout.prompts import encode_prompts
from opdprobe.rollout.sample import Rollouts


@torch.no_grad()
def local_logp(model, rollouts, width):
    """Log-probabilities of the full vocabulary at every state, one text at a time."""
    rows = []
    for prompt, response in zip(rollouts.prompt_ids, rollouts.response_ids, strict=True):
        logits = model(torch.tensor([[*prompt, *response]])).logits[0, :, :width]
        rows.append(logits[len(prompt) - 1 : -1].double().log_softmax(-1))
    return torch.cat(rows).numpy()


def compare_scores(told, logp, rollouts, tolerance):
    """Print the largest differences; return whether they are within the tolerance."""
    k = told.token_id.shape[1]
    best = np.argsort(-logp, axis=1, kind="stable")[:, :k]
    at_theirs = np.take_along_axis(logp, told.token_id, 1)
    drawn = np.concatenate([np.array(ids) for ids in rollouts.response_ids])
    own = logp[np.arange(len(logp)), drawn]
    differ = best != told.token_id
    # Where the order differs: how much less probable is the server's token at that rank locally?
    gap = np.abs(np.take_along_axis(logp, best, 1) - at_theirs)[differ].max(initial=0)
    listed = np.abs(told.logp - at_theirs).max()
    sampled = np.abs(told.sampled_logp - own).max()
    print(f"states                           {len(logp)}, k = {k}")
    print(f"top-k log-probabilities, nats    {listed:.2e}")
    print(f"drawn token's, nats              {sampled:.2e}")
    print(f"ids that differ                  {differ.sum()} of {differ.size}, by {gap:.2e} nats")
    return max(listed, sampled, gap) <= tolerance


def compare_given(served, logp, rollouts, k, tolerance):
    """Have given tokens scored, half of them improbable; return whether they agree, if known."""
    ids = np.argsort(-logp, axis=1, kind="stable")[:, :k]
    ids = np.concatenate([ids, np.random.default_rng(0).integers(logp.shape[1], size=ids.shape)], 1)
    found = served.tell_at(rollouts, ids)
    if found is None:
        print("given tokens                     this server does not score them")
        return True
    error = np.abs(found - np.take_along_axis(logp, ids, 1)).max()
    print(f"{ids.size} given tokens, nats".ljust(33) + f"{error:.2e}")
    return error <= tolerance


def compare_samples(served, model, width, prompt, n):
    """Draw next tokens and compare their frequencies with the model's; return whether they fit."""
    drawn = served.sample([prompt], num_generations=n, max_completion_length=1, seed=[0])
    again = served.sample([prompt], num_generations=n, max_completion_length=1, seed=[0])
    p = np.exp(local_logp(model, Rollouts([prompt], [[0]], [False], [0]), width))[0]
    seen = np.bincount([ids[0] for ids in drawn.response_ids], minlength=width)
    often = n * p > 5
    error = np.abs((seen - n * p) / np.sqrt(n * p * (1 - p)))[often].max(initial=0)
    print(f"{n} tokens of a state, z         {error:.2f} at most, {often.sum()} tokens")
    print(f"the same seed draws the same     {'yes' if again == drawn else 'no'}")
    return error < 5


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", help="http://HOST:8000/v1#NAME")
    parser.add_argument("model", help="the directory that is served, or zoo:NAME")
    parser.add_argument("--prompts", default="zoo:train", help="zoo:SPLIT or a file")
    parser.add_argument("--limit", type=int, default=16, help="prompts")
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--max-completion-length", type=int, default=64)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="nats")
    arguments = parser.parse_args()

    served = ServedModel(arguments.address)
    path = resolve_model(arguments.model)
    model, tokenizer = load_model(path), load_tokenizer(path)
    prompts, _ = resolve_prompts(arguments.prompts, arguments.limit)
    ids = [prompt.ids for prompt in encode_prompts(tokenizer, prompts)]
    width = vocabulary_width(tokenizer, {"local model": model})

    rollouts = served.sample(
        ids, num_generations=2, max_completion_length=arguments.max_completion_length, seed=[0]
    )
    stops = eos_ids(model, tokenizer)
    ends = [
        finished == (response[-1] in stops)
        and not set(response[:-1]) & set(stops)
        and (finished or len(response) == arguments.max_completion_length)
        for response, finished in zip(rollouts.response_ids, rollouts.finished, strict=True)
    ]
    print(
        f"responses that end as they say   {sum(ends)} of {len(ends)}, {sum(rollouts.finished)} "
        "finished"
    )
    told = served.tell(rollouts, k=arguments.k, width=width)
    logp = local_logp(model, rollouts, width)
    fine = compare_scores(told, logp, rollouts, arguments.tolerance)
    fine &= compare_given(served, logp, rollouts, arguments.k, arguments.tolerance)
    said = np.concatenate([np.array(row) for row in rollouts.sampler_logp or [[np.nan]]])
    drawn = np.concatenate([np.array(row) for row in rollouts.response_ids])
    error = np.abs(said - logp[np.arange(len(logp)), drawn]).max()
    print(f"drawn token's, by the sampler    {error:.2e}")
    fine &= error <= arguments.tolerance
    # Taken where the model is least certain: elsewhere, a second token is rarely drawn.
    entropy = -(np.exp(logp) * logp).sum(1)
    before = [
        [*prompt, *response[:at]]
        for prompt, response in zip(rollouts.prompt_ids, rollouts.response_ids, strict=True)
        for at in range(len(response))
    ]
    fine &= compare_samples(served, model, width, before[entropy.argmax()], 1000)
    return 0 if fine and all(ends) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Small dumps of every format, in the fields and types that its writer has.

TRL's own log is made by TRL itself, in `test_trl_dump.py`; the others follow what the writers' code
says. Token ids are those of `opdprobe.testing.tiny_tokenizer`: "7" is 13.
"""

import csv
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

PROMPT = [1, 4, 13, 14, 5]  # <bos> <user> 7 8 <assistant>
RESPONSE = [15, 16, 2]  # 9 10 <eos>
LOGP = [-0.5, -1.0, -0.25]
TEACHER = [-0.75, -0.5, -0.125]
TEXT = "<bos> <user> 7 8 <assistant>"
ASKED = [{"role": "user", "content": "7 8"}]


def lines(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def saved(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
    return path


def verl(folder):
    # The chat template's own texts stay when special tokens go: here there are none.
    for step in (1, 2):
        rows = [
            {"input": "7 8", "output": text, "gts": "9", "score": score, "step": step, "acc": score}
            for text, score in (("9 10", 1.0), ("11", 0.0))
        ]
        lines(folder / f"{step}.jsonl", rows)
    return folder


def verl_generation(folder):
    row = {
        "data_source": "sums",
        "prompt": ASKED,
        "reward_model": {"ground_truth": "9"},
        "responses": ["9 10", "11"],
    }
    return parquet(folder / "generated_step_1.parquet", [row])


def trl(folder):
    for step in (1, 2):
        rows = [
            {
                "step": step,
                "prompt": ASKED,
                "completion": [{"role": "assistant", "content": text}],
                "accuracy": score,
                "advantage": 0.5,
            }
            for text, score in (("9 10", 1.0), ("11", 0.0))
        ]
        parquet(folder / "completions" / f"completions_{step:05d}.parquet", rows)
    return folder


def ms_swift(folder):
    rows = [
        {"step": [step] * 2, "prompt": [TEXT] * 2, "completion": ["9 10", "11"], "Acc": [1.0, 0.0]}
        for step in ("1", "2")
    ]
    return lines(folder / "completions.jsonl", rows)


def _sample(**more):
    return {
        "group_index": 0,
        "index": 0,
        "rollout_id": None,
        "prompt": ASKED,
        "tokens": PROMPT + RESPONSE,
        "response": "9 10",
        "response_length": 3,
        "label": "9",
        "loss_mask": [1, 1, 1],
        "rollout_log_probs": LOGP,
        "teacher_log_probs": None,
        "reward": {"meta_info": _answered("input_token_logprobs", _scored())},
        "status": "completed",
        "metadata": {},
        **more,
    }


def _scored():
    return [[logp, token, None] for logp, token in zip(TEACHER, RESPONSE, strict=True)]


def _answered(name, values):
    """SGLang answers for the whole text; the first place stands for no token."""
    before = [None, *([[-9.0, 0, None]] * (len(PROMPT) - 1))]
    if name != "input_token_logprobs":
        before = [None, *([[]] * (len(PROMPT) - 1))]
    return {name: [*before, *values]}


def slime(folder):
    for step in (0, 1):
        samples = [
            _sample(),
            _sample(loss_mask=[1, 0, 1], reward=1.0, status="truncated", index=1),
        ]
        saved(folder / "rollout_data" / f"{step}.pt", {"rollout_id": step, "samples": samples})
    saved(folder / "rollout_data" / "eval_0.pt", {"rollout_id": 0, "samples": [_sample()]})
    return folder


def slime_train(folder):
    sample = {
        "sample_index": 0,
        "tokens": torch.tensor(PROMPT + RESPONSE),
        "response_lengths": 3,
        "total_lengths": 8,
        "loss_masks": torch.tensor([1, 1, 1]),
        "rewards": 0.5,
        "log_probs": torch.tensor(LOGP),
        "teacher_log_probs": torch.tensor(TEACHER),
        "rollout_log_probs": torch.tensor(LOGP) - 0.125,
    }
    for step in (0, 1):
        whole = {"format_version": 2, "rollout_id": step, "rank": 0, "samples": [sample] * 2}
        saved(folder / "train_data" / f"{step}.pt", whole)
    return folder


# Lists of 2 at each of 3 places: [log-probability, id, text], as SGLang writes them.
STUDENT_TOP = [
    [[-0.5, 15, None], [-1.5, 17, None]],
    [[-0.75, 18, None], [-1.0, 16, None]],
    [[-0.25, 2, None], [-2.0, 15, None]],
]
TEACHER_TOP = [
    [[-0.6875, 17, None], [-0.75, 15, None]],
    [[-0.5, 16, None], [-1.5, 19, None]],
    [[-0.125, 2, None], [-3.0, 20, None]],
]
# What each model gives to the other's tokens, for some also where it is not in the lists.
TEACHER_ON = [[[-0.75, 15, ""], [-0.6875, 17, ""]], [[-4.0, 18, ""]], [[-5.0, 15, ""]]]
STUDENT_ON = [[[-0.5, 15, ""], [-1.5, 17, ""]], [[-6.0, 19, ""]], [[-7.0, 20, ""]]]


def miles(folder):
    teacher = {
        **_answered("input_token_logprobs", _scored()),
        **_answered("input_top_logprobs", TEACHER_TOP),
        **_answered("input_token_ids_logprobs", TEACHER_ON),
    }
    reward = {
        "teacher": {"meta_info": teacher},
        "student_on_teacher": {"meta_info": _answered("input_token_ids_logprobs", STUDENT_ON)},
    }
    sample = _sample(reward=reward, metadata={"opd_student_top_logprobs": STUDENT_TOP})
    for step in (0, 1):
        saved(
            folder / "rollout_data" / f"{step}.pt",
            {"rollout_id": step, "metadata": {}, "samples": [sample] * 2},
        )
    return folder


def miles_dashboard(folder):
    row = {
        "sample_index": 0,
        "response_length": 3,
        "total_length": 8,
        "tokens": PROMPT + RESPONSE,
        "loss_mask": [1, 0, 1],
        "rollout_log_probs": LOGP,
    }
    for step in (0, 1):
        parquet(folder / "dashboard_columns" / f"rollout_{step}.parquet", [row] * 2)
    return folder


def prime_rl(folder):
    row = {
        "schema_version": 1,
        "step": 3,
        "rank": 0,
        "micro_step": 0,
        "export_sequence_idx": 0,
        "env_name": "math",
        "token_ids": [*PROMPT, *RESPONSE, 0],
        "position_ids": list(range(9)),
        "loss_mask": [False] * 5 + [True, False, True, False],
        "advantages": [0.5] * 9,
        "inference_logprobs": [0.0] * 5 + [*LOGP, 0.0],
        "trainer_logprobs": [None, *[-0.1] * 4, *TEACHER, -0.1],
        "entropy": [1.0] * 9,
    }
    for rank in (0, 1):
        lines(folder / "token_exports" / "step_3" / f"rank_{rank}.jsonl", [row])
    (folder / "token_exports" / "step_3" / "STABLE").touch()
    return folder


def verifiers(folder):
    def node(parent, ids, **more):
        return {"parent": parent, "message": {}, "sampled": bool(more), "token_ids": ids, **more}

    drawn = {
        "mask": [False, True, True],
        "logprobs": [-0.5, -1.0],
        "reference_logprobs": [-0.75, -0.5],
    }
    last = {"mask": [False, True], "logprobs": [-0.25], "reference_logprobs": [-0.125]}
    trace = {
        "id": "t",
        "nodes": [
            {**node(None, [1, 4, 13, 14]), "mask": [False] * 4},
            node(0, [5, 15, 16], **drawn),  # a turn
            {**node(1, [4, 17]), "mask": [False] * 2},  # what a tool said
            node(2, [5, 2], **last),
            node(0, [5, 18, 2], **drawn),  # another branch
        ],
        "calls": [{"node": 1, "finish_reason": "tool_calls"}, {"node": 3, "finish_reason": "stop"}],
        "rewards": {"right": {"score": 1.0, "weight": 1.0}, "format": {"score": 0.5, "weight": 0}},
        "stop_condition": None,
    }
    episode = {"id": "e", "env": {"id": "gsm8k"}, "task": {}, "ok": True, "traces": [trace]}
    folder = folder / "rollouts"
    for subset in ("all", "effective"):
        lines(folder / "step_4" / "train" / subset / "traces.jsonl", [episode])
    return folder


def nemo_rl(folder):
    row = {
        "content": [["7 8", "9 10"]],
        "rewards": [1.0],
        "input_lengths": [8],
        "token_ids": [[*PROMPT, *RESPONSE, 0, 0]],
        "token_loss_mask": [[0] * 5 + [1] * 3 + [0, 0]],
        "sample_loss_mask": [1.0],
        "advantages": [[0.5] * 10],
        "generation_logprobs": [[0.0] * 5 + [*LOGP, 0.0, 0.0]],
        "prev_logprobs": [[0.0] * 5 + [*TEACHER, 0.0, 0.0]],
        "idx": 0,
    }
    for step in (1, 2):
        lines(folder / f"train_data_step{step}.jsonl", [row, {**row, "idx": 1}])
    return folder


def nemo_rl_distillation(folder):
    row = {"content": [[TEXT, "9 10 <eos>"]], "input_lengths": [8], "idx": 0}
    for step in (1, 2):
        lines(folder / f"train_data_step{step}.jsonl", [row, row])
    return folder


def open_instruct(folder):
    def row(step, **more):
        return {
            "step": step,
            "sample_idx": 0,
            "prompt_idx": 0,
            "prompt_tokens": PROMPT,
            "response_tokens": RESPONSE,
            "reward": 10.0,
            "advantage": 0.5,
            "finish_reason": "stop",
            "dataset": "gsm8k",
            "ground_truth": "9",
            "request_info": {"num_calls": 0},
            "logprobs": LOGP,
            **more,
        }

    lines(folder / "run_metadata.jsonl", [{"run_name": "run", "model_name": "m"}])
    lines(
        folder / "run_rollouts_000000.jsonl",
        [row(1), row(1, finish_reason="length", reward=0), row(2)],
    )
    lines(folder / "run_rollouts_000001.jsonl", [row(2, logprobs=None), row(3)])
    return folder


def tinker(folder):
    def row(iteration):
        return {
            "kind": "sample",
            "scope": {"run_id": "r", "split": "train", "iteration": iteration, "group_idx": 0},
            "prompt_tokens": PROMPT,
            "samples": [
                {"tokens": RESPONSE, "logprobs": LOGP, "stop_reason": "stop"},
                {"tokens": [15, 16], "logprobs": LOGP[:2], "stop_reason": "length"},
            ],
            "status": "ok",
        }

    failed = {**row(0), "status": "error", "samples": None}
    return lines(folder / "capture" / "sample.jsonl", [row(0), failed, row(1)])


def areal(folder):
    row = {
        "task_id": 7,
        "sample_idx": 0,
        "seqlen": 8,
        "prompt_len": 5,
        "head_version": 0,
        "tail_version": 1,
        "reward": 1.0,
        "prompt": TEXT,
        "completion": "9 10 <eos>",
    }
    for version in (1, 2):
        lines(folder / "rollout" / f"{version}" / "7.jsonl", [{**row, "tail_version": version}] * 2)
    lines(folder / "eval-rollout" / "1" / "3.jsonl", [row])
    return folder


def skyrl(folder):
    row = {
        "input_prompt": TEXT,
        "output_response": "9 10 <eos>",
        "score": 1.0,
        "stop_reason": "stop",
        "env_class": "gsm8k",
        "env_extras": {},
        "data_source": "gsm8k",
    }
    folder = folder / "global_step_5_evals"
    lines(folder / "aggregated_results.jsonl", [{"eval/all": 0.5}])
    lines(folder / "gsm8k.jsonl", [row, {**row, "score": [0.0, 1.0], "stop_reason": "length"}])
    return folder


def thunlp_eval(folder):
    row = {"example_id": 0, "prompt": "7 8", "answer": "9", "seed": 3, "response": "9 10"}
    return lines(folder / "step_100.jsonl", [row, {**row, "seed": 4}])


def thunlp_rollout(folder):
    messages = [*ASKED, {"role": "assistant", "content": "9 10"}]
    return lines(folder / "step_0.jsonl", [{"messages": messages}] * 2)


def lm_eval(folder):
    row = {
        "doc_id": 3,
        "doc": {"question": "7 8"},
        "target": "9",
        "arguments": {"gen_args_0": {"arg_0": TEXT, "arg_1": {"until": []}}},
        "resps": [["9 10", "11"]],
        "filtered_resps": ["9"],
        "filter": "strict-match",
        "metrics": ["exact_match"],
        "doc_hash": "x",
        "exact_match": 1.0,
    }
    other = {**row, "filter": "flexible-extract", "exact_match": 0.0}
    return lines(folder / "samples_gsm8k_2026-11-29T10-00-00.jsonl", [row, other])


def _inspected(**more):
    return {
        "id": "a",
        "epoch": 1,
        "input": "7 8",
        "target": "9",
        "messages": [*ASKED, {"role": "assistant", "content": "attachment://long"}],
        "attachments": {"long": "9 10"},
        "output": {
            "model": "m",
            "choices": [
                {
                    "message": {"role": "assistant", "content": "attachment://long"},
                    "stop_reason": "stop",
                }
            ],
        },
        "scores": {"match": {"value": "C"}},
        **more,
    }


def inspect(folder):
    path = folder / "log.eval"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", "{}")
        archive.writestr("samples/a_epoch_1.json", json.dumps(_inspected()))
        archive.writestr("samples/a_epoch_2.json", json.dumps(_inspected(epoch=2)))
    return path


def inspect_json(folder):
    path = folder / "log.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": 2, "eval": {}, "samples": [_inspected()] * 2}))
    return path


def llamafactory(folder):
    row = {"prompt": TEXT, "predict": "9 10", "label": "9"}
    return lines(folder / "generated_predictions.jsonl", [row, row])


def token_bank(folder, kind="csv"):
    def rows(rollout_id):
        for ordinal in (0, 1):
            for place in range(3):
                student, teacher = STUDENT_TOP[place], TEACHER_TOP[place]
                yield {
                    "schema_version": 2,
                    "teacher_name": "big",
                    "student_name": "small",
                    "rollout_id": rollout_id,
                    "sample_index": ordinal,
                    "group_index": 0,
                    "sample_ordinal": ordinal,
                    "tok_pos": place,
                    "prompt_len": 5,
                    "resp_len": 3,
                    "truncated": 0,
                    "token_id": RESPONSE[place],
                    "student_logp_sampled": LOGP[place],
                    "teacher_logp_sampled": TEACHER[place],
                    "loss_mask_original": 1,
                    "student_top_ids": json.dumps([t for _, t, _ in student]),
                    "student_top_logps": json.dumps([p for p, _, _ in student]),
                    "teacher_top_ids": json.dumps([t for _, t, _ in teacher]),
                    "teacher_top_logps": json.dumps([p for p, _, _ in teacher]),
                }

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"schema_version": 2}')
    for rollout_id in (0, 1):
        path = folder / f"rollout_{rollout_id:06d}.{kind}"
        if kind == "jsonl":
            lines(path, rows(rollout_id))
            continue
        made = list(rows(rollout_id))
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, made[0])
            writer.writeheader()
            writer.writerows(made)
    (folder / "summary.csv").write_text("rollout_id,num_tokens\n0,6\n1,6\n")
    return folder


MAKERS = {
    "verl": verl,
    "verl-generation": verl_generation,
    "trl": trl,
    "ms-swift": ms_swift,
    "slime": slime,
    "slime-train": slime_train,
    "miles": miles,
    "miles-dashboard": miles_dashboard,
    "prime-rl": prime_rl,
    "verifiers": verifiers,
    "nemo-rl": nemo_rl,
    "nemo-rl-distillation": nemo_rl_distillation,
    "open-instruct": open_instruct,
    "tinker": tinker,
    "areal": areal,
    "skyrl": skyrl,
    "thunlp-eval": thunlp_eval,
    "thunlp-rollout": thunlp_rollout,
    "lm-eval": lm_eval,
    "inspect": inspect,
    "llamafactory": llamafactory,
    "token-bank": token_bank,
}
PICKLED = {"slime", "slime-train", "miles"}
STEPLESS = {"lm-eval", "inspect", "llamafactory"}


def options(name):
    """What has to be said to read a dump: a pickle's format, a step that is nowhere."""
    return {
        **({"format": name} if name in PICKLED else {}),
        **({"step": 0} if name in STEPLESS else {}),
    }

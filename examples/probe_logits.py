"""Probe raw logits: what student and teacher say about the same tokens, without training.

Here the student answers a few problems of the built-in testbed; replace ``resolve_model("zoo:…")``
by the path or hub id of your own model.
"""

import torch

import opdprobe
from opdprobe.cli.names import resolve_model, resolve_prompts

student_name, teacher_name = resolve_model("zoo:sft-small"), resolve_model("zoo:rl-small")
student, teacher = opdprobe.load_model(student_name), opdprobe.load_model(teacher_name)
tokenizer = opdprobe.load_tokenizer(student_name)
prompts, _ = resolve_prompts("zoo:medium", 5)

torch.manual_seed(0)
for prompt in prompts:
    chat = tokenizer.apply_chat_template(
        list(prompt.messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    tokens = student.generate(**chat, do_sample=True, top_k=0, max_new_tokens=64)
    # The logits at a token predict the next one: start at the prompt's last, end before the last.
    start = chat["input_ids"].shape[1]
    with torch.no_grad():
        student_logits = student(tokens).logits[:, start - 1 : -1]
        teacher_logits = teacher(tokens).logits[:, start - 1 : -1]
    ds = opdprobe.from_logits(student_logits, teacher_logits, k=16, sampled_ids=tokens[:, start:])
    print(
        f"{prompt.id}: {ds.sizes['state']} states,",
        f"overlap ratio {ds.opd.overlap_ratio().mean():.3f},",
        f"overlap mass {ds.opd.overlap_mass('student').mean():.3f},",
        f"advantage {ds.opd.overlap_token_advantage().mean():.3f} nats,",
        f"entropy gap {ds.opd.entropy_gap().mean():.3f} nats",
    )

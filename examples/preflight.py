"""Ask before training: will this teacher teach this student? Neither model is changed."""

from opdprobe.cli.names import resolve_model, resolve_prompts
from opdprobe.preflight import preflight

student = resolve_model("zoo:sft-small")
prompts, grader = resolve_prompts("zoo:medium")

for name in ("rl-small", "sft-large"):
    result = preflight(student, resolve_model(f"zoo:{name}"), prompts, grader=grader)
    overlap = result.states["overlap_ratio"]
    print(f"sft-small from {name}: {result.verdict.word}")
    print(f"  overlap ratio {overlap.value:.2f} [{overlap.low:.2f}, {overlap.high:.2f}]")
    for reason in result.verdict.reasons:
        print(f"  - {reason}")

"""What decides how prompts go through the chat template: obeyed, recorded, stated, resumed."""

import json

import pandas as pd
import pytest
import yaml

from opdprobe import ConfigError, OPDConfig, Prompt, open_run
from opdprobe.cli.parser import main
from opdprobe.report.run_report import write_run_report
from opdprobe.report.view import write_view
from opdprobe.testing import tiny_tokenizer

pytestmark = pytest.mark.slow

# Thinking on: "7" opens the answer; off: "8".
SWITCH = "{% if enable_thinking %} 7{% else %} 8{% endif %}"
ASKED = [Prompt(str(n), messages=({"role": "user", "content": f"{n} 9"},)) for n in range(4)]


def chatty():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<bos>", "<bos> ") + SWITCH
    return tokenizer


def texts(run):
    tokenizer = chatty()
    return {str(tokenizer.decode(ids)) for step in run.steps for ids in run.prompt_ids(step)}


def train(trainer_in, folder, prompts=ASKED, **settings):
    options = {"max_steps": 1, "eval_n": 1, **settings}
    return trainer_in(folder, settings=options, tokenizer=chatty(), prompts=prompts).train()


@pytest.mark.parametrize(
    ("settings", "last", "said"),
    [
        ({}, "8", "enable_thinking = False (default)"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "7", "enable_thinking = True"),
        ({"system_prompt": "5"}, "8", "enable_thinking = False (default); system prompt '5'"),
        (
            {"teacher_prompt": "1 {question}", "teacher_chat_template_kwargs": {"x": 1}},
            "8",
            "enable_thinking = False (default); the teacher reads 4 of 4 prompts in another form, "
            "worded '1 {question}', x = 1",
        ),
    ],
)
def test_the_settings_are_obeyed_recorded_and_stated(
    tmp_path, trainer_in, capsys, settings, last, said
):
    run = train(trainer_in, tmp_path / "run", **settings)
    assert all(text.endswith(f"<assistant> {last}") for text in texts(run))
    assert all(("5 <user>" in text) is ("system_prompt" in settings) for text in texts(run))
    assert run.config == OPDConfig.from_dict(run.config).to_dict()
    assert {name: run.config[name] for name in settings} == settings
    # Wherever the run is shown:
    assert main(["inspect", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompts"] == said
    write_run_report(tmp_path / "r.html", [run], draw=lambda panels: [b""] * len(panels))
    assert said.replace("'", "&#39;") in (tmp_path / "r.html").read_text()
    write_view(tmp_path / "v.html", [run])  # the text is in its packed index: test_view.py


def test_benchmarks_are_asked_like_training_prompts(tmp_path, trainer_in):
    trainer = trainer_in(
        tmp_path,
        settings={
            "max_steps": 1,
            "chat_template_kwargs": {"enable_thinking": True},
            "system_prompt": "5",
        },
        tokenizer=chatty(),
        prompts=ASKED,
        grader=lambda response, prompt: 1.0,
        eval_prompts={"test": pd.DataFrame([{"prompt": [{"role": "user", "content": "9"}]}])},
    )
    (problem,) = trainer.eval_prompts["test"]
    assert chatty().decode(problem.ids).endswith("5 <user> 9 <assistant> 7")


def test_the_trainers_argument_precedes_the_configs(tmp_path, trainer_in):
    trainer = trainer_in(
        tmp_path,
        settings={"chat_template_kwargs": {"enable_thinking": False}},
        tokenizer=chatty(),
        prompts=ASKED,
        chat_template_kwargs={"enable_thinking": True},
    )
    assert trainer.config.chat_template_kwargs == {"enable_thinking": True}
    assert chatty().decode(trainer.prompts[0].ids).endswith("7")


def older(run):
    """Take out what an older version did not record."""
    known = ("chat_template_kwargs", "system_prompt", "teacher_")
    config = {n: value for n, value in run.config.items() if not n.startswith(known)}
    (run.path / "config.yaml").write_text(yaml.safe_dump(config))
    attrs = {k: v for k, v in run.attrs.items() if k != "chat_template"}
    (run.path / "run.json").write_text(json.dumps(attrs))


def test_a_run_recorded_without_the_settings_resumes(tmp_path, trainer_in):
    train(trainer_in, tmp_path)
    older(open_run(tmp_path))
    train(trainer_in, tmp_path)  # with the defaults
    reason = r"chat_template_kwargs.enable_thinking: absent before, True now"
    with pytest.raises(ConfigError, match=reason):
        train(trainer_in, tmp_path, chat_template_kwargs={"enable_thinking": True})


def test_rows_are_taken_as_prompts(tmp_path, trainer_in):
    rows = [{"prompt": [dict(prompt.messages[0])], "id": prompt.id} for prompt in ASKED]
    runs = [
        train(trainer_in, tmp_path / str(number), prompts=prompts)
        for number, prompts in enumerate((ASKED, rows, pd.DataFrame(rows)))
    ]
    assert texts(runs[0]) == texts(runs[1]) == texts(runs[2])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"chat_template_kwargs": [1]}, r"chat_template_kwargs = \[1\] is of type list"),
        ({"system_prompt": 5}, "system_prompt = 5 is of type int"),
    ],
)
def test_settings_of_another_type(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        OPDConfig(**settings)

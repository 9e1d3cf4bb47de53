"""What is asked of lmms-eval is done, or refused in one line: through lmms-eval itself, in process and as a command."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys

import pytest
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from lmms_eval.utils import load_yaml_config
from loguru import logger

from lmms_textweighted.errors import InputError
from lmms_textweighted.harness import command_line
from lmms_textweighted.harness.cache_key import add_to_cache_key, restore_cache_key
from lmms_textweighted.harness.command_line import asked_decoding, asked_runs, check_supported
from lmms_textweighted.harness.generation import check_acts, split_generation_kwargs
from lmms_textweighted.harness.model import LlavaTextweighted, LlavaTextweightedChat
from lmms_textweighted.harness.stops import RunEnded
from lmms_textweighted.paths import data_folder
from tests.lmms_eval_runs import lmms_eval

WORDS = """\
include: _shapes_mcq.yaml
task: shapes_words
process_docs: !function utils.draw
output_type: multiple_choice
doc_to_choice: ["A", "B", "C"]
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
OWN_MESSAGES = """\
include: shapes_mcq.yaml
task: shapes_messages
doc_to_messages: !function messages.messages
"""
MESSAGES = """\
def messages(doc, lmms_eval_specific_kwargs=None):
    text = {"type": "text", "text": "Look. " + doc["question"]}
    return [{"role": "user", "content": [{"type": "image", "url": doc["image"]}, text]}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Our task's folder with more tasks in it."""
    root = tmp_path_factory.mktemp("tasks")
    shapes = root / "shapes_mcq"
    shutil.copytree(data_folder("tasks") / "shapes_mcq", shapes)
    (shapes / "shapes_words.yaml").write_text(WORDS)
    (shapes / "shapes_loss.yaml").write_text(
        WORDS.replace("multiple_choice", "loglikelihood").replace("shapes_words", "shapes_loss")
    )
    (shapes / "shapes_messages.yaml").write_text(OWN_MESSAGES)
    (shapes / "messages.py").write_text(MESSAGES)
    return root


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("LMMS_TEXTWEIGHTED_CACHE", str(tmp_path / "textweighted"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)


def evaluate(folder, task, model, **options):
    """lmms-eval's own Python call, over the first two documents."""
    manager = TaskManager("ERROR", include_path=str(folder), include_defaults=False, model_name="llava_textweighted")
    with contextlib.redirect_stderr(io.StringIO()):
        return simple_evaluate(
            model=model, tasks=[task], task_manager=manager, limit=2, batch_size=1, log_samples=True, **options
        )


def answers(results, task):
    return [sample["filtered_resps"] for sample in results["samples"][task]]


def prompts_of(model):
    """Every prompt that the model is given from now on."""
    seen, render = [], model.llava._prompt
    model.llava._prompt = lambda messages: seen.append(render(messages)) or seen[-1]
    return seen


def both():
    return [kind(pretrained="tiny", keep_tokens=64) for kind in (LlavaTextweighted, LlavaTextweightedChat)]


# A system instruction.


@pytest.mark.parametrize("instruction", ["Reply in French only. ", None])
def test_both_interfaces_give_the_same_prompt(folder, instruction):
    prompts = []
    for model in both():
        prompts.append(prompts_of(model))
        evaluate(folder, "shapes_mcq", model, system_instruction=instruction)
    simple, chat = prompts
    assert len(simple) == 2
    assert simple == chat
    assert all(("USER: <image>\nReply in French only. " in prompt) == bool(instruction) for prompt in simple)


def test_a_system_instruction_reaches_a_task_that_writes_its_own_messages(folder):
    model = LlavaTextweightedChat(pretrained="tiny")
    prompts = prompts_of(model)
    evaluate(folder, "shapes_messages", model, system_instruction="Be brief. ")
    assert all("USER: <image>\nBe brief. Look. " in prompt for prompt in prompts)


def test_a_task_given_as_a_file_is_answered_in_the_chat_interface(folder):
    """lmms-eval makes a task for the simple interface of it, whichever model asks."""
    file = load_yaml_config(str(folder / "shapes_mcq" / "shapes_mcq.yaml"))
    prompts = []
    for task in ("shapes_mcq", file):
        model = LlavaTextweightedChat(pretrained="tiny", keep_tokens=64)
        prompts.append(prompts_of(model))
        evaluate(folder, task, model)
    assert len(prompts[0]) == 2
    assert prompts[0] == prompts[1]


# Continuations.


def test_a_multiple_choice_task_scores_end_to_end_and_with_a_cache(folder, tmp_path):
    """lmms-eval 0.7.3 makes text of the pair that a model gives for a continuation."""
    found = []
    for options in ({}, {"use_cache": str(tmp_path / "cache")}, {"use_cache": str(tmp_path / "cache")}):
        model = LlavaTextweighted(pretrained="tiny", strategy="none")
        found.append(evaluate(folder, "shapes_words", model, **options))
    scores = [results["results"]["shapes_words"]["acc,none"] for results in found]
    assert scores[0] == scores[1] == scores[2]
    # The model's own answers, of which the three words are a part.
    whole = LlavaTextweighted(pretrained="tiny", strategy="none")
    generated = evaluate(folder, "shapes_mcq", whole)
    for scored, sample in zip(found[0]["samples"]["shapes_words"], generated["samples"]["shapes_mcq"], strict=True):
        losses = [loss for loss, _ in scored["filtered_resps"]]
        greedy = [greedy for _, greedy in scored["filtered_resps"]]
        answer = sample["filtered_resps"][0] if isinstance(sample["filtered_resps"], list) else sample["filtered_resps"]
        assert greedy == [word == answer for word in "ABC"]
        if answer in "ABC":
            assert min(losses) == losses["ABC".index(answer)]


def test_a_multiple_choice_task_goes_on_in_the_cache_of_the_same_command(folder, tmp_path):
    """lmms-eval logs what it does not store, and a run of the same name reads it back."""
    options, found = {"use_cache": str(tmp_path / "cache")}, []
    for _ in range(2):
        model = LlavaTextweighted(pretrained="tiny", strategy="none")
        add_to_cache_key(None, [options])  # as the command does
        found.append(evaluate(folder, "shapes_words", model, **options)["samples"]["shapes_words"])
    assert [sample["filtered_resps"] for sample in found[0]] == [sample["filtered_resps"] for sample in found[1]]
    (log,) = (tmp_path / "cache" / "runs").rglob("rank_0.audit.jsonl")
    log.write_bytes(log.read_bytes() + b'{"request_type": "generate_until"}\n{"torn')
    add_to_cache_key(None, [options])
    restore_cache_key()
    assert log.read_bytes() == b'{"request_type": "generate_until"}\n{"torn'


def test_scores_that_lmms_eval_cannot_read_are_refused(folder):
    words = "task shapes_loss, document 0: output_type is loglikelihood.*use multiple_choice"
    with pytest.raises(RunEnded, match=words):
        evaluate(folder, "shapes_loss", LlavaTextweighted(pretrained="tiny"))


# A model that was used, templates, examples.


def test_a_model_that_a_run_has_used_up_says_so(folder):
    model = LlavaTextweighted(pretrained="tiny")
    evaluate(folder, "shapes_mcq", model)
    for task in ("shapes_mcq", "shapes_words"):
        with pytest.raises(RunEnded, match="this model was used up by an earlier run"):
            evaluate(folder, task, model)


def test_lmms_evals_chat_template_is_refused(folder):
    with pytest.raises(RunEnded, match="apply_chat_template: the model writes its own prompts"):
        evaluate(folder, "shapes_mcq", LlavaTextweighted(pretrained="tiny"), apply_chat_template=True)


def test_examples_without_their_pictures_are_refused(folder):
    manager = TaskManager("ERROR", include_path=str(folder), include_defaults=False)
    for model in both():
        kind = "simple" if model.is_simple else "chat"
        task = manager.load_task_or_group(["shapes_mcq"], task_type=kind)["shapes_mcq"]
        task.set_config("num_fewshot", 1)
        model.task_dict = {"shapes_mcq": task.dataset}
        about = {"task": "shapes_mcq", "doc_id": 0, "repeats": 1, "split": "test"}
        request = task.construct_requests(0, "Which?", metadata=about)
        with pytest.raises(RunEnded, match=r"task shapes_mcq, document 0: num_fewshot is 1: .* without their pictures"):
            list(model.generate_until([request]))


# Decoding.


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0: give a whole number of at least 1"),
        ({"max_gen_toks": 0}, "max_gen_toks is 0"),
        ({"num_beams": 0}, "num_beams is 0: give a whole number of at least 1"),
        ({"num_beams": 1.5}, "num_beams is 1.5"),
        ({"temperature": -1}, "temperature is -1: give a number of at least 0"),
        ({"temperature": "warm"}, "temperature is 'warm'"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 1.2}, "top_p is 1.2: give a number from 0 to 1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"do_sample": "no"}, "do_sample is 'no': give true or false"),
        ({"until": 3}, "until is 3"),
        ({"until": ["a", None]}, "until is"),
    ],
)
def test_zero_is_a_value_and_what_cannot_be_is_refused(kwargs, words):
    with pytest.raises(InputError, match=words):
        split_generation_kwargs(kwargs)


def test_none_is_not_given():
    names = ("max_new_tokens", "temperature", "top_p", "top_k", "num_beams", "do_sample", "until", "repetition_penalty")
    assert split_generation_kwargs(dict.fromkeys(names)) == split_generation_kwargs({})
    decoding, _ = split_generation_kwargs({"max_new_tokens": None, "max_gen_toks": 7, "top_k": 0, "until": []})
    assert (decoding.max_new_tokens, decoding.top_k, decoding.until) == (7, 0, ())


@pytest.mark.parametrize(
    ("task", "asked", "words"),
    [
        ({"do_sample": False, "temperature": 0}, {"temperature": 0.8}, "temperature=0.8, but with do_sample=False"),
        ({"temperature": 0}, {"do_sample": True}, "do_sample=True, but with temperature=0"),
        ({"do_sample": False}, {"top_p": 0.9}, "top_p=0.9, but with do_sample=False"),
        ({}, {"top_k": 5}, "top_k=5, but with temperature=0"),
        ({"do_sample": False}, {"temperature": 0.8, "do_sample": True}, None),
        ({"do_sample": False, "temperature": 0.2}, {"max_new_tokens": 5}, None),
        ({"do_sample": False}, {"temperature": 0, "top_p": 1}, None),
    ],
)
def test_sampling_that_a_user_asks_for_acts_or_is_refused(task, asked, words):
    kwargs = {**task, **asked}  # lmms-eval puts them over the task's
    decoding, _ = split_generation_kwargs(kwargs)
    if words is None:
        check_acts(kwargs, decoding, [asked])
        assert (decoding.temperature > 0) == (asked.get("do_sample") is True)
        return
    with pytest.raises(InputError, match=words):
        check_acts(kwargs, decoding, [{}, asked])


def test_a_task_that_contradicts_itself_is_named_once():
    """Eight of lmms-eval's have a temperature and `do_sample: false`."""
    lines: list[str] = []
    handler = logger.add(lines.append, format="{message}")
    for _ in range(3):
        decoding, _ = split_generation_kwargs({"do_sample": False, "temperature": 0.123})
        assert decoding.temperature == 0
    logger.remove(handler)
    assert lines == ["the task asks for temperature=0.123 and for do_sample=False: it is answered greedily\n"]


# Whose command line.


def test_other_programs_arguments_are_never_read(monkeypatch):
    for arguments in (["--config", "cfg.toml"], ["--num_fewshot", "3"], ["--tasks"], ["--no-such-option"]):
        monkeypatch.setattr("sys.argv", ["train.py", *arguments])
        assert asked_runs() == []


def test_arguments_that_are_not_lmms_evals_end_nothing(monkeypatch, capsys):
    monkeypatch.setattr(command_line, "_is_running", lambda: True)
    monkeypatch.setattr("sys.argv", ["lmms-eval", "--no-such-option"])
    assert asked_runs() == []


def test_runs_are_read_as_lmms_eval_reads_them(tmp_path, monkeypatch):
    monkeypatch.setattr(command_line, "_is_running", lambda: True)
    monkeypatch.setattr(
        "sys.argv", ["lmms-eval", "--model=llava_textweighted", "--tasks", "pope", "--gen_kwargs", "temperature=0.8"]
    )
    (run,) = asked_runs()
    assert (run["tasks"], run["num_fewshot"], run["output_path"]) == ("pope", None, None)
    assert asked_decoding([run]) == [{"temperature": 0.8}]
    ours = {"model": "llava_textweighted", "tasks": "gqa", "num_fewshot": 2}
    (tmp_path / "runs.yaml").write_text(json.dumps([ours, {"model": "llava_hf", "apply_chat_template": True}]))
    monkeypatch.setattr("sys.argv", ["lmms-eval", "--config", "runs.yaml", "--output_path", "here"])
    first, second = asked_runs()
    assert (first["tasks"], first["output_path"], second["output_path"]) == ("gqa", "here", "here")
    with pytest.raises(InputError, match="num_fewshot is 2"):
        check_supported([first, second])
    check_supported([second])
    (tmp_path / "runs.yaml").write_text("{")
    with pytest.raises(InputError, match=r"config 'runs\.yaml' cannot be read"):
        asked_runs()


HOST = """\
import argparse
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
parser = argparse.ArgumentParser()
parser.add_argument("--config")
parser.add_argument("--tasks", type=int)
given = parser.parse_args()
manager = TaskManager("ERROR", include_path=TASKS, include_defaults=False, model_name="llava_textweighted")
results = simple_evaluate(model="llava_textweighted", model_args="pretrained=tiny", tasks=["shapes_mcq"],
                          task_manager=manager, limit=2)
print("SCORED", results["results"]["shapes_mcq"]["exact_match,none"])
"""


@pytest.mark.slow
def test_a_script_with_arguments_of_its_own_evaluates(tmp_path):
    (tmp_path / "train.py").write_text(HOST.replace("TASKS", repr(str(data_folder("tasks")))))
    (tmp_path / "cfg.toml").write_text('[model]\nname = "x"\n')
    done = subprocess.run(
        [sys.executable, "train.py", "--config", "cfg.toml", "--tasks", "3"],
        cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "SCORED" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["--num_fewshot", "2"], "num_fewshot is 2", marks=pytest.mark.nightly),
        pytest.param(
            ["--apply_chat_template"],
            "apply_chat_template: the model writes its own prompts",
            marks=pytest.mark.nightly,
        ),
        (["--gen_kwargs", "temperature=0.8"], "gen_kwargs asks for temperature=0.8, but with do_sample=False"),
        pytest.param(
            ["--model_args", "pretrained=tiny,attn_implementation=flex_attention"],
            "attn_implementation is 'flex_att",
            marks=pytest.mark.nightly,
        ),
        pytest.param(["--config", "runs.yaml"], "num_fewshot is 1", marks=pytest.mark.nightly),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_command_ends_with_one_line(tmp_path, arguments, words):
    config = {"model": "llava_textweighted", "model_args": "pretrained=tiny", "tasks": "shapes_mcq", "num_fewshot": 1}
    config["include_path"] = str(data_folder("tasks"))
    (tmp_path / "runs.yaml").write_text(json.dumps([config]))
    base = ["--model", "llava_textweighted", "--tasks", "shapes_mcq", "--limit", "2"]
    if "--model_args" not in arguments:
        base += ["--model_args", "pretrained=tiny"]
    run = lmms_eval(tmp_path, *([] if "--config" in arguments else base), *arguments)
    assert run.code == 1, run.output[-2000:]
    lines = [line for line in run.output.splitlines() if line.startswith("lmms-textweighted:")]
    assert len(lines) == 1
    assert words in lines[0]
    assert "Traceback" not in run.output


@pytest.mark.nightly
def test_sampling_acts_where_it_is_asked_for_in_full(tmp_path):
    run = lmms_eval(
        tmp_path, "--model", "llava_textweighted", "--tasks", "shapes_mcq", "--limit", "2",
        "--model_args", "pretrained=tiny", "--gen_kwargs", "temperature=0.8,do_sample=True",
    )  # fmt: skip
    assert run.code == 0
    assert len(run.samples("shapes_mcq")) == 2


@pytest.mark.nightly
def test_without_a_home_folder_a_task_without_traces_runs_and_one_with_them_says_what_to_set(tmp_path):
    """As in a container under a bare user id."""
    no_home = "import pwd; pwd.getpwuid = lambda number: (_ for _ in ()).throw(KeyError(number))\n"
    (tmp_path / "sitecustomize.py").write_text(no_home)
    found = {}
    for task, hub in (("shapes_mcq", "hf"), ("shapes_mcq_rank", "hf"), ("shapes_mcq", None)):
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        run = lmms_eval(
            tmp_path, "--model", "llava_textweighted", "--tasks", task, "--limit", "2",
            "--model_args", "pretrained=tiny", name=f"{task}-{hub}",
            environment={
                "PYTHONPATH": path, "HOME": None, "XDG_CACHE_HOME": None, "LMMS_TEXTWEIGHTED_CACHE": None,
                "HF_HOME": hub and str(tmp_path / hub), "HF_DATASETS_CACHE": hub and str(tmp_path / "datasets"),
            },
        )  # fmt: skip
        found[task if hub else "nowhere"] = run
    assert found["nowhere"].code == 1
    assert "no home folder is known, and so no place for data sets: set HF_HOME" in found["nowhere"].output
    assert found["shapes_mcq"].code == 0, found["shapes_mcq"].output[-3000:]
    assert found["shapes_mcq"].metrics("shapes_mcq")["exact_match"] >= 0
    assert found["shapes_mcq_rank"].code == 1
    assert "set LMMS_TEXTWEIGHTED_CACHE" in found["shapes_mcq_rank"].output
    assert "Traceback" not in found["shapes_mcq_rank"].output

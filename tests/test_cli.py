"""`lmms-textweighted`: what it prints, what it writes, and its one-line errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml
from PIL import Image

from lmms_textweighted import cli
from lmms_textweighted.errors import InputError
from lmms_textweighted.paths import data_folder
from lmms_textweighted.ranges import parse_samples, parse_tokens


def run(*arguments: str, cwd=None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from lmms_textweighted.cli import main; main()", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("576,192,64", [576, 192, 64]),
        ("64,192", [192, 64]),
        ("40:16:-10", [40, 30, 20]),
        ("16:40:8", [40, 32, 24, 16]),
        ("5", [5]),
        ("100,20:16:-2,100", [100, 20, 18, 16]),
    ],
)
def test_budgets_are_written_as_lists_and_ranges(text, tokens):
    assert parse_tokens(text) == tokens


def test_the_published_range_has_57_points_from_576_to_16():
    points = parse_tokens("576:16:-10")
    assert (len(points), points[0], points[1], points[-1]) == (57, 576, 566, 16)


@pytest.mark.parametrize("text", ["", "a", "16:576:-10", "576:16:0", "0", "64,-1", "1:2:3:4", "3.5"])
def test_budgets_that_are_none_are_refused(text):
    with pytest.raises(InputError, match="tokens is"):
        parse_tokens(text)


def test_samples_are_a_number_or_all():
    assert parse_samples("all") is None
    assert parse_samples("50") == 50
    for text in ("0", "-1", "some", "2.5"):
        with pytest.raises(InputError, match="num_samples is"):
            parse_samples(text)


def test_configs_are_ready_to_use(capsys):
    cli.config(None)
    names = capsys.readouterr().out.split()
    assert {"shapes", "scienceqa", "scienceqa_rank", "experiment"} <= set(names)
    cli.config("shapes")
    loaded = yaml.safe_load(capsys.readouterr().out)
    assert loaded[0]["include_path"] == str(data_folder("tasks"))
    assert os.path.isabs(loaded[0]["include_path"])
    with pytest.raises(InputError, match="unknown config 'shape'"):
        cli.config("shape")


def test_every_lmms_eval_config_has_arguments_that_our_model_takes():
    from lmms_eval.utils import simple_parse_args_string

    from lmms_textweighted.harness.settings import Settings

    for path in data_folder("configs").glob("*.yaml"):
        loaded = yaml.safe_load(path.read_text())
        for item in loaded if isinstance(loaded, list) else []:
            Settings.parse(simple_parse_args_string(item["model_args"]))


def test_the_experiment_config_is_the_published_runs_settings():
    loaded = yaml.safe_load((data_folder("configs") / "experiment.yaml").read_text())
    assert (loaded["pruning_layer"], loaded["num_samples"], loaded["tokens"]) == (3, 300, "576:16:-10")
    assert loaded["single_pred_prompt"] is True


def test_help_needs_neither_torch_nor_lmms_eval():
    code = (
        "import sys\nfrom lmms_textweighted.cli import main\nsys.argv = ['x', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('LOADED', [m for m in ('torch', 'lmms_eval', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "LOADED []" in done.stdout
    assert "sweep" in done.stdout


def test_the_entry_point_module_does_not_import_torch():
    code = "import sys, lmms_textweighted; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


ERRORS = [
    (["--tokens", "577"], "keep_tokens is 577, but the image has 576 tokens"),
    (["--tokens", "0"], "0 tokens cannot be kept"),
    (["--tokens=-5"], "-5 tokens cannot be kept"),
    (["--num-samples", "0"], "num_samples is '0'"),
    (["--pruning-layer", "8"], "pruning layer is 8, but the model has 8 decoder layers"),
    (["--strategies", "text_wieghted"], "did you mean 'text_weighted'?"),
    (["--conv-mode", "vicuna_v2"], "did you mean 'vicuna_v1'?"),
    (["--model-path", "./nowhere"], "checkpoint folder './nowhere' does not exist"),
    (["--model-path", "nobody/no-such-llava"], "the hub did not give it"),
    (["--model-path", "nollava"], "is no LLaVA"),
    (["--model-base", "x"], "LoRA checkpoints"),
    (["--task", "no_such_task"], "unknown task 'no_such_task'"),
    (["--output-dir", "taken/out"], "output folder 'taken/out' cannot be written"),
    (["--strategies", ","], "strategies is empty"),
    (["--task", "scienceqa_img"], "the data of task 'scienceqa_img' cannot be loaded"),
    (["--config", "seed.yaml"], "seed is 'abc': give a whole number"),
    (["--config", "none.yaml"], "config 'none.yaml' cannot be read"),
    (["--config", "odd.yaml"], "unknown option 'tokns'"),
    (["--fast-v-sys-length", "35", "--num-samples", "1"], "system length is stated as 35, but the input has 32 tokens"),
    (
        ["--fast-v-image-token-length", "575", "--num-samples", "1"],
        "image length is stated as 575, but the input has 576",
    ),
]


@pytest.fixture
def odd_folder(tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "odd.yaml").write_text("tokns: 64\n")
    (tmp_path / "seed.yaml").write_text("seed: abc\n")
    (tmp_path / "nollava").mkdir()
    (tmp_path / "nollava" / "config.json").write_text('{"model_type": "gpt2"}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("arguments", "words"), ERRORS, ids=[" ".join(error[0]) for error in ERRORS])
def test_a_sweep_that_cannot_be_ends_with_one_line(odd_folder, monkeypatch, capsys, arguments, words):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("sys.argv", ["lmms-textweighted", "sweep", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lmms-textweighted: ")]
    assert len(lines) == 1
    assert words in lines[0]
    assert not list(odd_folder.rglob("*experiment.json"))


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "words"), [ERRORS[0], ERRORS[8]], ids=["tokens", "hub"])
def test_the_real_command_prints_no_traceback(odd_folder, arguments, words):
    done = run("sweep", *arguments, cwd=odd_folder)
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_sweep_writes_the_published_keys_the_answers_and_the_picture(tmp_path):
    (tmp_path / "options.yaml").write_text("num-samples: 4\ntokens: [576, 64, 16]\nseed: 3\npruning_layer: 3\n")
    done = run("sweep", "--config", "options.yaml", "--seed", "5", "--output-dir", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    name = "out/fastv_textweighted_layer3_experiment"
    data = json.loads((tmp_path / f"{name}.json").read_text())
    assert data["tokens"] == [576, 64, 16]
    assert len(data["accuracies"]) == len(data["layer7_numeric_ranks"]) == len(data["layer7_effective_ranks"]) == 3
    assert set(data["strategies"]) == {"text_weighted", "fastv", "random", "none"}
    assert data["strategies"]["none"]["tokens"] == [576]
    block = data["strategies"]["text_weighted"]
    # Three layers of eight see 64 tokens after layer 3, the first four all 576.
    assert block["equivalent_tokens"] == [576, (4 * 576 + 4 * 64) / 8, (4 * 576 + 4 * 16) / 8]
    assert block["flops_ratio"][0] == 1 > block["flops_ratio"][1] > block["flops_ratio"][2]
    # 576 kept is no pruning, for every strategy and document.
    lines = [json.loads(line) for line in (tmp_path / f"{name}.answers.jsonl").read_text().splitlines()]
    assert len(lines) == 4 * (3 * 3 + 1)
    whole = {line["document"]: line["answer"] for line in lines if line["strategy"] == "none"}
    assert all(line["answer"] == whole[line["document"]] for line in lines if line["tokens"] == 576)
    meta = data["meta"]
    assert (meta["seed"], meta["num_samples"], meta["pruning_layer"]) == (5, 4, 3)
    assert meta["equivalent_tokens"]["text_weighted"]["64"] == 320
    assert meta["flops_ratio"]["none"] == {"576": 1.0}
    assert meta["prompt_example"].startswith("A chat between a curious user")
    assert meta["prompt_example"].endswith(" ASSISTANT:")
    assert "none left out" in meta["selection"]
    assert len(meta["documents_sha256"]) == 64
    assert set(meta["versions"]) >= {"torch", "transformers", "lmms-eval"}
    with Image.open(tmp_path / f"{name}.png") as picture:
        assert picture.width > 1000
        assert len(set(picture.convert("L").getdata())) > 20

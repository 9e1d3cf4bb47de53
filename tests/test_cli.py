"""`lmms-textweighted`: what it prints, what it writes, and its one-line errors."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest
import yaml
from PIL import Image

from lmms_textweighted import cli
from lmms_textweighted.errors import InputError
from lmms_textweighted.experiment.claim import claimed
from lmms_textweighted.experiment.files import whole_file
from lmms_textweighted.experiment.ranges import parse_samples, parse_tokens
from lmms_textweighted.paths import data_folder
from tests.question_files import export_questions
from tests.result_folders import write_run


def run(*arguments: str, cwd=None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from lmms_textweighted.cli import main; main()", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def assert_same_curves(found: dict, expected: dict) -> None:
    """Two sweeps' `strategies` of the same questions: the same figures, up to what two processes' float32 differ by."""
    assert found.keys() == expected.keys()
    for name, block in expected.items():
        assert found[name].keys() == block.keys()
        assert (found[name]["layer"], found[name]["plans"]) == (block["layer"], block["plans"])
        for figure, values in block.items():
            if figure in ("layer", "plans", "paired"):  # tests follow from the scores, and are no numbers alone
                continue
            assert found[name][figure] == pytest.approx(values, rel=1e-3), (name, figure)


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


@pytest.mark.parametrize("text", ["", "a", "16:576:-10", "576:16:0", "64,-1", "1:2:3:4", "3.5"])
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
    assert {"shapes", "scienceqa", "scienceqa_rank", "experiment", "mcq_local"} <= set(names)
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


@pytest.mark.parametrize("arguments", [["--help"], ["config"], ["compare", "run"]], ids=" ".join)
def test_what_runs_no_model_waits_for_neither_torch_nor_lmms_eval(tmp_path, arguments):
    write_run(tmp_path / "run", {"gqa": [0.0, 1.0, 1.0]}, strategy="fastv")
    code = (
        f"import sys\nfrom lmms_textweighted.cli import main\nsys.argv = ['x', *{arguments}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('LOADED', [m for m in ('torch', 'lmms_eval', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert "LOADED []" in done.stdout
    assert {"--help": "sweep", "config": "experiment", "compare": "fastv"}[arguments[0]] in done.stdout


def test_the_entry_point_module_does_not_import_torch():
    code = "import sys, lmms_textweighted; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


ERRORS = [
    (["--tokens", "577"], "keep_tokens is 577, but the image has 576 tokens"),
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
    (["--config", "seed.yaml"], "seed is 'abc': give whole numbers"),
    (["--config", "none.yaml"], "config 'none.yaml' cannot be read"),
    (["--config", "odd.yaml"], "unknown option 'tokns'"),
    (["--task", "shapes_mcq", "--question-file", "Q.json"], "task is 'shapes_mcq' and question_file is 'Q.json'"),
    (["--config", "both.yaml"], "task is 'shapes_mcq' and question_file is 'Q.json'"),
    (["--config", "task.yaml", "--question-file", "Q.json"], "task is 'pope' and question_file is 'Q.json'"),
    (["--image-folder", "images"], "image_folder is 'images', but no question_file is given"),
    (["--skip-missing"], "skip_missing is 'True', but no question_file is given"),
    (["--config", "skip.yaml"], "skip_missing is 'often': give true or false"),
    (["--question-file", "nowhere.json"], "question file 'nowhere.json' does not exist"),
    (["--question-file", "Q.json"], "question file 'Q.json' names 2 pictures, but no image folder is given"),
    # Data are looked at before the model is: it is not there either.
    (
        ["--question-file", "Q.json", "--image-folder", "images", "--model-path", "./nowhere"],
        "question file 'Q.json': 2 of 2 pictures cannot be used: put the pictures into 'images', or leave these "
        "questions out",
    ),
    (["--task", "no_such_task", "--model-path", "./nowhere"], "unknown task 'no_such_task'"),
    (["--image-aspect-ratio", "sqare"], "did you mean 'square'?"),
    (["--attn-implementation", "flex_attention"], "attn_implementation is 'flex_attention': give sdpa, eager or flash"),
    (["--loader", "lava"], "did you mean 'llava'?"),
    (["--text-scope", "befor"], "unknown text_scope 'befor'"),
    (["--keep-scope", "imag"], "unknown keep_scope 'imag'"),
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
    (tmp_path / "both.yaml").write_text("task: shapes_mcq\nquestion_file: Q.json\n")
    (tmp_path / "task.yaml").write_text("task: pope\n")
    (tmp_path / "skip.yaml").write_text("question_file: Q.json\nskip_missing: often\n")
    turns = [{"from": "human", "value": "Which?\nA. x\nB. y"}, {"from": "gpt", "value": "A"}]
    questions = [{"id": key, "image": f"{key}.png", "conversations": turns} for key in "ab"]
    (tmp_path / "Q.json").write_text(json.dumps(questions))
    (tmp_path / "images").mkdir()
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
@pytest.mark.parametrize(
    ("arguments", "words"), [ERRORS[0], pytest.param(*ERRORS[8], marks=pytest.mark.nightly)], ids=["tokens", "hub"]
)
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


@pytest.mark.nightly
def test_a_question_file_is_swept_like_the_task_of_the_same_questions(tmp_path):
    export_questions(tmp_path, 12)
    options = ["--tokens", "576,64,16", "--num-samples", "12", "--strategies", "text_weighted,none"]
    found = {}
    sources = {
        "task": ["--task", "shapes_mcq"],
        "file": ["--question-file", "questions.json", "--image-folder", "images", "--single-pred-prompt"],
    }
    for name, source in sources.items():
        done = run("sweep", *source, *options, "--output-dir", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        start = tmp_path / name / "fastv_textweighted_layer2_experiment"
        lines = [json.loads(line) for line in start.with_suffix(".answers.jsonl").read_text().splitlines()]
        found[name] = json.loads(start.with_suffix(".json").read_text()), lines
    (task, task_lines), (file, file_lines) = found["task"], found["file"]
    assert_same_curves(file["strategies"], task["strategies"])
    assert file["strategies"]["none"]["accuracies"][0] >= 0.75
    assert [line["answer"] for line in file_lines] == [line["answer"] for line in task_lines]
    assert [line["id"] for line in file_lines[::4]] == [f"scene {number}" for number in range(12)]
    meta = file["meta"]
    for same in ("prompt_example", "documents_sha256", "chance", "metric", "conv_mode"):
        assert meta[same] == task["meta"][same]
    assert (meta["question_file"], meta["image_folder"], meta["image_aspect_ratio"]) == (
        "questions.json",
        "images",
        "square",
    )
    assert meta["question_file_sha256"] == hashlib.sha256((tmp_path / "questions.json").read_bytes()).hexdigest()
    assert (meta["skipped"], meta["skipped_ids"]) == (0, [])
    assert meta["selection"] == "the first 12 questions of questions.json, none left out"
    assert str(tmp_path) not in json.dumps(file)


@pytest.mark.nightly
def test_what_is_left_out_of_a_question_file_stands_in_the_result(tmp_path):
    export_questions(tmp_path, 4)
    (tmp_path / "images" / "1.png").unlink()
    (tmp_path / "images" / "2.png").write_text("no picture")
    (tmp_path / "options.yaml").write_text(
        "question-file: questions.json\nimage-folder: images\nskip-missing: true\nnum-samples: all\n"
        "tokens: 16\nstrategies: fastv\nranks: false\nimage-aspect-ratio: pad\n"
    )
    done = run("sweep", "--config", "options.yaml", "--output-dir", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 questions of 'questions.json' are left out" in done.stderr
    meta = json.loads((tmp_path / "out" / "fastv_textweighted_layer2_experiment.json").read_text())["meta"]
    assert (meta["num_samples"], meta["skipped"], meta["skipped_ids"]) == (2, 2, ["scene 1", "scene 2"])
    assert "2 of its 4 left out beforehand: their pictures are missing or broken" in meta["selection"]
    assert meta["image_aspect_ratio"] == "pad"


@pytest.mark.nightly
@pytest.mark.slow
def test_convert_writes_the_other_format_and_a_sweep_runs_on_it_alike(tmp_path):
    def accuracies(name, *arguments):
        folder = tmp_path / name
        options = ("--num-samples", "6", "--tokens", "64,16", "--output-dir", str(folder))
        done = run("sweep", *arguments, *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        data = json.loads((folder / "fastv_textweighted_layer2_experiment.json").read_text())
        answers = (folder / "fastv_textweighted_layer2_experiment.answers.jsonl").read_text()
        return data["strategies"], [json.loads(line)["answer"] for line in answers.splitlines()], data["meta"]

    done = run("convert", "tiny", "there", cwd=tmp_path)
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
    assert "liuhaotian format: 150 tensors, led back and equal bit for bit" in done.stdout
    assert run("convert", "there", "back", cwd=tmp_path).returncode == 0
    expected = accuracies("tiny")
    for path, loader in (("./there", "llava"), ("./there", "hf"), ("./back", "auto")):
        found = accuracies(f"{path[2:]}-{loader}", "--model-path", path, "--loader", loader)
        assert found[1] == expected[1]
        assert_same_curves(found[0], expected[0])
        assert found[2]["image_aspect_ratio"] == "square"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tiny", "full"), "exists already"),
        pytest.param(("./nowhere", "new"), "checkpoint folder './nowhere' does not exist", marks=pytest.mark.nightly),
        pytest.param(("full", "new"), "is no LLaVA", marks=pytest.mark.nightly),
    ],
)
def test_a_conversion_that_cannot_be_ends_with_one_line_and_leaves_nothing(tmp_path, arguments, words):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    done = run("convert", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


# Two runs and one folder.


def sweep_options(*more):
    return ["sweep", "--num-samples", "1", "--tokens", "16", "--strategies", "fastv", "--no-ranks", *more]


def test_a_finished_result_is_never_overwritten_unasked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = tmp_path / "out" / "fastv_textweighted_layer2_experiment.json"

    def sweep(*more):
        monkeypatch.setattr("sys.argv", ["x", *sweep_options("--output-dir", "out", *more)])
        cli.main()

    with pytest.raises(SystemExit) as ended:
        sweep()
    assert not ended.value.code
    first = result.read_bytes()
    with pytest.raises(SystemExit) as ended:
        sweep("--seed", "3")
    assert ended.value.code == 1
    assert "is there already: give another --output-dir, or --overwrite" in capsys.readouterr().err
    assert result.read_bytes() == first
    with pytest.raises(SystemExit) as ended:
        sweep("--seed", "3", "--overwrite")
    assert not ended.value.code
    assert json.loads(result.read_text())["meta"]["seed"] == 3
    written = sorted(path.suffix for path in result.parent.glob("[!.]*"))
    assert written == [".json", ".jsonl", ".jsonl", ".jsonl", ".png"]


@pytest.mark.nightly
def test_a_second_sweep_into_one_folder_is_refused_while_the_first_runs(tmp_path):
    result = tmp_path / "fastv_textweighted_layer2_experiment.json"
    with claimed(result, overwrite=False):
        done = run(*sweep_options("--output-dir", "."), cwd=tmp_path)
        assert done.returncode == 1
        assert "another sweep writes" in done.stderr.splitlines()[-1]
        other = run(*sweep_options("--output-dir", ".", "--pruning-layer", "3", "--model-path", "./no"), cwd=tmp_path)
        assert "checkpoint folder './no' does not exist" in other.stderr  # another layer's files have other names
    assert not list(tmp_path.glob("[!.]*"))


def test_drafts_have_names_of_their_own_and_a_failure_leaves_none(tmp_path):
    path = tmp_path / "result.json"
    with whole_file(path) as one, whole_file(path) as two:
        assert one != two
        one.write_text("1")
        two.write_text("2")
    assert path.read_text() == "1"  # the outer block ended last

    def fail():
        with whole_file(path) as draft:
            draft.write_text("3")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]
    assert path.read_text() == "1"


def test_the_result_says_which_score_is_which(tmp_path, monkeypatch):
    """An answer that only begins with the letter is right for the task, and wrong in the published experiment."""
    monkeypatch.setattr("lmms_textweighted.experiment.points.cut", lambda text, stops: "A. as I see it")
    monkeypatch.setattr(
        "sys.argv", ["x", *sweep_options("--output-dir", str(tmp_path), "--strategies", "text_weighted")]
    )
    monkeypatch.setattr("sys.argv", [*sys.argv, "--num-samples", "12"])
    with pytest.raises(SystemExit):
        cli.main()
    data = json.loads((tmp_path / "fastv_textweighted_layer2_experiment.json").read_text())
    assert data["accuracies"][0] > 0 == data["exact_equality"][0]
    assert "exact_match" in data["meta"]["scores"]["accuracies"]
    assert "the published experiment's accuracy" in data["meta"]["scores"]["exact_equality"]


# Poor outputs.


def test_an_error_stands_on_a_line_of_its_own_behind_an_open_bar(tmp_path):
    """Where standard output and error go into one file."""
    log = tmp_path / "log.txt"
    with log.open("w") as file:
        command = [sys.executable, "-m", "lmms_textweighted", *sweep_options("--fast-v-sys-length", "35")]
        done = subprocess.run(
            command, cwd=tmp_path, stdout=file, stderr=subprocess.STDOUT, timeout=300, check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    assert done.returncode == 1
    lines = log.read_text().splitlines()
    assert any(line.startswith("lmms-textweighted: task shapes_mcq, document 0: system length") for line in lines), (
        lines
    )


@pytest.mark.nightly
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_poor_terminal_costs_characters_and_no_result(tmp_path, encoding):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0"}
    (tmp_path / "name.yaml").write_text("# Größe: ≤ 64\nnum-samples: 0\n", encoding="utf-8")
    for arguments in (
        ["leaderboard", "tiny", "--dry-run"],
        ["config", "leaderboard/tiny"],
        ["--help"],
    ):
        command = [sys.executable, "-m", "lmms_textweighted", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        assert done.stdout.decode(encoding)
    command = [sys.executable, "-m", "lmms_textweighted", "sweep", "--config", "name.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=300, check=False)
    assert b"num_samples is 0: give" in done.stderr  # the file was read, whatever the terminal's encoding

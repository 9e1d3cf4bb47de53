"""Bad inputs, each with what its one line must name. tests/test_bad_inputs.py tries them, docs/errors.md shows them.

`python -m tests.errors_page` (`make errors`) tries all of them and writes the page anew.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import shlex
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from PIL import Image

from lmms_textweighted.paths import checkpoint_folder


@dataclass(frozen=True)
class Bad:
    """One bad input. typed: a shell's line, or Python. names: what its line must hold: the input and its value.

    files: what lies in the folder where it is typed. shown: whether the page shows the files' content. code: the exit
    code; `regress` has 2 for what it cannot compare. slow: it needs lmms-eval's tasks, or a set read.
    """

    typed: str
    names: tuple[str, ...]
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    shown: bool = True
    code: int = 1
    slow: bool = False

    @property
    def is_python(self) -> bool:
        return self.typed.startswith(">>> ")


@dataclass(frozen=True)
class Group:
    title: str
    text: str
    inputs: tuple[Bad, ...]


def line_of(bad: Bad, folder: Path) -> str:
    """Type it in an empty folder. Returns what is said; raises AssertionError where that is not one line."""
    for name, content in {**FOLDER, **bad.files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    environ = {"LMMS_TEXTWEIGHTED_CACHE": "cache", "HF_HUB_OFFLINE": "1"}
    with (
        _inside(folder),
        mock.patch.dict(os.environ, environ),
        mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True),
    ):
        said = _python(bad.typed) if bad.is_python else _shell(bad.typed, bad.code)
    said = said.rstrip().replace(str(folder.resolve()), "/here")
    assert len(said.splitlines()) == 1, said
    return said


def _shell(typed: str, code: int) -> str:
    words = shlex.split(typed)
    while "=" in words[0]:
        name, value = words.pop(0).split("=", 1)
        os.environ[name] = value
    with mock.patch("sys.argv", words):
        return _lmms_eval(words) if words[0] == "lmms-eval" else _command(words, code)


def _command(words: list[str], code: int) -> str:
    """What `lmms-textweighted …` prints on standard error, its progress apart."""
    from lmms_textweighted import cli

    errors, ended = io.StringIO(), None
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.main()
        except SystemExit as error:
            ended = error.code
    assert ended == code, f"exit code {ended}: {errors.getvalue()}"
    lines = errors.getvalue().splitlines()
    said = [number for number, line in enumerate(lines) if line.startswith("lmms-textweighted: ")]
    assert said, errors.getvalue()
    return "\n".join(lines[said[0] :])


def _lmms_eval(words: list[str]) -> str:
    """What our model ends the run with, made as lmms-eval makes it."""
    from lmms_eval.utils import simple_parse_args_string

    from lmms_textweighted.harness.model import LlavaTextweighted
    from lmms_textweighted.harness.stops import RunEnded

    parser = argparse.ArgumentParser()
    parser.add_argument("--model_args", default="")
    parser.add_argument("--batch_size", default="1")
    given, _ = parser.parse_known_args(words[1:])
    with mock.patch("lmms_textweighted.harness.command_line._is_running", return_value=True):
        try:
            LlavaTextweighted(batch_size=given.batch_size, **simple_parse_args_string(given.model_args))
        except RunEnded as ended:
            return str(ended.code)
    raise AssertionError(f"{' '.join(words)} runs")


def _python(typed: str) -> str:
    """The error of the last statement, as Python's last line has it without the error's type."""
    from lmms_textweighted.errors import TextweightedError

    code = "\n".join(line[4:] for line in typed.splitlines())
    names: dict[str, object] = {}
    exec(SETUP, names)
    try:
        exec(code, names)
    except TextweightedError as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError(f"{code} runs")


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _picture(format: str, side: int = 24) -> bytes:
    data = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert("RGB").save(data, format)
    return data.getvalue()


def _questions(*changes: dict, count: int = 1) -> str:
    """A question file of `count` questions, each with its change."""
    entries = []
    for number in range(max(count, len(changes))):
        turns = [{"from": "human", "value": "Which?\nA. x\nB. y"}, {"from": "gpt", "value": "A"}]
        entry = {"id": f"q{number}", "image": "a.png", "conversations": turns}
        entries.append({**entry, **(changes[number] if number < len(changes) else {})})
    return json.dumps(entries)


def _half(format: str) -> bytes:
    data = _picture(format, 200)
    return data[: len(data) // 2]


def _bomb() -> bytes:
    """A PNG of a hundred bytes whose header says 20,000 x 20,000 pixels."""
    data = bytearray(_picture("PNG", 1))
    data[16:24] = struct.pack(">II", 20_000, 20_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def _tiny() -> dict[str, str | bytes]:
    """The embedded checkpoint without its weights."""
    names = [path for path in checkpoint_folder().iterdir() if path.suffix == ".json"]
    return {f"folder/{path.name}": path.read_bytes() for path in names}


def _liuhaotian() -> dict[str, str | bytes]:
    """A config that says liuhaotian's format, and no weights."""
    config = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "mm_vision_tower": "clip",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 64,
    }
    tower = {"model_type": "clip_vision_model", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {
        "folder/config.json": json.dumps(config),
        "folder/clip/config.json": json.dumps(tower),
        "folder/clip/preprocessor_config.json": '{"image_processor_type": "CLIPImageProcessor"}',
    }


def _baseline() -> bytes:
    return (Path(__file__).parent.parent / "baselines" / "tiny.json").read_bytes()


def _board(more: str = "", budgets: str = "[64]", methods: str = "[none, fastv]") -> str:
    head = "name: b\noutput: out\nmodel_args: {pretrained: tiny}\n"
    return f"{head}tasks: [{{name: shapes_mcq}}]\nbudgets: {budgets}\nmethods: {methods}\n{more}"


def _plan(stages: str, more: str = "") -> str:
    return f"name: mine\nstages:\n{stages}{more}"


# In every folder: two good files, and a file where a folder is asked for.
FOLDER: dict[str, str | bytes] = {"images/a.png": _picture("PNG"), "Q.json": _questions(), "taken": "a file"}

SETUP = """\
from dataclasses import replace
import torch
from PIL import Image
from lmms_textweighted import Plan, Stage, load, make_plan, prune
from lmms_textweighted.inference import Decoding, PrunedLlava
from lmms_textweighted.families import LoadOptions
from lmms_textweighted.harness.generation import split_generation_kwargs
from lmms_textweighted.harness.visuals import chat_message, pictures
from lmms_textweighted.methods import SCORERS
from lmms_textweighted.pictures import open_picture
from lmms_textweighted.prompts import Message, user_message
picture = Image.new("RGB", (24, 24))
"""

_SWEEP = "lmms-textweighted sweep "
_EVAL = "lmms-eval --model llava_textweighted --tasks shapes_mcq --model_args pretrained=tiny,"
_ASKED = "lmms-eval --model llava_textweighted --tasks shapes_mcq --model_args pretrained="
_FILE = "lmms-textweighted sweep --question-file Q.json --image-folder images"
_LOCAL = "lmms-eval --model llava_textweighted --tasks mcq_local --model_args pretrained=tiny"
_TINY = '>>> llava = PrunedLlava(*load("tiny"), make_plan(keep_tokens=64))\n'

GROUPS = (
    Group(
        "Command line",
        "Arguments and config files of `lmms-textweighted`.",
        (
            Bad(_SWEEP + "--num-samples 0", ("num_samples", "'0'")),
            Bad(_SWEEP + "--pruning-layer 8", ("pruning layer is 8", "8 decoder layers"), slow=True),
            Bad(_SWEEP + "--pruning-layer=-1", ("pruning layer is -1",)),
            Bad(_SWEEP + "--strategies text_wieghted", ("'text_wieghted'", "did you mean 'text_weighted'?")),
            Bad(_SWEEP + "--strategies ,", ("strategies is empty",)),
            Bad(_SWEEP + "--seed 1.5", ("seed", "'1.5'")),
            Bad(_SWEEP + "--text-scope befor", ("text_scope", "'befor'")),
            Bad(_SWEEP + "--keep-scope imag", ("keep_scope", "'imag'")),
            Bad(_SWEEP + "--image-aspect-ratio sqare", ("image_aspect_ratio", "'sqare'", "did you mean 'square'?")),
            Bad(_SWEEP + "--attn-implementation flex_attention", ("attn_implementation is 'flex_attention'",)),
            Bad(_SWEEP + "--loader lava", ("loader", "'lava'", "did you mean 'llava'?")),
            Bad(_SWEEP + "--device meta", ("device is 'meta'",)),
            Bad(_SWEEP + "--model-base x", ("model_base is 'x'",)),
            Bad(_SWEEP + "--task no_such_task", ("unknown task 'no_such_task'",), slow=True),
            Bad(_SWEEP + "--output-dir taken/out", ("output folder 'taken/out'",)),
            Bad(_SWEEP + "--views -1", ("views is -1",)),
            Bad(_SWEEP + "--html images", ("html is 'images'", "a folder")),
            Bad(_SWEEP + "--task shapes_mcq --question-file Q.json", ("'shapes_mcq'", "'Q.json'")),
            Bad(_SWEEP + "--image-folder images", ("image_folder is 'images'",)),
            Bad(_SWEEP + "--skip-missing", ("skip_missing",)),
            Bad(_SWEEP + "--fast-v-sys-length 35 --num-samples 1", ("system length is stated as 35", "32"), slow=True),
            Bad(
                _SWEEP + "--fast-v-image-token-length 575 --num-samples 1",
                ("image length is stated as 575", "576"),
                slow=True,
            ),
            Bad(_SWEEP + "--config none.yaml", ("config 'none.yaml'",)),
            Bad(_SWEEP + "--config odd.yaml", ("config 'odd.yaml'", "'tokns'"), {"odd.yaml": "tokns: 64\n"}),
            Bad(_SWEEP + "--config list.yaml", ("config 'list.yaml'",), {"list.yaml": "- 64\n"}),
            Bad(_SWEEP + "--config seed.yaml", ("seed is 'abc'",), {"seed.yaml": "seed: abc\n"}),
            Bad(
                _SWEEP + "--config skip.yaml",
                ("skip_missing is 'often'",),
                {"skip.yaml": "question_file: Q.json\nskip_missing: often\n"},
            ),
            Bad(
                _SWEEP + "--config both.yaml",
                ("task is 'shapes_mcq'", "question_file is 'Q.json'"),
                {"both.yaml": "task: shapes_mcq\nquestion_file: Q.json\n"},
            ),
            Bad(
                _SWEEP + "--config task.yaml --question-file Q.json",
                ("task is 'pope'", "question_file is 'Q.json'"),
                {"task.yaml": "task: pope\n"},
            ),
            Bad("lmms-textweighted config shaps", ("config 'shaps'",)),
            Bad("lmms-textweighted config shapes --output taken/shapes.yaml", ("'taken/shapes.yaml'",)),
            Bad("lmms-textweighted convert nowhere new", ("'nowhere'",)),
            Bad("lmms-textweighted convert tiny images", ("target 'images'",)),
            Bad("lmms-textweighted methods fastw", ("'fastw'", "did you mean 'fastv'?")),
            Bad("lmms-textweighted methods fastv --layers 1", ("layers is 1",)),
        ),
    ),
    Group(
        "Model arguments",
        "`--model_args` and other options of `lmms-eval`. A run ends with exit code 1, where lmms-eval itself would"
        " print a traceback and exit with 0.",
        (
            Bad(_EVAL + "keep_token=64", ("'keep_token'", "did you mean 'keep_tokens'?")),
            Bad(_EVAL + "strategy=text_weigted", ("strategy", "'text_weigted'", "did you mean 'text_weighted'?")),
            Bad(_EVAL + "strategy=fastv_k2,pruning_layer=3", ("pruning_layer is 3", "fastv_k2")),
            Bad(_EVAL + "pruning_layer=8", ("pruning layer is 8", "8 decoder layers")),
            Bad(_EVAL + "pruning_layer=two", ("pruning layer is 'two'",)),
            Bad(_EVAL + "positions=shift", ("positions", "'shift'")),
            Bad(_EVAL + "conv_template=vicuna", ("conv_template", "'vicuna'", "did you mean 'vicuna_v1'?")),
            Bad(_EVAL + "image_aspect_ratio=anyres", ("image_aspect_ratio is 'anyres'",)),
            Bad(_EVAL + "dtype=int8", ("dtype is 'int8'",)),
            Bad(_EVAL + "attn_implementation=flex_attention", ("attn_implementation is 'flex_attention'",)),
            Bad(_EVAL + "loader=llava", ("loader=llava", "'tiny'")),
            Bad(_EVAL + "vision_tower=clip", ("vision_tower is 'clip'",)),
            Bad(_EVAL + "strategy=cdpruner", ("cdpruner", "text_tower", "openai/clip-vit-large-patch14-336")),
            Bad(_EVAL + "strategy=trim,text_tower=./nowhere", ("text_tower is './nowhere'",)),
            Bad(
                _EVAL + "strategy=trim,text_tower=openai/clip-vit-large-patch14-336",
                ("text_tower 'openai/clip-vit-large-patch14-336'", "not on disk"),
            ),
            Bad(
                _EVAL + "strategy=trim,text_tower=folder/clip",
                ("text_tower 'folder/clip'", "'clip_vision_model'"),
                _liuhaotian(),
                shown=False,
            ),
            Bad(
                _EVAL + "strategy=cdpruner,text_tower=clip",
                ("text_tower 'clip'", "hidden_size is 768", "128"),
                {"clip/config.json": '{"model_type": "clip"}'},
            ),
            Bad(_EVAL + "seed=abc", ("seed is 'abc'",)),
            Bad(_EVAL + "ranks=maybe", ("ranks is 'maybe'",)),
            Bad(_EVAL + "device=meta", ("device is 'meta'",)),
            Bad(_EVAL + "seed=0 --batch_size auto", ("batch_size is 'auto'",)),
            Bad(_EVAL + "seed=0 --num_fewshot 2", ("num_fewshot is 2",)),
            Bad(_EVAL + "seed=0 --apply_chat_template", ("apply_chat_template",)),
            Bad(_EVAL + "seed=0 --output_path taken/out", ("output folder 'taken/out'",)),
        ),
    ),
    Group(
        "Budgets",
        "How many image tokens stay.",
        (
            Bad(_SWEEP + "--tokens 577", ("keep_tokens is 577", "576"), slow=True),
            Bad(_SWEEP + "--strategies random,trim", ("trim", "text_tower")),
            Bad(_SWEEP + "--tokens=-5", ("tokens is '-5'",)),
            Bad(_SWEEP + "--tokens many", ("tokens is 'many'",)),
            Bad(_SWEEP + "--tokens 64:16:8", ("tokens is '64:16:8'",)),
            Bad(_SWEEP + "--budget token", ("budget", "'token'")),
            Bad(_EVAL + "keep_tokens=577", ("keep_tokens is 577", "576")),
            Bad(_EVAL + "keep_tokens=-3", ("keep_tokens is -3",)),
            Bad(_EVAL + "keep_tokens=12.5", ("keep_tokens is 12.5",)),
            Bad(_EVAL + "keep_ratio=0", ("keep_ratio is 0",)),
            Bad(_EVAL + "keep_ratio=1.5", ("keep_ratio is 1.5",)),
            Bad(_EVAL + "keep_ratio=0.5,keep_tokens=64", ("keep_tokens is 64", "keep_ratio is 0.5")),
            Bad(_EVAL + "equivalent_tokens=100", ("equivalent_tokens is 100", "216")),
            Bad(_EVAL + "equivalent_tokens=600", ("equivalent_tokens is 600", "576")),
            Bad(_EVAL + "flops_ratio=1.5", ("flops_ratio is 1.5",)),
            Bad(_EVAL + "flops_ratio=0.5,keep_tokens=64", ("keep_tokens is 64", "flops_ratio is 0.5")),
            Bad(_EVAL + "strategy=fastv_k2_mean192", ("fastv_k2_mean192", "32 decoder layers", "8")),
            Bad(_EVAL + "strategy=fastv_k2_mean192,keep_tokens=9", ("keep_tokens is 9", "fastv_k2_mean192")),
        ),
    ),
    Group(
        "Plan files and methods of one's own",
        "`strategy=plan.yaml` and `strategy=FILE.py:NAME`.",
        (
            Bad(_EVAL + "strategy=nowhere.yaml", ("plan 'nowhere.yaml'",)),
            Bad(_EVAL + "strategy=plan.yaml", ("plan 'plan.yaml'", "line 2"), {"plan.yaml": "name: [mine\n"}),
            Bad(_EVAL + "strategy=plan.yaml", ("plan 'plan.yaml'",), {"plan.yaml": "- mine\n"}),
            Bad(
                _EVAL + "strategy=plan.yaml",
                ("plan 'plan.yaml'", "line 4", "keep_token"),
                {"plan.yaml": _plan("- scorer: fastv\n  keep_token: 4\n")},
            ),
            Bad(
                _EVAL + "strategy=plan.yaml",
                ("plan 'plan.yaml'", "line 3", "'fastw'"),
                {"plan.yaml": _plan("- {scorer: fastw, layer: 1, keep_tokens: 4}\n")},
            ),
            Bad(
                _EVAL + "strategy=plan.yaml",
                ("plan 'plan.yaml'", "line 3", "keep_ratio is 2.0"),
                {"plan.yaml": _plan("- {scorer: uniform, layer: 1, keep_ratio: 2}\n")},
            ),
            Bad(
                _EVAL + "strategy=plan.yaml",
                ("plan 'plan.yaml'", "layer 3"),
                {
                    "plan.yaml": _plan(
                        "- {scorer: uniform, layer: 3, keep_tokens: 8}\n- {scorer: uniform, layer: 1, keep_tokens: 4}\n"
                    )
                },
            ),
            Bad(
                _EVAL + "strategy=plan.yaml",
                ("plan 'plan.yaml'", "line 5", "positions"),
                {
                    "plan.yaml": _plan(
                        "- {scorer: uniform, layer: 1, keep_tokens: 4}\n", "positions: keep\npositions: keep\n"
                    )
                },
            ),
            Bad(
                _EVAL + "strategy=plan.yaml,keep_tokens=9",
                ("keep_tokens is 9", "mine"),
                {"plan.yaml": _plan("- {scorer: uniform, layer: 1, keep_tokens: 4}\n")},
            ),
            Bad(_EVAL + "strategy=mine.py:MINE", ("'mine.py:MINE'",)),
            Bad(_EVAL + "strategy=mine.py:MINE", ("'mine.py:MINE'",), {"mine.py": "OTHER = 1\n"}),
            Bad(_EVAL + "strategy=mine.py:MINE", ("'mine.py:MINE'", "1"), {"mine.py": "MINE = 1\n"}),
            Bad(
                '>>> model, processor = load("tiny")\n>>> prune(model, Plan("mine", (Stage(SCORERS["uniform"], 7, '
                "keep_tokens=4),))).__enter__()",
                ("pruning layer is 7", "8 decoder layers"),
            ),
            Bad('>>> Plan("mine", (Stage(SCORERS["uniform"], 2),))', ("keep_tokens is None", "keep_ratio is None")),
        ),
    ),
    Group(
        "Question files",
        "`--question-file` and the task `mcq_local`. `Q.json` is a list of one question where it is not shown.",
        (
            Bad(_SWEEP + "--question-file nowhere.json", ("question file 'nowhere.json'",)),
            Bad(_SWEEP + "--question-file Q.json", ("question file 'Q.json'", "1 picture")),
            Bad(_SWEEP + "--question-file Q.json --image-folder nowhere", ("image folder 'nowhere'",)),
            Bad(_FILE, ("question file 'Q.json'", "line 1, column 2"), {"Q.json": "{'id': 1}"}),
            Bad(_FILE, ("question file 'Q.json'", "byte 2"), {"Q.json": b'["\xff"]'}, shown=False),
            Bad(_FILE, ("question file 'Q.json'", "object"), {"Q.json": "{}"}),
            Bad(_FILE, ("question file 'Q.json'", "empty list"), {"Q.json": "[]"}),
            Bad(_FILE, ("question file 'Q.json'", "entry 0", "5"), {"Q.json": "[5]"}),
            Bad(_FILE, ("question file 'Q.json'", "entry 0", "id"), {"Q.json": '[{"conversations": []}]'}),
            Bad(_FILE, ("'Q.json'", "'q'", "0 conversations"), {"Q.json": '[{"id": "q", "conversations": []}]'}),
            Bad(_FILE, ("'Q.json'", "id 'q0'"), {"Q.json": _questions({}, {"id": "q0"})}, shown=False),
            Bad(_FILE, ("'Q.json'", "(id 'q0')", "'bot'"), {"Q.json": _questions().replace("gpt", "bot")}, shown=False),
            Bad(_FILE, ("'Q.json'", "(id 'q0')", "'C'"), {"Q.json": _questions().replace('"A"', '"C"')}, shown=False),
            Bad(
                _FILE,
                ("'Q.json'", "(id 'q0')", "no two options"),
                {"Q.json": _questions().replace("A. x", "x")},
                shown=False,
            ),
            Bad(
                _FILE,
                ("'Q.json'", "(id 'q0')", "2 <image> tags"),
                {"Q.json": _questions().replace("Which?", "<image><image>Which?")},
                shown=False,
            ),
            Bad(
                _FILE,
                ("'Q.json'", "(id 'q0')", "<image> tag but no image"),
                {"Q.json": _questions({"image": None}).replace("Which?", "<image>Which?")},
                shown=False,
            ),
            Bad(
                _FILE,
                ("'Q.json'", "(id 'q0')", "'../a.png'"),
                {"Q.json": _questions({"image": "../a.png"})},
                shown=False,
            ),
        ),
    ),
    Group(
        "Pictures",
        "Wherever a picture is opened; all bad ones of a question file are named at once, before the model is loaded.",
        (
            Bad(
                _FILE,
                ("1 of 1 pictures", "'images/b.png' is missing"),
                {"Q.json": _questions({"image": "b.png"})},
                shown=False,
            ),
            Bad(
                _FILE,
                ("1 of 1 pictures", "'images/b.jpg' is broken"),
                {"Q.json": _questions({"image": "b.jpg"}), "images/b.jpg": _half("JPEG")},
                shown=False,
            ),
            Bad(
                _FILE,
                ("1 of 1 pictures", "'images/b.png' is no picture"),
                {"Q.json": _questions({"image": "b.png"}), "images/b.png": "<svg/>"},
                shown=False,
            ),
            Bad(
                _FILE,
                ("1 of 1 pictures", "'images/b.png' has more than 89478485 pixels"),
                {"Q.json": _questions({"image": "b.png"}), "images/b.png": _bomb()},
                shown=False,
            ),
            Bad(
                '>>> open_picture("images/b.jpg")',
                ("'images/b.jpg' is broken",),
                {"images/b.jpg": _half("JPEG")},
                shown=False,
            ),
            Bad('>>> open_picture("images/b.png")', ("'images/b.png' is missing",)),
            Bad('>>> pictures(["images/b.mp4"])', ("'images/b.mp4'",)),
        ),
    ),
    Group(
        "Checkpoints",
        "`pretrained`, `--model-path`, `load`: a folder or a hub name.",
        (
            Bad(_ASKED + "./nowhere", ("checkpoint folder './nowhere'",)),
            Bad(_ASKED + "nobody/no-such-llava", ("'nobody/no-such-llava'",)),
            Bad(
                _ASKED + "./folder",
                ("'./folder'", "config.json"),
                {"folder/note.txt": "nothing"},
                shown=False,
            ),
            Bad(
                _ASKED + "./folder",
                ("'./folder'", "'gpt2'"),
                {"folder/config.json": '{"model_type": "gpt2"}'},
            ),
            Bad(_ASKED + "./folder", ("'./folder'",), {"folder/config.json": "{"}),
            Bad(
                _ASKED + "./folder",
                ("'./folder'",),
                {**_tiny(), "folder/model.safetensors": b""},
                shown=False,
            ),
            Bad(_ASKED + "./folder", ("'folder'", "no weights"), _tiny(), shown=False),
            Bad(
                _ASKED + "./folder",
                ("'folder'", "pytorch_model-1.bin"),
                {
                    **_liuhaotian(),
                    "folder/pytorch_model.bin.index.json": '{"weight_map": {"a": "pytorch_model-1.bin"}}',
                },
                shown=False,
            ),
            Bad(
                _ASKED + "./folder",
                ("'folder/pytorch_model.bin.index.json'", "'../other.bin'"),
                {**_liuhaotian(), "folder/pytorch_model.bin.index.json": '{"weight_map": {"a": "../other.bin"}}'},
                shown=False,
            ),
            Bad(
                _ASKED + "./folder",
                ("'folder/pytorch_model.bin'",),
                {**_liuhaotian(), "folder/pytorch_model.bin": pickle.dumps(os.getcwd)},
                shown=False,
            ),
            Bad(
                _ASKED + "./folder",
                ("vision tower", "folder/clip'", "hidden size (32)", "heads (5)"),
                {
                    **_liuhaotian(),
                    "folder/clip/config.json": '{"model_type": "clip_vision_model", "hidden_size": 32, '
                    '"num_attention_heads": 5}',
                },
                shown=False,
            ),
            Bad('>>> load("tiny", LoadOptions(dtype="half"))', ("dtype is 'half'",)),
            Bad(">>> prune(torch.nn.Linear(2, 2), make_plan(keep_tokens=4)).__enter__()", ("Linear",)),
        ),
    ),
    Group(
        "Prompts",
        "One document that cannot be asked; in a run the line begins with its task and number.",
        (
            Bad(
                _TINY + '>>> llava.generate([[user_message("Which? " * 2000, [picture])]], Decoding())',
                ("tokens", "2048"),
            ),
            Bad(
                _TINY + '>>> llava.generate([[user_message("<image> or <image>?", [picture])]], Decoding())',
                ("2 <image> tags", "1 pictures"),
            ),
            Bad(
                _TINY + '>>> llava.generate([[Message("assistant", (("text", "A"),))]], Decoding())',
                ("begin with the user",),
            ),
            Bad(
                _TINY + '>>> llava.generate([[Message("tool", (("text", "A"),))]], Decoding())',
                ("'tool'",),
            ),
            Bad(
                _TINY + '>>> chat_message({"role": "user", "content": [{"type": "video", "url": "a.mp4"}]})',
                ("'video'",),
            ),
            Bad(
                _TINY + '>>> replace(llava, plan=make_plan(keep_tokens=64, text_scope="question")).generate(\n'
                '>>>     [[user_message("A. red\\nB. blue", [picture])]], Decoding())',
                ("no question",),
            ),
            Bad('>>> split_generation_kwargs({"temperature": -1})', ("temperature is -1",)),
            Bad('>>> split_generation_kwargs({"max_new_tokens": 0})', ("max_new_tokens is 0",)),
            Bad('>>> split_generation_kwargs({"until": 5})', ("until is 5",)),
            Bad('>>> split_generation_kwargs({"do_sample": "yes"})', ("do_sample is 'yes'",)),
        ),
    ),
    Group(
        "Result folders",
        "What `compare` and `regress` read, and what `sweep` would write over.",
        (
            Bad("lmms-textweighted compare", ("no run is given",)),
            Bad("lmms-textweighted compare nowhere", ("run 'nowhere'",)),
            Bad("lmms-textweighted compare images", ("run 'images'",)),
            Bad("lmms-textweighted compare taken", ("run 'taken'",)),
            Bad(
                "lmms-textweighted compare run", ("run 'run/", "is no JSON"), {"run/20250101_000000_results.json": "{"}
            ),
            Bad(
                "lmms-textweighted compare run", ("run 'run/", "no results"), {"run/20250101_000000_results.json": "{}"}
            ),
            Bad(
                "lmms-textweighted compare run",
                ("run 'run/", "samples of pope"),
                {
                    "run/20250101_000000_results.json": '{"results": {"pope": {"pope_f1_score,none": 0.8}}, '
                    '"n-samples": {"pope": {"original": 9, "effective": 9}}}'
                },
            ),
            Bad(
                "lmms-textweighted compare run",
                ("run 'run/fastv_textweighted_layer2_experiment.json'", "no meta"),
                {"run/fastv_textweighted_layer2_experiment.json": "{}"},
            ),
            Bad("lmms-textweighted compare run --format html", ("format", "'html'")),
            Bad("lmms-textweighted compare run --output table.html", ("output 'table.html'",)),
            Bad("lmms-textweighted compare run --html taken/page.html", ("page 'taken/page.html'",)),
            Bad("lmms-textweighted compare run --metric pope", ("metric is 'pope'",)),
            Bad("lmms-textweighted compare run --published fastw", ("published table 'fastw'", "did you mean")),
            Bad(
                _SWEEP + "--output-dir out",
                ("result 'out/fastv_textweighted_layer2_experiment.json'",),
                {"out/fastv_textweighted_layer2_experiment.json": "{}"},
            ),
            Bad("lmms-textweighted regress --baseline nowhere.json", ("baseline 'nowhere.json'",), code=2),
            Bad(
                "lmms-textweighted regress --baseline b.json",
                ("baseline 'b.json'", "is no JSON"),
                {"b.json": "{"},
                code=2,
            ),
            Bad(
                "lmms-textweighted regress --baseline b.json",
                ("baseline 'b.json'", "schema_version 0"),
                {"b.json": '{"schema_version": 0}'},
                code=2,
            ),
            Bad(
                "lmms-textweighted regress --baseline b.json --num-samples 4",
                ("num_samples is 4",),
                {"b.json": _baseline()},
                shown=False,
                code=2,
            ),
        ),
    ),
    Group(
        "Bias reports",
        "`lmms-textweighted bias`.",
        (
            Bad("lmms-textweighted bias", ("no result is given",)),
            Bad("lmms-textweighted bias nowhere", ("result 'nowhere'",)),
            Bad("lmms-textweighted bias images", ("result 'images'", "fastv_textweighted_layer*_experiment.json")),
            Bad("lmms-textweighted bias images/a.png", ("result 'images/a.png'",)),
            Bad("lmms-textweighted bias images --tokens many", ("tokens is 'many'",)),
            Bad("lmms-textweighted bias bias.json", ("report 'bias.json'", "format 0"), {"bias.json": '{"format": 0}'}),
            Bad(
                "lmms-textweighted bias swept",
                ("does not record its options",),
                {"swept/fastv_textweighted_layer2_experiment.json": '{"strategies": {}, "meta": {}}'},
            ),
            Bad("lmms-textweighted bias images --output table.doc", ("output 'table.doc'",)),
        ),
    ),
    Group(
        "Leaderboards",
        "`lmms-textweighted leaderboard FILE`.",
        (
            Bad("lmms-textweighted leaderboard tini", ("'tini'", "did you mean 'tiny'?")),
            Bad("lmms-textweighted leaderboard b.yaml", ("'b.yaml'",), {"b.yaml": "name: [b\n"}),
            Bad(
                "lmms-textweighted leaderboard b.yaml",
                ("'b.yaml'", "tasks"),
                {"b.yaml": "name: b\noutput: out\nmodel_args: {pretrained: tiny}\n"},
            ),
            Bad("lmms-textweighted leaderboard b.yaml", ("'b.yaml'", "task "), {"b.yaml": _board("task: []\n")}),
            Bad(
                "lmms-textweighted leaderboard b.yaml", ("'b.yaml'", "budgets", "0"), {"b.yaml": _board(budgets="[0]")}
            ),
            Bad(
                "lmms-textweighted leaderboard b.yaml --dry-run",
                ("'fastw'", "did you mean 'fastv'?"),
                {"b.yaml": _board(methods="[fastw]")},
            ),
            Bad("lmms-textweighted leaderboard tiny --only fastw-*", ("run", "'fastw-*'")),
            Bad("lmms-textweighted leaderboard tiny --limit 0", ("limit is 0",)),
            Bad("lmms-textweighted leaderboard tiny --launcher nowhere", ("launcher 'nowhere'",), slow=True),
            Bad("lmms-textweighted leaderboard tiny --flops-per-second 0 --dry-run", ("flops_per_second is 0",)),
            Bad("lmms-textweighted leaderboard tiny --output-dir taken/out", ("'taken/out/none'",), slow=True),
        ),
    ),
    Group(
        "Pictures of what stays",
        "`lmms-textweighted show` and `demo`.",
        (
            Bad("lmms-textweighted show", ("picture", "question", "--task")),
            Bad("lmms-textweighted show nowhere.png 'What is it?'", ("'nowhere.png' is missing",)),
            Bad("lmms-textweighted show images/a.png 'What is it?' --choices red", ("choices is 'red'",)),
            Bad(
                "lmms-textweighted show images/a.png 'What is it?' --choices red,blue --target green",
                ("target is 'green'",),
            ),
            Bad("lmms-textweighted show images/a.png 'What is it?' --keep 600", ("keep_tokens is 600", "576")),
            Bad("lmms-textweighted show images/a.png 'What is it?' --keep 0.5", ("keep is 0.5", "--budget")),
            Bad("lmms-textweighted show images/a.png 'What is it?' --budget tokens", ("budget is 'tokens'",)),
            Bad("lmms-textweighted show images/a.png 'What is it?' --doc 3", ("doc is 3", "--task")),
            Bad("lmms-textweighted show images/a.png 'What is it?' --output taken/out", ("'taken/out'",)),
            Bad(
                "lmms-textweighted show images/a.png 'What is it?' --task shapes_mcq",
                ("task is 'shapes_mcq'", "'images/a.png'"),
            ),
            Bad("lmms-textweighted show --task shapes_mcq --doc 500", ("doc is 500", "500 documents"), slow=True),
            Bad("lmms-textweighted show --task shapes_mcq --choices a,b", ("choices is 'a,b'",)),
            Bad("lmms-textweighted demo --port 0", ("port is 0",)),
        ),
    ),
    Group(
        "Environment variables",
        "In front of the command.",
        (
            Bad(_LOCAL, ("LMMS_TEXTWEIGHTED_QUESTION_FILE",)),
            Bad("LMMS_TEXTWEIGHTED_QUESTION_FILE=nowhere.json " + _LOCAL, ("question file 'nowhere.json'",)),
            Bad("LMMS_TEXTWEIGHTED_QUESTION_FILE=Q.json " + _LOCAL, ("'Q.json'", "LMMS_TEXTWEIGHTED_IMAGE_FOLDER")),
            Bad(
                "LMMS_TEXTWEIGHTED_QUESTION_FILE=Q.json LMMS_TEXTWEIGHTED_IMAGE_FOLDER=nowhere " + _LOCAL,
                ("image folder 'nowhere'",),
            ),
            Bad(
                "LMMS_TEXTWEIGHTED_QUESTION_FILE=Q.json LMMS_TEXTWEIGHTED_SKIP_MISSING=often " + _LOCAL,
                ("LMMS_TEXTWEIGHTED_SKIP_MISSING is 'often'",),
            ),
        ),
    ),
)

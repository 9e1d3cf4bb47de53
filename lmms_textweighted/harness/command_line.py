"""What lmms-eval's own command line asks for, where it is that command line that runs us.

A model is told a part of it only. In every other program the arguments are not ours to read: they are never looked at.
"""

from __future__ import annotations

import sys
from typing import Any

import yaml
from lmms_eval.utils import simple_parse_args_string

from lmms_textweighted.errors import InputError, first_line
from lmms_textweighted.harness.names import MODEL_NAMES

CHAT_TEMPLATE = "apply_chat_template: the model writes its own prompts, conv_template says which: leave it out"


def asked_runs() -> list[dict[str, Any]]:
    """The options of each run, read by lmms-eval's own parser; several where a `--config` file lists them.

    Empty where the program is not lmms-eval's command. Raises InputError for a config file that cannot be read.
    """
    if not _is_running():
        return []
    from lmms_eval.__main__ import parse_eval_args

    try:
        parser, given = parse_eval_args()
    except SystemExit:  # lmms-eval has read them before: they are none of its own
        return []
    options = vars(given)
    if not options.get("config"):
        return [options]
    defaults = vars(parser.parse_args([]))
    stated = {name: value for name, value in options.items() if value != defaults.get(name)}
    return [{**defaults, **run, **stated} for run in _runs_of(options["config"])]


def check_supported(runs: list[dict[str, Any]]) -> None:
    """Raise InputError for an option that would do something else than it says, or would end in lmms-eval's traceback
    and exit code 0."""
    for run in _ours(runs):
        if run.get("num_fewshot"):
            raise InputError(
                f"num_fewshot is {run['num_fewshot']}: lmms-eval gives the examples without their pictures: leave it "
                f"out"
            )
        if run.get("apply_chat_template"):
            raise InputError(CHAT_TEMPLATE)


def asked_decoding(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The `--gen_kwargs` of our model's runs, parsed as lmms-eval does it."""
    return [simple_parse_args_string(run["gen_kwargs"]) for run in _ours(runs) if run.get("gen_kwargs")]


def _ours(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [run for run in runs if run.get("model") in MODEL_NAMES]


def _is_running() -> bool:
    """Whether this program is `lmms-eval …` or `python -m lmms_eval …`, under a launcher or not."""
    main: Any = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    script = getattr(getattr(main, "main", None), "__module__", None)  # what pip wrote into bin/
    ours = (spec is not None and spec.name == "lmms_eval.__main__") or script == "lmms_eval.cli.dispatch"
    # Its other commands (serve, tui, …) begin with a word. Its own entry point has taken the word `eval` away.
    return ours and sys.argv[1:2] != [] and sys.argv[1].startswith("-")


def _runs_of(config: str) -> list[dict[str, Any]]:
    try:
        with open(config, encoding="utf-8") as file:
            loaded = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"config {config!r} cannot be read: {first_line(error)}") from error
    return [run for run in (loaded if isinstance(loaded, list) else [loaded]) if isinstance(run, dict)]

"""What is used of lmms-eval, none of which it promises."""

from __future__ import annotations

import dataclasses
import inspect
import tempfile
from pathlib import Path
from typing import Any

from lmms_textweighted.upstream.unpromised import LMMS_EVAL, Names

HARNESS = Names("lmms-eval", LMMS_EVAL)
_MODEL, _SECOND = "llava_textweighted", "vlm_textweighted"


def _takes(function: Any, *names: str) -> bool:
    return set(names) <= set(inspect.signature(function).parameters)


def _instance(**metadata: Any) -> Any:
    from lmms_eval.api.instance import Instance

    about = {"task": "shapes", "doc_id": 3, "repeats": 1, **metadata}
    return Instance("generate_until", ("question", {}), 0, about)


def _task() -> Any:
    """A task of one document over a folder of our own, as a YAML file would say it."""
    from lmms_eval.api.task import ConfigurableTask

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data.jsonl").write_text('{"question": "What ?", "answer": "B"}\n')
        config = {
            "task": "textweighted_tried",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(Path(folder) / "data.jsonl")}, "cache_dir": folder},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": lambda doc, kwargs=None: kwargs["before"] + doc["question"],
            "doc_to_visual": lambda doc: [],
            "doc_to_target": "answer",
            "process_results": lambda doc, results: {"exact_match": float(results[0] == doc["answer"])},
            "generation_kwargs": {"max_new_tokens": 4},
            "lmms_eval_specific_kwargs": {"default": {"before": "-"}, _MODEL: {"before": "+"}},
            "model_specific_generation_kwargs": {_MODEL: {"ranks": True}},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }
        return ConfigurableTask(config=config, model_name=_MODEL)


@HARNESS(
    "models.registry_v2.ModelManifest(model_id=, simple_class_path=, chat_class_path=, aliases=)", "harness.manifest"
)
def _manifest() -> bool:
    from lmms_eval.models.registry_v2 import ModelManifest

    made = ModelManifest(model_id="a", simple_class_path="b.C", chat_class_path="b.D", aliases=("e",))
    return (made.model_id, made.simple_class_path, made.chat_class_path, made.aliases) == ("a", "b.C", "b.D", ("e",))


@HARNESS("the entry-point group lmms_eval.models, read by models.registry_v2.ModelRegistryV2", "harness.manifest")
def _entry_point() -> bool:
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    registry = ModelRegistryV2()
    registry.load_entrypoint_manifests()
    chat, simple = registry.resolve(_MODEL), registry.resolve(_MODEL, force_simple=True)
    second = registry.resolve(_SECOND)
    return (
        (chat.model_type, simple.model_type) == ("chat", "simple")
        and chat.class_path == second.class_path
        and chat.class_path.endswith("Chat")
    )


@HARNESS("api.model.lmms: is_simple, clean(), task_dict, _rank and _world_size", "harness.model")
def _model() -> bool:
    from lmms_eval.api.model import lmms

    class Model(lmms):
        def loglikelihood(self, requests: Any) -> Any: ...

        def generate_until(self, requests: Any) -> Any: ...

        def generate_until_multi_round(self, requests: Any) -> Any: ...

    made = Model()
    made._rank, made._world_size = 1, 2
    return (made.rank, made.world_size, made.task_dict, lmms.is_simple) == (1, 2, {}, True) and callable(made.clean)


@HARNESS("api.instance.Instance: args, doc_id, task_name, metadata", "harness.model")
def _request() -> bool:
    made = _instance(more=1)
    return (made.args, made.doc_id, made.task_name, made.metadata["more"]) == (("question", {}), 3, "shapes", 1)


@HARNESS("api.instance.GenerationResult(text=, token_counts=), TokenCounts.to_dict()", "harness.model")
def _result() -> bool:
    from lmms_eval.api.instance import GenerationResult, TokenCounts, unwrap_generation_output

    @dataclasses.dataclass
    class Counts(TokenCounts):
        def to_dict(self) -> dict[str, Any]:
            return {**super().to_dict(), "more": 1}

    made = GenerationResult(text="B", token_counts=Counts(input_tokens=5, output_tokens=1))
    text, counts = unwrap_generation_output(made)
    return text == "B" and counts.to_dict() == {"input_tokens": 5, "output_tokens": 1, "more": 1}


@HARNESS("metadata['__padding_only__'] at requests that fill up a process's share", "harness.model")
def _padding() -> bool:
    from lmms_eval.evaluator import _clone_padding_request

    return bool(_clone_padding_request(_instance()).metadata["__padding_only__"])


@HARNESS("models.model_utils.gen_metrics.log_metrics(… additional_metrics=)", "harness.model")
def _metrics() -> bool:
    from lmms_eval.models.model_utils.gen_metrics import log_metrics

    return _takes(log_metrics, "total_elapsed_time", "total_gen_tokens", "avg_speed", "additional_metrics")


@HARNESS(
    "tasks.TaskManager(verbosity, include_path=, model_name=).all_tasks", "harness.documents, leaderboard.documents"
)
def _manager() -> bool:
    from lmms_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tried.yaml").write_text("task: textweighted_tried\ndataset_path: json\n")
        # Without lmms-eval's own tasks, whose indexing takes seconds.
        manager = TaskManager("ERROR", include_path=folder, include_defaults=False, model_name=_MODEL)
        return list(manager.all_tasks) == ["textweighted_tried"]


@HARNESS("tasks.get_task_dict([name], manager, task_type)", "harness.documents")
def _task_dict() -> bool:
    from lmms_eval.tasks import get_task_dict

    return list(inspect.signature(get_task_dict).parameters)[:3] == ["task_name_list", "task_manager", "task_type"]


@HARNESS(
    "api.task.ConfigurableTask(config=, model_name=): eval_docs, doc_to_text, doc_to_visual, doc_to_target, "
    "process_results, OUTPUT_TYPE, config.metric_list",
    "harness.documents",
)
def _documents() -> bool:
    task = _task()
    document = task.eval_docs[0]
    scores = [task.process_results(document, [answer])["exact_match"] for answer in "AB"]
    return (
        (len(task.eval_docs), task.OUTPUT_TYPE, task.config.task) == (1, "generate_until", "textweighted_tried")
        and (task.doc_to_visual(document), task.doc_to_target(document), scores) == ([], "B", [0.0, 1.0])
        and task.config.metric_list[0]["metric"] == "exact_match"
    )


@HARNESS("lmms_eval_specific_kwargs and model_specific_generation_kwargs, by the model's name", "the tasks' YAML files")
def _by_model() -> bool:
    task = _task()
    given = task.config.generation_kwargs
    return task.doc_to_text(task.eval_docs[0]) == "+What ?" and (given["max_new_tokens"], given["ranks"]) == (4, True)


@HARNESS("utils.load_yaml_config(path), with `include:` and `!function`", "harness.documents")
def _yaml() -> bool:
    from lmms_eval.utils import load_yaml_config

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "utils.py").write_text("def given(doc):\n    return 7\n")
        (Path(folder) / "_base.yaml").write_text("dataset_path: json\n")
        (Path(folder) / "tried.yaml").write_text("include: _base.yaml\ntask: t\ndoc_to_text: !function utils.given\n")
        config = load_yaml_config(str(Path(folder) / "tried.yaml"))
    return (config["dataset_path"], config["task"], config["doc_to_text"](None)) == ("json", "t", 7)


@HARNESS(
    "tasks.scienceqa.utils: sqa_process_results, sqa_doc_to_target, sqa_doc_to_text, sqa_doc_to_visual",
    "harness.tasks, harness.local, the tasks' utils.py",
)
def _scienceqa() -> bool:
    from lmms_eval.tasks.scienceqa import utils

    document = {"hint": "", "question": "Q", "choices": ["a", "b"], "answer": 1, "image": None}
    words = {"format": "default", "pre_prompt": "<", "post_prompt": ">"}
    return (
        utils.sqa_process_results(document, ["B"])["exact_match"] == 1
        and utils.sqa_process_results(document, ["A"])["exact_match"] == 0
        and utils.sqa_doc_to_target(document) == "B"
        and utils.sqa_doc_to_text(document, words) == "<Q\nA. a\nB. b>"
        and utils.sqa_doc_to_visual(document) == []
    )


@HARNESS("tasks.seedbench.utils.seed_aggregation_result, tasks.mmmu.utils.evaluate_mmmu", "compare.judges")
def _judges() -> bool:
    from lmms_eval.tasks.mmmu.utils import evaluate_mmmu
    from lmms_eval.tasks.seedbench.utils import seed_aggregation_result

    record = {"id": "1", "question_type": "multiple-choice", "answer": "B", "parsed_pred": ["B"]}
    seed = [seed_aggregation_result([{"pred": pred, "answer": "B"}]) for pred in "AB"]
    return seed == [0, 1] and evaluate_mmmu([record])[1]["acc"] == 1


@HARNESS(
    "the tasks' own files: lmms_eval_specific_kwargs of qwen3_vl; utils.load_yaml_config(path, mode=simple)",
    "harness.prompts_of",
)
def _prompts() -> bool:
    import lmms_eval.tasks
    from lmms_eval.utils import load_yaml_config

    root = Path(str(lmms_eval.tasks.__file__)).parent
    names = ("mmmu/mmmu_val", "mmmu_pro/mmmu_pro_standard", "mmmu_pro/mmmu_pro_vision", "mmstar/mmstar")
    files = [root / f"{name}.yaml" for name in (*names, "simplevqa/simplevqa")]
    said = [load_yaml_config(str(file), mode="simple")["lmms_eval_specific_kwargs"]["qwen3_vl"] for file in files]
    return all(isinstance(words, dict) and "post_prompt" in words for words in said)


@HARNESS("a run's files: DATE_results.json and DATE_samples_TASK.jsonl", "harness.result_files, compare.runs")
def _files() -> bool:
    from lmms_eval.loggers import EvaluationTracker

    with tempfile.TemporaryDirectory() as folder:
        tracker = EvaluationTracker(output_path=folder)
        tracker.general_config_tracker.model_name_sanitized = "m"
        tracker.save_results_aggregated(results={}, samples={}, datetime_str="20260101_000000")
        tracker.save_results_samples(task_name="shapes", samples={})
        sample = {"arguments": ["q"], "resps": [["B"]], "filtered_resps": ["B"], "target": "B", "doc": {}}
        tracker.save_results_samples(task_name="shapes", samples=[sample])  # type: ignore[arg-type]
        found = sorted(path.name for path in Path(folder).rglob("*.json*"))
    return found == ["20260101_000000_results.json", "20260101_000000_samples_shapes.jsonl"]


@HARNESS("the response cache's folder is found again by $LMMS_CACHE_RUN_ID", "leaderboard.commands")
def _run_id() -> bool:
    from lmms_eval.caching import response_cache

    return "LMMS_CACHE_RUN_ID" in response_cache._CACHE_RUN_ID_ENV_KEYS


@HARNESS(
    "the response cache's key: generation kwargs and document, asked before and after the call", "harness.generation"
)
def _cache_key() -> bool:
    from lmms_eval.caching import response_cache

    return {"max_new_tokens", "temperature", "do_sample", "until"} <= response_cache.CACHE_RELEVANT_KEYS


@HARNESS("the response cache's key holds $LMMS_EVAL_GIT_COMMIT, where git finds no commit", "harness.cache_key")
def _cache_version() -> bool:
    import os
    from unittest.mock import patch

    from lmms_eval.caching import response_cache
    from lmms_eval.utils import get_lmms_eval_cache_version

    with patch.dict(os.environ, {"LMMS_EVAL_GIT_COMMIT": "0.7+ours", "GIT_DIR": os.devnull}):
        taken = get_lmms_eval_cache_version() == "0.7+ours"
    return taken and _takes(response_cache.compute_cache_key, "eval_version")


@HARNESS("an Exception of the model is printed, a SystemExit passes", "harness.stops")
def _ends() -> bool:
    from lmms_eval.models import get_model

    source = inspect.getsource(get_model)
    return "except Exception" in source and "except BaseException" not in source


@HARNESS(
    "command-line options --config --tasks --output_path --include_path --use_cache …",
    "leaderboard.commands, harness.command_line",
)
def _options() -> bool:
    import lmms_eval.__main__ as command

    source = inspect.getsource(command.parse_eval_args)
    used = ("config", "model", "model_args", "tasks", "batch_size", "limit", "output_path", "include_path", "use_cache")
    more = ("log_samples", "cache_requests", "force_simple", "num_fewshot", "gen_kwargs", "apply_chat_template")
    return all(f'"--{name}"' in source for name in (*used, *more))


@HARNESS("__main__.parse_eval_args() -> (parser, options of sys.argv); cli.dispatch.main", "harness.command_line")
def _command_line() -> bool:
    import lmms_eval.__main__ as command
    from lmms_eval.cli.dispatch import main

    source = inspect.getsource(command.parse_eval_args)
    return "return parser, args" in source and main.__module__ == "lmms_eval.cli.dispatch"


@HARNESS("api.instance.unwrap_generation_output gives a GenerationResult's text as it is", "harness.scored")
def _pair() -> bool:
    from lmms_eval.api.instance import GenerationResult, unwrap_generation_output

    pair: Any = (0.5, True)
    return unwrap_generation_output(GenerationResult(text=pair))[0] is pair


@HARNESS("a cached answer whose strip() is empty is not kept: caching.response_cache", "harness.scored")
def _not_kept() -> bool:
    from lmms_eval.api.instance import GenerationResult
    from lmms_eval.caching.response_cache import ResponseCache

    return not ResponseCache._is_valid_response(GenerationResult(text=" "), "loglikelihood")


@HARNESS("a task's fewshot_context(document, shots), bound in a request's doc_to_messages", "harness.visuals")
def _front() -> bool:
    task = _task()
    return task.fewshot_context(task.eval_docs[0], 0) == task.doc_to_text(task.eval_docs[0])

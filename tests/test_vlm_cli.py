"""The lmms-eval command under the second name, on a stock task and tiny checkpoints of three families."""

from __future__ import annotations

import pytest

from lmms_textweighted.tiny.testset import export_scienceqa
from tests.lmms_eval_runs import lmms_eval
from tests.vlm_checkpoints import make_checkpoint

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "more", "template"),
    [
        pytest.param("qwen2_5_vl", ",max_pixels=250880", None, marks=pytest.mark.nightly),
        ("qwen3_vl", ",text_scope=question", "You are a helpful assistant."),
        pytest.param("internvl", ",max_patches=4", None, marks=pytest.mark.nightly),
    ],
)
def test_the_second_name_runs_a_stock_task_from_any_folder(kind, more, template, tmp_path):
    make_checkpoint(kind, tmp_path / kind)
    export_scienceqa(tmp_path)
    run = lmms_eval(
        tmp_path, "--model", "vlm_textweighted", "--tasks", "scienceqa_img", "--limit", "5", "--batch_size", "2",
        "--model_args", f"pretrained={tmp_path / kind},keep_tokens=16,pruning_layer=1{more}",
        "--include_path", str(tmp_path),
    )  # fmt: skip
    assert run.code == 0, run.output[-3000:]
    assert "exact_match" in run.metrics("scienceqa_img")
    assert run.results["config"]["model"] == "vlm_textweighted"
    for sample in run.samples("scienceqa_img"):
        counts = sample["token_counts"][0]
        assert counts["kept_tokens"] == min(16, counts["image_tokens"])
        gone = counts["image_tokens"] - counts["kept_tokens"]
        assert counts["lengths"] == [counts["input_tokens"]] * 2 + [counts["input_tokens"] - gone] * 4
        assert counts["settings"]["conv_template"] == "hf"
        assert counts["settings"].get("system_prompt") == template

"""Memory that runs short: answers as without, a notice, and one line for a document that does not fit alone."""

from __future__ import annotations

import pytest
import torch
from loguru import logger
from rich.console import Console

from lmms_textweighted.errors import InputError, PromptError
from lmms_textweighted.experiment import points as fan_out
from lmms_textweighted.families import load
from lmms_textweighted.harness.documents import Documents
from lmms_textweighted.harness.model import LlavaTextweighted
from lmms_textweighted.harness.stops import RunEnded
from lmms_textweighted.inference import Decoding, PrunedLlava
from lmms_textweighted.inference.memory import in_halves, is_out_of_memory
from lmms_textweighted.regress.baseline import Settings
from lmms_textweighted.regress.run import measure
from tests.test_harness import _own_cache, ask, documents  # noqa: F401
from tests.test_regress import LOAD_ONCE

SHORT = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore of it"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
    "python": MemoryError(),
}


def fits(module, most, error, *, long=10**9):
    """From now on a module's forward of more than `most` rows, or of more tokens than `long`, has no memory."""
    seen = []

    def check(module, args, kwargs):
        rows, tokens = (kwargs["inputs_embeds"] if "inputs_embeds" in kwargs else args[0]).shape[:2]
        seen.append(rows)
        if rows > most or tokens > long:
            raise error

    module.register_forward_pre_hook(check, with_kwargs=True)
    return seen


@pytest.fixture
def notices():
    lines = []
    handle = logger.add(lambda line: lines.append(str(line)), level="WARNING", format="{message}")
    yield lines
    logger.remove(handle)


def test_what_torch_really_raises_on_a_cpu_is_known():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("kind", SHORT)
def test_a_batch_that_does_not_fit_is_answered_in_halves_with_the_same_answers(documents, notices, kind):  # noqa: F811
    some = documents.select(range(11))
    whole = ask(LlavaTextweighted(pretrained="tiny", keep_tokens=48, batch_size=8), some)
    model = LlavaTextweighted(pretrained="tiny", keep_tokens=48, batch_size=8)
    rows = fits(model.llava.model.get_decoder(), 2, SHORT[kind])
    halves = ask(model, some)
    assert {8, 4, 2} <= set(rows)
    assert [answer.text for answer in halves] == [answer.text for answer in whole]
    kept = [[answer.token_counts.to_dict()["kept_positions"] for answer in run] for run in (whole, halves)]
    assert kept[0] == kept[1]
    told = [line for line in notices if "out of memory" in line]
    assert told[0].startswith("out of memory with 8 rows (task shapes, documents ")
    assert told[0].rstrip().endswith("answered in halves, 4 at a time")
    assert not any("\n" in line.rstrip() for line in told)


def test_a_document_that_does_not_fit_alone_is_named_and_ends_the_run(documents):  # noqa: F811
    some = documents.select(range(6))
    model = LlavaTextweighted(pretrained="tiny", keep_tokens=48, batch_size=6)
    lengths = [answer.token_counts.input_tokens for answer in ask(model, some)]
    longest = max(lengths)
    assert lengths.count(longest) == 1
    fits(model.llava.model.get_decoder(), 6, SHORT["cuda"], long=longest - 1)
    with pytest.raises(RunEnded) as ended:
        ask(model, some)
    message = str(ended.value)
    assert f"task shapes, document {lengths.index(longest)}: out of memory with a batch of 1 (CUDA out of" in message
    assert "\n" not in message


def test_the_row_that_does_not_fit_is_counted_in_the_whole_batch():
    def work(rows):
        if 6 in rows:
            raise SHORT["cpu"]
        return rows

    with pytest.raises(PromptError) as stopped:
        in_halves([0, 1, 2, 3, 4, 5, 6, 7, 8], work)
    assert stopped.value.row == 6


def test_other_errors_pass_as_they_are():
    with pytest.raises(KeyError):
        in_halves([1, 2], lambda rows: {}[0])


def test_a_sweeps_kept_sets_are_continued_in_halves_with_the_same_outcomes(notices):
    llava = PrunedLlava(*load("tiny"))
    source = Documents.of_task("shapes_mcq", 1, single_prediction_prompt=False)
    points = fan_out.make_points(["text_weighted", "random"], [192, 64, 16, 8], 2)
    arguments = {"decoding": Decoding(max_new_tokens=4), "ranks": True, "judge": lambda answer: (0.0, False)}
    whole = fan_out.run_document(llava, source[0].message, points, **arguments)
    rows = fits(llava.model.get_decoder().layers[3], 2, SHORT["cpu"])
    halves = fan_out.run_document(llava, source[0].message, points, **arguments)
    assert max(rows) > 2
    assert [outcome.answer for outcome in halves] == [outcome.answer for outcome in whole]
    for a, b in zip(halves, whole, strict=True):
        assert a.effective_rank == pytest.approx(b.effective_rank, rel=1e-4)
    assert any("kept sets of one document" in line for line in notices)
    fits(llava.model.get_decoder().layers[1], 0, SHORT["cpu"])
    with pytest.raises(PromptError, match="out of memory with a batch of 1"):
        fan_out.run_document(llava, source[0].message, points, **arguments)


def test_a_regression_check_goes_on_in_halves_and_names_the_document(monkeypatch):
    from lmms_textweighted.harness import documents as harness_documents
    from lmms_textweighted.regress import run

    monkeypatch.setattr(harness_documents, "_load_task", LOAD_ONCE)
    settings = Settings(num_samples=4, batch_size=4, strategies=("text_weighted",))
    whole = measure(settings, None, Console(quiet=True))
    loaded = run._load

    def short(most):
        def load_short(settings):
            llava = loaded(settings)
            fits(llava.model.get_decoder(), most, SHORT["cuda"])
            return llava

        return load_short

    monkeypatch.setattr(run, "_load", short(2))
    halves = measure(settings, None, Console(quiet=True))
    for a, b in zip(halves.outcomes, whole.outcomes, strict=True):
        assert (a.document, a.answer, a.kept) == (b.document, b.answer, b.kept)
    monkeypatch.setattr(run, "_load", short(0))
    with pytest.raises(InputError, match=r"^task shapes_mcq, document 0, text_weighted@64: out of memory"):
        measure(settings, None, Console(quiet=True))

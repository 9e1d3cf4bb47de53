"""Pictures of what stays: held against traces, pixel by pixel, and against the room that texts need."""

from __future__ import annotations

import functools
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from lmms_textweighted import load, make_plan, prune, show_trace
from lmms_textweighted.errors import InputError, PlanError, TextweightedError
from lmms_textweighted.inference import Decoding, geometry_of
from lmms_textweighted.prompts import user_message
from lmms_textweighted.show import run
from lmms_textweighted.show.captions import described
from lmms_textweighted.show.figure import GROUPS
from lmms_textweighted.show.look import look, plans_for, unseen
from lmms_textweighted.show.overlays import borders, merged_into
from lmms_textweighted.show.run import Asking, run_show
from lmms_textweighted.show.shown import names_of
from lmms_textweighted.show.words import lay_out, missing_letters, width_of, wrapped
from lmms_textweighted.view.files import read_views
from tests.pictures import noise
from tests.seeing_models import SEEING

HOSTILE = '<script>alert("x")</script> $\\frac{a}{b} & "quotes" 漢字 🙂 \x1b[31m ' + "w" * 120 + "\n" * 3 + "end"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return functools.cache(lambda name: SEEING[name](tmp_path_factory.mktemp("seeing")))


@pytest.fixture(scope="module")
def seen(models):
    """`seen(model, strategies, pictures, question)`: what is shown, 16 tokens of each picture."""

    @functools.cache
    def build(name, strategies, sizes=((300, 200),), question="What is the colour?\nA. red\nB. blue", budget=8):
        llava = models(name)
        messages = [user_message(question, [noise(*size, seed) for seed, size in enumerate(sizes)])]
        asked = plans_for(strategies, budget, geometry=geometry_of(llava.model))
        document = unseen("one", question, ("red", "blue"), "A")
        return look(llava, messages, asked, Decoding(max_new_tokens=2), document, judge=lambda text: (0.0, text == "A"))

    return build


def panels(figure):
    """The axes that show a canvas."""
    return [axes for axes in figure.axes if axes.images]


def traced(llava, strategy, sizes, question):
    """(the trace, its image tokens' positions) by a generation of its own."""
    plan = make_plan(strategy, keep_tokens=8, geometry=geometry_of(llava.model))
    message = user_message(question, [noise(*size, seed) for seed, size in enumerate(sizes)])
    (answer,) = replace(llava, plan=plan).generate([[message]], Decoding(max_new_tokens=2))
    return answer.trace, answer.trace.stages[0].candidates.tolist()


GEOMETRIES = ("llava pad", "llava_next", "llava package anyres", "qwen3_vl", "internvl", "idefics3", "mistral3")


@pytest.mark.parametrize("name", GEOMETRIES)
def test_what_is_pale_is_what_the_trace_removed(seen, models, name):
    """Pixels of kept tokens are as the model saw them, all others are not: of two pictures of different shapes."""
    sizes, question = ((130, 90), (70, 120)), "What is the colour?\nA. red\nB. blue"
    shown = seen(name, ("text_weighted",), sizes, question)
    trace, positions = traced(models(name), "text_weighted", sizes, question)
    kept = {positions.index(position) for position in trace.stages[-1].kept.tolist()}
    strategy = shown.view.strategies[1]
    drawn = iter([axes.images[0].get_array() for axes in panels(shown.figure(strategy))[::2]])
    for number, canvases in enumerate(shown.images):
        for place, image in enumerate(canvases):
            pixels, stays = np.asarray(image), np.zeros((image.height, image.width), dtype=bool)
            for token, spot in enumerate(shown.view.places):
                if token in kept and (spot.picture, spot.canvas) == (number, place):
                    left, top, right, bottom = (round(edge) for edge in spot.box)
                    stays[top:bottom, left:right] = True
            found = np.asarray(next(drawn))
            assert (found[stays] == pixels[stays]).all()
            assert (found[~stays].astype(int).min() if (~stays).any() else 255) >= 200  # nearly white
            assert len({tuple(pixel) for pixel in found[~stays][:, :1] - found[~stays][:, 1:2]} | {(0,)}) == 1  # grey
    assert next(drawn, None) is None


@pytest.mark.parametrize("name", ["llava pad", "llava_onevision", "qwen2_5_vl"])
def test_the_heat_map_has_the_traces_scores_at_their_patches(seen, models, name):
    sizes, question = ((130, 90),), "What is the colour?\nA. red\nB. blue"
    shown = seen(name, ("text_weighted",), sizes, question)
    trace, _ = traced(models(name), "text_weighted", sizes, question)
    scores = trace.stages[0].scores.tolist()
    heats = [
        axes.images[1].get_array() for axes in panels(shown.figure(shown.view.strategies[1])) if len(axes.images) > 1
    ]
    assert len(heats) == len(shown.images[0])
    for score, place in zip(scores, shown.view.places, strict=True):
        if place.box is None:
            continue
        left, top, right, bottom = (round(edge) for edge in place.box)
        part = heats[place.canvas][top:bottom, left:right]
        assert not np.ma.is_masked(part)
        np.testing.assert_allclose(part, score, rtol=1e-5)


def test_the_frames_are_around_what_stays(seen):
    shown = seen("llava pad", ("text_weighted",))
    strategy = shown.view.strategies[1]
    lines = next(one for one in panels(shown.figure(strategy))[0].collections if isinstance(one, LineCollection))
    length = sum(abs(np.diff(segment, axis=0)).sum() for segment in lines.get_segments())
    kept = {(token // 24, token % 24) for token in strategy.stages[0].kept}
    sides = sum((r + a, c + b) not in kept for r, c in kept for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0)))
    assert length == pytest.approx(14 * sides)


def test_words_are_coloured_by_the_traces_weights(seen, models):
    shown = seen("llava pad", ("text_weighted",))
    trace, _ = traced(models("llava pad"), "text_weighted", ((300, 200),), "What is the colour?\nA. red\nB. blue")
    weights = trace.stages[0].text_weights.numpy()
    axes = next(axes for axes in shown.figure(shown.view.strategies[1]).axes if axes.texts)
    said = [text.get_text() for text in axes.texts]
    assert "".join(said).replace("↵", "\n") == "".join(shown.view.pieces[shown.view.after :])
    shades = [patch.get_facecolor() for patch in axes.patches if isinstance(patch, Rectangle)]
    dark = [1 - sum(shade[:3]) / 3 for shade in shades]
    assert len(dark) == len(weights)
    assert np.argmax(dark) == weights.argmax()
    order = weights.argsort()
    assert (np.diff(np.array(dark)[order]) >= -0.02).all()  # darker with the weight


def overlapping(figure):
    """Pairs of texts that lie on each other, and texts that leave the figure; letters' own edges may touch."""
    renderer = figure.canvas.get_renderer()
    texts = [one for one in figure.findobj(Text) if one.get_text() and one.get_visible()]
    with missing_letters():
        left, bottom, right, top = np.array([one.get_window_extent(renderer).extents for one in texts]).T
    width, height = figure.canvas.get_width_height()
    out = (left < -1) | (bottom < -1) | (right > width + 1) | (top > height + 1)
    wide = np.minimum.outer(right, right) - np.maximum.outer(left, left)
    tall = np.minimum.outer(top, top) - np.maximum.outer(bottom, bottom)
    pairs = np.argwhere(np.triu((wide > 2.5) & (tall > 2.5), k=1))
    said = [one.get_text() for one in texts]
    return [said[at] for at in np.flatnonzero(out)], [(said[a], said[b]) for a, b in pairs]


@pytest.mark.parametrize(
    ("name", "strategies", "sizes", "question"),
    [
        ("llava pad", ("sparsevlm",), ((300, 200),), HOSTILE),
        ("llava_next", ("pool",), ((400, 20), (20, 400)), "What?"),
        ("qwen3_vl", ("text_weighted",), ((2000, 40),), "a " * 100),
        ("internvl", ("random",), ((60, 60),) * 4, "x"),
        # Two rows: the words stand beside the second one's pictures.
        ("llava pad", ("text_weighted", "fastv", "random", "uniform_grid"), ((300, 200),), HOSTILE),
        ("llava pad", ("text_weighted", "fastv", "random", "uniform_grid"), ((300, 200),), "a\n" * 40),
    ],
)
def test_no_text_is_cut_and_none_lies_on_another(seen, name, strategies, sizes, question):
    shown = seen(name, strategies, sizes, question)
    for strategy in shown.view.strategies:
        assert overlapping(shown.figure(strategy)) == ([], [])
    overview = shown.overview()
    assert overlapping(overview) == ([], [])
    boxes = [axes.get_position() for axes in overview.axes]
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])


def test_a_line_is_never_wider_than_it_may_be():
    words = lay_out([(HOSTILE, 0.1), ("and", None), (" more\nlines", 0.2)], 3.0, 10.0)
    assert max(word.left + word.width for word in words) <= 3.0
    assert "".join(word.text for word in words).count("↵") == HOSTILE.count("\n") + 1
    assert {word.weight for word in words} == {0.1, None, 0.2}
    lines = wrapped(HOSTILE, 3.0, 10.0)
    assert max(width_of(line, 10.0) for line in lines) <= 3.0
    assert "".join(lines).replace(" ", "") == HOSTILE.replace("\n", "").replace(" ", "").replace("\x1b", "")


def test_merged_tokens_are_followed_through_the_stages():
    assert merged_into([{3: (3, 4), 7: (7, 8)}, {7: (7, 3, 9)}]) == {3: {3, 4}, 7: {3, 4, 7, 8, 9}}


def test_borders_leave_out_what_two_patches_share():
    boxes = {0: (0, 0, 2, 2), 1: (2, 0, 4, 2), 2: (0, 2, 2, 4)}
    assert sorted(borders(boxes, [0])) == sorted(
        [((0, 0), (2, 0)), ((0, 2), (2, 2)), ((0, 0), (0, 2)), ((2, 0), (2, 2))]
    )
    assert ((2, 0), (2, 2)) not in borders(boxes, [0, 1])
    assert len(borders(boxes, [0, 1])) == 6
    assert borders(boxes, [5]) == []


def test_merged_patches_have_the_colour_of_their_frame(seen):
    shown = seen("llava pad", ("pool",))
    strategy = shown.view.strategies[1]
    assert len(strategy.stages[0].sources) == 8
    (axes,) = panels(shown.figure(strategy))
    pixels = np.asarray(axes.images[0].get_array())
    groups = merged_into([strategy.stages[0].sources])
    for to, of in groups.items():
        tints = set()
        for token in of - {to}:
            left, top, right, bottom = (round(edge) for edge in shown.view.places[token].box)
            part = pixels[top:bottom, left:right].reshape(-1, 3).astype(int)
            tints.add(tuple(np.sign(np.diff(part.mean(axis=0)).round(-1)).astype(int)))
        assert len(tints) == 1


def test_a_notebook_shows_it_without_fetching_anything(seen):
    shown = seen("llava pad", ("text_weighted", "downsample"), ((300, 200),), HOSTILE)
    page = shown._repr_html_()
    assert page.count("<figure") == page.count("<img") == page.count(" alt=") == 4
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert re.findall(r'src="([^"]{0,22})', page) == ["data:image/png;base64,"] * 4
    assert not re.search(r"https?://", page)


def test_a_picture_is_described_in_words(seen):
    shown = seen("llava_next", ("text_weighted",), ((130, 90),))
    said = described(shown.view, shown.view.strategies[1])
    assert "text-weighted: 8 of" in said
    assert "stay after layer 2" in said
    assert "wrong, A is right" in said
    assert "The heaviest words after layer 2" in said
    assert "in its crops" in said
    counts = [
        int(count)
        for count in re.findall(r"(\d+) (?:upper|lower|left|middle|right)", said.split("Of what stays lie")[1])
    ]
    placed = [token for token in shown.view.kept(shown.view.strategies[1]) if shown.view.places[token].box]
    assert sum(counts) == len(placed)


def test_files_have_names_of_their_own(seen, tmp_path):
    shown = seen("llava pad", ("text_weighted",))
    one = shown.view.strategies[1]
    names = ("a/b:c", "a/b?c", "../..", "overview", "text_weighted", "text_weighted")
    view = replace(shown.view, strategies=tuple(replace(one, strategy=name, budget=None) for name in names))
    assert names_of(view) == ["a_b_c", "a_b_c-2", "strategy", "overview-2", "text_weighted", "text_weighted-2"]
    written = replace(shown, view=replace(view, strategies=view.strategies[:2])).save(tmp_path / "made")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["a_b_c-2.png", "a_b_c.png", "overview.png"]
    assert all(Image.open(path).format == "PNG" for path in written)


def test_the_command_writes_what_the_model_answers(tmp_path, capsys):
    noise(200, 150).save(tmp_path / "p.png")
    shown = run_show(
        Asking(
            inputs=(str(tmp_path / "p.png"), "What is red?"),
            choices="circle,star",
            target="star",
            strategies="random",
            keep=0.25,
            budget="keep_ratio",
            output=tmp_path / "out",
            html=True,
        )
    )
    (read,) = read_views(tmp_path / "out" / "views.jsonl")
    assert [strategy.answer for strategy in read.strategies] == [one.answer for one in shown.view.strategies]
    assert [strategy.right for strategy in read.strategies] == [one.answer == "B" for one in shown.view.strategies]
    assert [len(read.kept(strategy)) for strategy in read.strategies] == [576, 144]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["none.png", "overview.png", "random_0.25.png", "show.html", "views.jsonl"]
    said = capsys.readouterr().out
    assert "144/576" in said
    assert all(name in said for name in names[:-1])
    page = (tmp_path / "out" / "show.html").read_text()
    assert "What is red?" in page


def test_a_tasks_document_is_asked_as_the_task_asks_it(tmp_path):
    shown = run_show(Asking(task="shapes_mcq", doc=3, strategies="text_weighted", output=tmp_path))
    assert shown.view.reference == {"task": "shapes_mcq", "document": 3}
    assert shown.view.question.startswith("What is the color of the diamond?")
    assert shown.view.target == "A"
    whole, pruned = shown.view.strategies
    assert (whole.answer, whole.right, whole.score) == ("A", True, 1.0)
    assert pruned.right == (pruned.answer == "A")


@pytest.mark.parametrize(
    ("asking", "says"),
    [
        ({"strategies": "fastw"}, "did you mean 'fastv'"),
        ({"strategies": "cdpruner"}, "text_tower"),
        ({"keep": 0}, None),
    ],
)
def test_what_is_asked_of_strategies_is_checked_before_a_model_is_loaded(tmp_path, monkeypatch, asking, says):
    noise(200, 150).save(tmp_path / "p.png")

    def refused(*args):
        raise InputError("loaded")

    monkeypatch.setattr(run, "load", refused)
    with pytest.raises(TextweightedError, match=says or "loaded"):
        run_show(Asking(inputs=(str(tmp_path / "p.png"), "What?"), output=tmp_path, **asking))


# From a block that anyone opened.


@pytest.fixture(scope="module")
def opened():
    """(model, processor, inputs, pictures, the trace of a batch of two rows)"""
    model, processor = load("tiny")
    pictures = [noise(200, 300, 5), noise(336, 336, 6)]
    prompts = [f"USER: <image>\n{text} ASSISTANT:" for text in ("What is red?", "How many shapes are there?")]
    inputs = processor(images=pictures, text=prompts, padding=True, return_tensors="pt")
    with prune(model, make_plan("text_weighted", keep_tokens=16)) as trace, torch.inference_mode():
        model.generate(**inputs, max_new_tokens=2)
    return model, processor, inputs, pictures, trace


@pytest.mark.parametrize("row", [0, 1])
def test_a_trace_of_a_batch_shows_each_row(opened, row):
    model, processor, inputs, pictures, trace = opened
    shown = show_trace(trace, model, processor, inputs, pictures, row=row, answer="red")
    (strategy,) = shown.view.strategies
    positions = trace.documents[row].stages[0].candidates.tolist()
    assert [positions[token] for token in strategy.stages[0].kept] == trace.documents[row].stages[0].kept.tolist()
    assert shown.view.pictures[0].size == pictures[row].size
    assert shown.view.question.startswith(("What is red?", "How many")[row])
    assert strategy.answer == "red"
    assert "data:image/png" in shown._repr_html_()


def test_pictures_may_be_paths_and_lists(opened, tmp_path):
    model, processor, inputs, pictures, trace = opened
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    paths = [str(tmp_path / f"{number}.png") for number in range(2)]
    for given in (paths, [[path] for path in paths]):
        assert show_trace(trace, model, processor, inputs, given).view.pictures[0].size == (200, 300)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"row": 2}, "row is 2, but the batch has 2"),
        ({"prefill": 1}, "the trace has 2 documents"),
        ({"images": [noise(9, 9)]}, "images has 1 entries for a batch of 2"),
        ({"images": ["nowhere.png"] * 2}, "'nowhere.png' is missing"),
    ],
)
def test_what_does_not_fit_a_trace_is_named(opened, more, says):
    model, processor, inputs, pictures, trace = opened
    with pytest.raises(InputError, match=re.escape(says)):
        show_trace(trace, model, processor, inputs, **{"images": pictures, **more})


def test_another_prompts_inputs_are_refused(opened):
    model, processor, inputs, pictures, trace = opened
    other = processor(images=pictures, text=["<image> is it?"] * 2, padding=True, return_tensors="pt")
    with pytest.raises(InputError, match="is not of this prompt"):
        show_trace(trace, model, processor, other, pictures)
    with pytest.raises(PlanError, match="of no known family"):
        show_trace(trace, torch.nn.Linear(1, 1), processor, inputs, pictures)


def test_a_patch_that_went_into_several_tokens_has_the_mean_of_their_colours(seen):
    shown = seen("llava pad", ("pool",))
    (stage,) = shown.view.strategies[1].stages
    first, second = sorted(stage.sources)[:2]
    (token, *_) = set(stage.sources[first]) - {first}
    both = replace(stage, sources={**stage.sources, second: (*stage.sources[second], token)})
    strategy = replace(shown.view.strategies[1], stages=(both,))

    def tint(one, at):
        left, top, right, bottom = (round(edge) for edge in shown.view.places[at].box)
        return np.asarray(panels(shown.figure(one))[0].images[0].get_array())[top:bottom, left:right].astype(float)

    colors = [np.array(to_rgb(GROUPS[place])) * 255 for place in (0, 1)]
    before, after = tint(shown.view.strategies[1], token), tint(strategy, token)
    np.testing.assert_allclose(
        after - before, np.broadcast_to((colors[1] - colors[0]) / 2 * 0.38, after.shape), atol=1.5
    )
    assert "the mean of their colours" in described(shown.view, strategy)

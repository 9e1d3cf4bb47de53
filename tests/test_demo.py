"""The demo without a browser (test_demo_browser has one): its answers are the model's, what is wrong is one line."""

from __future__ import annotations

import re
import socket
import urllib.error
import urllib.request
from contextlib import closing
from dataclasses import replace

import pytest

from lmms_textweighted import load
from lmms_textweighted.demo import app
from lmms_textweighted.demo.app import answered, strategies_for
from lmms_textweighted.demo.serve import check_port
from lmms_textweighted.errors import InputError
from lmms_textweighted.inference import Decoding, PrunedLlava
from lmms_textweighted.prompts import SINGLE_PREDICTION_PROMPT, user_message
from lmms_textweighted.show.look import look, plans_for, unseen
from tests.demo_server import HOSTILE, served
from tests.pictures import noise


@pytest.fixture(scope="module")
def llava():
    return PrunedLlava(*load("tiny"))


def asked(llava, path, question="What is red?", choices="", strategies=("text_weighted",), keep=16):
    return answered(llava, path and str(path), question, choices, strategies, keep, max_new_tokens=2)


def test_the_answers_are_the_models(llava, tmp_path):
    noise(200, 150).save(tmp_path / "p.png")
    said = asked(llava, tmp_path / "p.png", "What is red?", "circle,star", ("text_weighted", "random"))
    text = f"What is red?\nA. circle\nB. star{SINGLE_PREDICTION_PROMPT}"
    (answer,) = llava.generate([[user_message(text, [noise(200, 150)])]], Decoding(max_new_tokens=2))
    rows = re.findall("<tr><td>(.*?)</tr>", said)
    assert [re.sub("<.*", "", row) for row in rows] == ["no pruning", "text-weighted", "random"]
    assert rows[0].split("<td>")[-1].removesuffix("</td>") == answer.text
    assert "16 of 576" in rows[1]
    assert said.count("<figure") == 4
    assert len(re.findall(r"<td>\d+ ms</td>", said)) == 6


def test_times_are_the_medians_of_rounds_that_go_through_all_plans(llava, monkeypatch):
    """Of three rounds, the middle one: what a busy moment cost one of them is not seen."""
    ran, plain = [], PrunedLlava.generate

    def slow(self, messages, decoding, **more):
        (answer,) = plain(self, messages, decoding, **more)
        ran.append(self.plan.name)
        return [replace(answer, timing=replace(answer.timing, prefill=float(len(ran)), decode=1.0))]

    monkeypatch.setattr(PrunedLlava, "generate", slow)
    message = user_message("What is red?", [noise(60, 60)])
    asked = plans_for(("fastv", "random"), 16)
    shown = look(llava, [message], asked, Decoding(max_new_tokens=2), unseen("", "What?"), rounds=3)
    assert ran[1:] == ["none", "fastv", "random"] * 3
    found = {one.strategy: one.figures["prefill_seconds"] for one in shown.view.strategies}
    assert found == {"none": 5.0, "fastv": 6.0, "random": 7.0}


@pytest.mark.parametrize(
    ("path", "more", "says"),
    [
        (None, {}, "no picture is given"),
        ("p.png", {"question": " "}, "the question is empty"),
        ("p.png", {"choices": "one"}, "choices is &#x27;one&#x27;"),
        ("p.png", {"strategies": ("<b>fastw",)}, "unknown strategy &#x27;&lt;b&gt;fastw&#x27;"),
        ("p.png", {"keep": 577}, "keep_tokens is 577"),
        ("<b>.txt", {}, "the picture is no picture"),
    ],
)
def test_what_cannot_be_answered_is_one_line_and_a_text(llava, tmp_path, path, more, says):
    noise(20, 20).save(tmp_path / "p.png")
    (tmp_path / "<b>.txt").write_text("no picture")
    said = asked(llava, path and tmp_path / path, **more)
    assert says in said
    assert said.startswith('<p role="alert">')
    assert "<b>" not in said


def test_what_needs_more_than_the_model_has_is_not_offered(llava):
    known = strategies_for(llava)
    assert {"text_weighted", "fastv", "random", "pool", "downsample", "fastervlm"} <= set(known)
    assert not {"none", "cdpruner", "trim"} & set(known)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 0), ("127.0.0.1", 65536), ("no.such.host.invalid", 7860)])
def test_an_address_that_cannot_be_listened_on_is_named(host, port):
    with pytest.raises(InputError, match=f"port is {port}" if port != 7860 else "no.such.host.invalid"):
        check_port(host, port)


def test_without_gradio_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(app, "installed", lambda package: None)
    with pytest.raises(InputError, match=re.escape("pip install 'lmms-textweighted[demo]'")):
        app.check_gradio()


def test_a_port_that_is_taken_is_named():
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} cannot be listened on"):
            check_port("127.0.0.1", port)


@pytest.fixture(scope="module")
def address(llava):
    pytest.importorskip("gradio")
    with served(llava, HOSTILE) as found:
        yield found


def test_it_listens_on_this_machine_and_to_its_own_name(address):
    with urllib.request.urlopen(address, timeout=20) as answer:
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    other = urllib.request.Request(address, headers={"Host": "elsewhere.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(other, timeout=20)

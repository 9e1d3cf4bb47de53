"""Questions about a scene, in ScienceQA's schema.

Six kinds: one attribute (shape, color, place) is asked of the object that another attribute names. Every wrong choice
is the same attribute of another object *of the same scene*: knowing which colours are in the picture is worth nothing,
and what the question or the choices say without the picture is worth nothing either.
"""

from __future__ import annotations

import re

import numpy as np

from lmms_textweighted.prompts import SINGLE_PREDICTION_PROMPT
from lmms_textweighted.tiny.scenes import Scene

LETTERS = "ABCDE"
MIN_CHOICES, MAX_CHOICES = 2, 5
HINT = "The picture shows some objects on a plain background."

_NAMES = {"shape": "the {}", "color": "the {} object", "place": "the object in the {}"}
_TEMPLATES = {
    "shape": "What is the shape of {}?",
    "color": "What is the color of {}?",
    "place": "Where is {}?",
}
_OBJECT = re.compile(r"(\w+) (\w+) in the (\w+)")
KINDS = tuple((asked, named) for asked in _TEMPLATES for named in _NAMES if asked != named)


def question_text(asked: str, named: str, value: str) -> str:
    """The question that asks the attribute `asked` of the object whose attribute `named` is `value`."""
    return _TEMPLATES[asked].format(_NAMES[named].format(value))


def make_question(
    scene: Scene,
    rng: np.random.Generator,
    *,
    kind: tuple[str, str] | None = None,
    num_choices: int | None = None,
    answer: int | None = None,
) -> dict:
    """One multiple-choice question: ScienceQA's text fields, plus `target_word`, the answer as a word.

    What is not given is drawn from `rng`. `answer` is the index of the right choice, `num_choices` 2 to 5 and at most
    the number of objects.
    """
    asked, named = kind or KINDS[rng.integers(len(KINDS))]
    most = min(MAX_CHOICES, len(scene.objects))
    count = num_choices or int(rng.integers(MIN_CHOICES, most + 1))
    if not MIN_CHOICES <= count <= most:
        raise ValueError(f"num_choices is {count}: this scene allows {MIN_CHOICES} to {most}")
    order = rng.permutation(len(scene.objects))[:count]
    item = scene.objects[order[0]]
    choices = [getattr(scene.objects[i], asked) for i in order[1:]]
    place = int(rng.integers(count)) if answer is None else answer
    choices.insert(place, getattr(item, asked))
    return {
        "question": question_text(asked, named, getattr(item, named)),
        "choices": choices,
        "answer": place,
        "hint": HINT if rng.random() < 0.25 else "",
        "task": "closed choice",
        "grade": "grade1",
        "subject": "natural science",
        "topic": "shapes",
        "category": f"{asked} by {named}",
        "skill": f"Find an object by its {named} and read its {asked}",
        "lecture": "",
        "solution": f"The answer is {choices[place]}.",
    }


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """All objects with their attributes, in random order: the densest supervision a scene can give."""
    order = rng.permutation(len(scene.objects))
    parts = [f"{scene.objects[i].color} {scene.objects[i].shape} in the {scene.objects[i].place}" for i in order]
    return ", ".join(parts) + "."


def true_caption(scene: Scene) -> str:
    """`caption` with the objects in the scene's own order."""
    return ", ".join(f"{item.color} {item.shape} in the {item.place}" for item in scene.objects) + "."


def object_f1(answer: str, caption: str) -> float:
    """How many objects a description names rightly, in [0, 1]: F1 of the (colour, shape, place) it names against those
    of the true caption. An object counts whole or not at all, once however often it is named, in any order."""
    named, true = (set(_OBJECT.findall(text)) for text in (answer, caption))
    return 2 * len(named & true) / (len(named) + len(true))


def multiple_choice_text(item: dict, question: str | None = None) -> str:
    """A question of `make_question` as lmms-eval's ScienceQA task words it; `question` takes the place of its own."""
    context = f"Context: {item['hint']}\n" if item["hint"] else ""
    return f"{context}{question or item['question']}\n{choices_text(item['choices'])}{SINGLE_PREDICTION_PROMPT}"


def choices_text(choices: list[str]) -> str:
    """`A. …`, one line a choice, as lmms-eval's ScienceQA task writes them."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))

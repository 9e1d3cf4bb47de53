"""What the embedded model can do and what it loses: `python -m lmms_textweighted.tiny.evaluate`.

Accuracy on the shipped test set with all image tokens, with a blank picture, with every image token removed after the
pruning layer, and at a few budgets of each strategy, with 95 % intervals.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence

import torch
from PIL import Image

from lmms_textweighted.engine.fanout import continue_prefix
from lmms_textweighted.engine.plan import DEFAULT_LAYER
from lmms_textweighted.families import load
from lmms_textweighted.families.attach import run_prefix
from lmms_textweighted.inference import PrunedLlava
from lmms_textweighted.methods import make_plan
from lmms_textweighted.prompts import user_message
from lmms_textweighted.statistics import mean_interval
from lmms_textweighted.tiny.questions import LETTERS, multiple_choice_text
from lmms_textweighted.tiny.scenes import IMAGE_SIZE
from lmms_textweighted.tiny.testset import SIZE, load_testset

COMPARED = ("text_weighted", "fastv", "random")


def answers(
    pretrained: str = "tiny",
    *,
    count: int = SIZE,
    strategies: Sequence[str] = COMPARED,
    budgets: Sequence[int] = (192, 64, 16),
    layer: int = DEFAULT_LAYER,
) -> dict[str, list[bool]]:
    """Condition -> whether each of the first `count` documents was answered right.

    Conditions: `all`, `blank picture`, `no image tokens`, and `{strategy} {budget}`. Removal is after `layer`.
    """
    model, processor = load(pretrained)
    llava = PrunedLlava(model, processor)
    blank = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (175, 175, 175))
    right: dict[str, list[bool]] = defaultdict(list)
    for document in load_testset().select(range(count)):
        prompt = multiple_choice_text(document)
        target = LETTERS[document["answer"]]
        for picture, conditions in ((document["image"], None), (blank, ["blank picture"])):
            inputs = llava.encode([[user_message(prompt, [picture])]]).inputs
            with torch.inference_mode():
                scorers = [make_plan(strategy).stages[0].scorer for strategy in strategies]
                prefix = run_prefix(model, inputs, layer, scorers if conditions is None else [])
                kept = [prefix.image]
                if conditions is None:
                    kept.append(prefix.image[:0])
                    kept += [prefix.keep(scorer, budget) for scorer in scorers for budget in budgets]
                done = continue_prefix(model, prefix, kept, max_new_tokens=4)
            names = conditions or [
                "all",
                "no image tokens",
                *(f"{strategy} {budget}" for strategy in strategies for budget in budgets),
            ]
            for name, outcome in zip(names, done, strict=True):
                text = processor.tokenizer.decode(outcome.tokens, skip_special_tokens=True).strip()
                right[name].append(text == target)
    return dict(right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pretrained", default="tiny")
    parser.add_argument("--count", type=int, default=SIZE)
    parser.add_argument("--layer", type=int, default=DEFAULT_LAYER)
    arguments = parser.parse_args()
    for name, hits in answers(arguments.pretrained, count=arguments.count, layer=arguments.layer).items():
        low, high = mean_interval([float(hit) for hit in hits])
        print(f"{name:20} {sum(hits) / len(hits):6.1%}  [{low:.1%}, {high:.1%}]")


if __name__ == "__main__":
    main()

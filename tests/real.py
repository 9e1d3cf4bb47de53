"""`make test-real`: one real checkpoint, from the hub or a folder, against lmms-eval's own model of it.

`LMMS_TEXTWEIGHTED_REAL=Qwen/Qwen2.5-VL-3B-Instruct make test-real`. All in float32, greedy, 64 documents: the embedded
set's questions and pictures, resized to odd sizes, some grey or transparent, up to three a prompt or none (for a LLaVA,
one each, as they are). lmms-eval's model answers one by one, ours in batches of 4.

Unpruned, every document has the same input ids, the same pixels, the same answer, and first-token logits that agree to
1e-4 of the largest; keeping all tokens changes no bit of ours. A table on the terminal, all of it in a JSON; the exit
code is 1 where something differs.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from lmms_textweighted.errors import TextweightedError
from lmms_textweighted.families.known import family_of_type
from lmms_textweighted.families.llava import MODELS as LLAVAS
from lmms_textweighted.families.loading import local_folder, read_config, resolve
from lmms_textweighted.harness.model import LlavaTextweightedChat
from lmms_textweighted.harness.quiet import quiet_libraries
from lmms_textweighted.methods import make_plan
from lmms_textweighted.provenance.record import provenance
from lmms_textweighted.tiny.testset import load_testset
from tests.lmms_eval_models import THEIRS, Watched, ask, their_model

VARIABLE = "LMMS_TEXTWEIGHTED_REAL"
DOCUMENTS, BATCH, NEW_TOKENS = 64, 4, 16
TOLERANCE = 1e-4  # of the largest logit
_SIZES = [(336, 336), (500, 375), (123, 457), (640, 480), (64, 64), (281, 199), (1000, 300)]
_MODES = ["RGB", "RGB", "RGBA", "L"]
_COUNTS = (1, 1, 2, 1, 3, 0)


@dataclass
class Asked:
    """What one model was given and answered, by document: the rows of `Watched` in the documents' order."""

    answers: list[str]
    rows: dict[tuple[int, ...], dict[str, Any]]


@dataclass
class Check:
    """One line of the report. differ: the numbers of the documents that do, as far as they are told."""

    what: str
    equal: int
    of: int
    note: str = ""
    differ: list[int] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return self.equal == self.of


def documents(count: int, *, plain: bool) -> list[list[dict[str, Any]]]:
    """Each document's user turn. plain: one picture each, as it is drawn."""
    found = []
    for number, scene in enumerate(load_testset().select(range(count))):
        options = "\n".join(f"{'ABCDE'[place]}. {text}" for place, text in enumerate(scene["choices"]))
        text = f"{number}. {scene['question']}\n{options}\nAnswer with the option's letter."
        turn: list[dict[str, Any]] = []
        for place in range(1 if plain else _COUNTS[number % len(_COUNTS)]):
            picture = scene["image"].convert("RGB")
            turn.append({"type": "image", "url": picture if plain else _changed(picture, number + 3 * place)})
        found.append([*turn, {"type": "text", "text": text}])
    return found


def _changed(picture: Image.Image, number: int) -> Image.Image:
    """Another size and mode; a transparent one is half clear."""
    made = picture.resize(_SIZES[number % len(_SIZES)]).convert(_MODES[number % len(_MODES)])
    if made.mode == "RGBA":
        made.putalpha(128)
    return made


def run(pretrained: str, count: int, device: str) -> dict[str, Any]:
    """The report. Raises CheckpointError as loading does."""
    folder = resolve(pretrained)
    config = read_config(pretrained, folder, "main")
    kind = str(config.get("model_type"))
    family_of_type(pretrained, kind)
    where = str(local_folder(folder, "main"))
    contents = documents(count, plain=kind in LLAVAS)
    theirs, loaded_as = None, None
    if kind in THEIRS:
        with their_model(kind, where, device) as model:
            theirs, loaded_as = _asked(model, model.model, config, contents), model.loaded_as
            del model
        gc.collect()  # room for ours
    more = {"conv_template": "hf"} if kind in LLAVAS else {}
    ours = LlavaTextweightedChat(
        pretrained=where, strategy="none", batch_size=BATCH, device=device, dtype="float32", **more
    )
    if loaded_as is not None:
        _round(ours.llava.model, loaded_as)
    unpruned = _asked(ours, ours.llava.model, config, contents)
    ours.llava.plan = make_plan("text_weighted", pruning_layer=1, keep_ratio=1.0)
    kept = _asked(ours, ours.llava.model, config, contents)
    checks = [] if theirs is None else _against(theirs, unpruned)
    checks.append(_same_logits("keep-all: first-token logits, bit for bit", unpruned, kept, 0.0))
    checks.append(_same_answers("keep-all: answers", unpruned, kept))
    return {
        "checkpoint": pretrained,
        "model_type": kind,
        "documents": count,
        "lmms_eval": THEIRS.get(kind),
        "checks": [{**vars(check), "passed": check.passed} for check in checks],
        "different_answers": len(set(unpruned.answers)),
        "answers": unpruned.answers,
        "lmms_evals_answers": theirs and theirs.answers,
        "provenance": provenance(ours.provenance["model"]),
    }


def _asked(model: Any, inner: Any, config: dict[str, Any], contents: list[list[dict[str, Any]]]) -> Asked:
    watched = Watched(inner, inner.config.image_token_id)
    try:
        answers = ask(model, contents, {"max_new_tokens": NEW_TOKENS, "temperature": 0})
    finally:
        watched.stop()
    rows = {}
    for row in watched.rows:  # in batches of like length; every prompt has its number, so no two are alike
        rows[tuple(row["ids"])] = {**row, "pixels": hashlib.sha256(row["pixels"]).hexdigest()}
    return Asked([answer.strip() for answer in answers], rows)


def _round(model: Any, dtype: torch.dtype) -> None:
    """Weights as they are in lmms-eval's model, which has loaded them in this type."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype).float()


def _against(theirs: Asked, ours: Asked) -> list[Check]:
    count, shared = len(theirs.answers), theirs.rows.keys() & ours.rows.keys()
    pixels = sum(theirs.rows[ids]["pixels"] == ours.rows[ids]["pixels"] for ids in shared)
    return [
        Check("unpruned: input ids", len(shared), count),
        Check("unpruned: pixels, bit for bit", pixels, count),
        _same_logits("unpruned: first-token logits", theirs, ours, TOLERANCE),
        _same_answers("unpruned: answers", theirs, ours),
    ]


def _same_logits(what: str, first: Asked, second: Asked, tolerance: float) -> Check:
    differences, largest = [], 0.0
    for ids in first.rows.keys() & second.rows.keys():
        one, other = first.rows[ids]["logits"], second.rows[ids]["logits"]
        differences.append((one - other).abs().max().item())
        largest = max(largest, one.abs().max().item())
    equal = sum(difference <= tolerance * largest for difference in differences)
    note = f"largest difference {max(differences, default=0.0):.2g}, largest logit {largest:.3g}"
    return Check(what, equal, len(first.answers), note)


def _same_answers(what: str, first: Asked, second: Asked) -> Check:
    pairs = enumerate(zip(first.answers, second.answers, strict=True))
    differ = [number for number, (one, other) in pairs if one != other]
    return Check(what, len(first.answers) - len(differ), len(first.answers), differ=differ)


def show(report: dict[str, Any], console: Console) -> None:
    """Print the table."""
    title = f"{report['checkpoint']} ({report['model_type']}), {report['documents']} documents, float32"
    table = Table(title=title, title_justify="left")
    for name in ("what", "equal", ""):
        table.add_column(name, justify="right" if name == "equal" else "left")
    if report["lmms_eval"] is None:
        table.add_row("unpruned against lmms-eval's own model", "", "not compared: it has no chat model of this kind")
    for check in report["checks"]:
        differ = f"documents {', '.join(map(str, check['differ'][:8]))}" if check["differ"] else ""
        verdict = "" if check["passed"] else "DIFFERS"
        said = "; ".join(filter(None, [verdict, check["note"], differ]))
        table.add_row(check["what"], f"{check['equal']} of {check['of']}", said)
    console.print(table)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("runs/real"), help="folder of the JSON")
    given = parser.parse_args(words)
    quiet_libraries()
    pretrained = os.environ.get(VARIABLE)
    if not pretrained:
        print(f"{VARIABLE} is not set: give a hub name or a folder, {VARIABLE}=Qwen/Qwen2.5-VL-3B-Instruct")
        return 0
    try:
        report = run(pretrained, given.documents, given.device)
    except TextweightedError as error:
        print(f"lmms-textweighted: {error}", file=sys.stderr)
        return 1
    console = Console()
    show(report, console)
    given.output.mkdir(parents=True, exist_ok=True)
    target = given.output / f"{Path(pretrained).name}.json"
    target.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    console.print(f"wrote {target}", markup=False, highlight=False, soft_wrap=True)
    return 0 if all(check["passed"] for check in report["checks"]) else 1


if __name__ == "__main__":
    sys.exit(main())

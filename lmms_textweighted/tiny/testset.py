"""The embedded test set: seeded scene descriptions, shipped as JSON lines and drawn when loaded.

`python -m lmms_textweighted.tiny.testset` writes the file again; its hash must not change.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from lmms_textweighted.errors import InputError
from lmms_textweighted.paths import data_folder
from lmms_textweighted.tiny.questions import KINDS, MAX_CHOICES, MIN_CHOICES, make_question, true_caption
from lmms_textweighted.tiny.scenes import Scene, random_scene, render

SIZE = 500
SEED = 20260
SHA256 = "e53a43ae680d7558068b9fce4bc9f0d5fbdeb0da7cbcc1ada2e33570104d2384"


def scenes_file() -> Path:
    """The shipped descriptions."""
    return data_folder("tasks") / "shapes_mcq" / "scenes_test.jsonl"


def make_documents(size: int = SIZE, seed: int = SEED) -> list[dict[str, Any]]:
    """`size` held-out scenes with one question each.

    The number of choices (2 to 5) goes round in turn, and for each number the answer's letter does, so that both are
    balanced; the rest is drawn from `seed`.
    """
    rng = np.random.default_rng(seed)
    counts = itertools.cycle(range(MIN_CHOICES, MAX_CHOICES + 1))
    letters = {count: itertools.cycle(range(count)) for count in range(MIN_CHOICES, MAX_CHOICES + 1)}
    documents = []
    for number in range(size):
        count = next(counts)
        while True:
            scene = random_scene(rng, held_out=True)
            if len(scene.objects) >= count:
                break
        kind = KINDS[int(rng.integers(len(KINDS)))]
        question = make_question(scene, rng, kind=kind, num_choices=count, answer=next(letters[count]))
        documents.append({"id": number, "scene": json.dumps(scene.to_dict(), sort_keys=True), **question})
    return documents


def to_lines(documents: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(document, sort_keys=True) + "\n" for document in documents)


def draw(documents: datasets.Dataset) -> datasets.Dataset:
    """Replace each document's scene description by its picture."""
    features = datasets.Features(
        {"image": datasets.Image(), **{k: v for k, v in documents.features.items() if k != "scene"}}
    )

    def picture(document: dict[str, Any]) -> dict[str, Any]:
        return {"image": Image.fromarray(render(Scene.from_dict(json.loads(document["scene"]))))}

    return documents.map(picture, remove_columns=["scene"], features=features, keep_in_memory=True)


def draw_to_describe(documents: datasets.Dataset) -> datasets.Dataset:
    """The same pictures with their true captions, and no question."""
    captions = [true_caption(Scene.from_dict(json.loads(scene))) for scene in documents["scene"]]
    return draw(documents.select_columns(["id", "scene"]).add_column("caption", captions))


def load_testset() -> datasets.Dataset:
    """The set with its pictures drawn. Raises InputError when the shipped file is not the one that was hashed."""
    text = scenes_file().read_text(encoding="utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest != SHA256:
        raise InputError(f"{scenes_file()} has hash {digest[:12]}, not {SHA256[:12]}: reinstall the package")
    return draw(datasets.Dataset.from_list([json.loads(line) for line in text.splitlines()]))


def export_scienceqa(folder: Path) -> Path:
    """Write the set as a folder that lmms-eval's stock `scienceqa_img` loads when it runs from `folder`.

    The folder `lmms-lab-encoder/ScienceQA` in the working directory takes the place of the hub's data set of that
    name. Returns it.
    """
    target = folder / "lmms-lab-encoder" / "ScienceQA"
    target.mkdir(parents=True, exist_ok=True)
    load_testset().remove_columns(["id"]).to_parquet(str(target / "test.parquet"))
    (target / "README.md").write_text(
        "---\nconfigs:\n- config_name: ScienceQA-IMG\n  data_files:\n  - split: test\n    path: test.parquet\n---\n"
    )
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=scenes_file())
    output = parser.parse_args().output
    text = to_lines(make_documents())
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)
    print(f"{output}: {hashlib.sha256(text.encode()).hexdigest()}")


if __name__ == "__main__":
    main()

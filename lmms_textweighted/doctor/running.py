"""What runs are made of: names that upstream does not promise, lmms-eval's view of us, and an answer."""

from __future__ import annotations

from importlib import import_module

from lmms_textweighted.doctor.rows import BAD, OK, Row

_STOCK, _OURS = "scienceqa_img", "shapes_mcq"
_SHOWN = 3  # problems that are spelled out


def names() -> Row:
    """Every check of `upstream.names` whose package is installed."""
    from lmms_textweighted.hub import offline
    from lmms_textweighted.upstream.names import NAMES
    from lmms_textweighted.upstream.versions import locked_versions

    for module in ("torch", "transformers", "lmms_eval"):
        import_module(module)  # without one of them all that is left to say is its own error
    here = [name for name in NAMES if name.is_here]
    with offline():
        problems = {name: problem for name in here if (problem := name.problem())}
    if not problems:
        return Row("upstream names", OK, f"{len(here)} of {len(NAMES)} looked at, all there")
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    locked = locked_versions()
    packages = {name.package for name in problems}
    wanted = " ".join(sorted(f"{name}=={locked[name]}" for name in packages if name in locked))
    advice = f": pip install {wanted}" if wanted else ""
    said = "; ".join(list(problems.values())[:_SHOWN])
    return Row("upstream names", BAD, f"{len(problems)} of {len(here)} are gone", said + more + advice)


def entry_point() -> Row:
    """Whether lmms-eval finds the model by its name."""
    from lmms_eval.models import get_model_manifest

    from lmms_textweighted.harness.manifest import MANIFEST

    try:
        found = get_model_manifest(MANIFEST.model_id)
    except ValueError:
        advice = "install this package into the same environment as lmms-eval: pip install ."
        return Row("lmms-eval model", BAD, f"{MANIFEST.model_id} is not known to lmms-eval", advice)
    if found != MANIFEST:
        advice = "another installed package, or another copy of this one, says the same name: uninstall it"
        return Row("lmms-eval model", BAD, f"{MANIFEST.model_id} is {found.chat_class_path}", advice)
    return Row("lmms-eval model", OK, MANIFEST.model_id)


def tasks() -> Row:
    """Whether our tasks' files are there, and lmms-eval's index has them and its own."""
    from lmms_eval.tasks import TaskManager

    from lmms_textweighted.harness.names import MODEL_NAME
    from lmms_textweighted.paths import data_folder

    folder = data_folder("tasks")
    ours = sorted(path.stem for path in folder.glob("*/*.yaml") if not path.name.startswith("_"))
    if _OURS not in ours:
        advice = "the installation lacks files: install again, pip install --force-reinstall --no-deps ."
        return Row("tasks", BAD, f"{_OURS}.yaml is not under {folder}", advice)
    known = set(TaskManager("ERROR", include_path=str(folder), model_name=MODEL_NAME).all_tasks)
    lacking = [name for name in (_STOCK, *ours) if name not in known]
    if lacking:
        advice = "install lmms-eval again: pip install --force-reinstall --no-deps lmms-eval"
        return Row("tasks", BAD, f"lmms-eval does not find {', '.join(lacking)}", advice)
    return Row("tasks", OK, f"{len(known)} known to lmms-eval, ours among them: {', '.join(ours)}")


def answer() -> Row:
    """Whether the embedded model, pruned to 192 of 576 tokens, answers the embedded set's first question right."""
    from lmms_textweighted import load, make_plan
    from lmms_textweighted.harness.documents import Documents
    from lmms_textweighted.inference import Decoding, PrunedLlava

    documents = Documents.of_task(_OURS, 1, single_prediction_prompt=True)
    document = documents[0]
    llava = PrunedLlava(*load("tiny"), make_plan("text_weighted", keep_tokens=192))
    given = llava.generate([[document.message]], Decoding(max_new_tokens=4))[0]
    kept = given.trace.kept_tokens
    if documents.score(document, given.text) == 1 and kept == 192:
        return Row("embedded model", OK, f"answers {document.target} with {kept} of 576 image tokens, which is right")
    return Row(
        "embedded model",
        BAD,
        f"answers {given.text!r} with {kept} image tokens, right is {document.target} with 192",
        "this installation computes something else than was tested: compare the packages' versions with the lock's",
    )

"""Question files: the format's variants, the pictures' checks, and every error as one line."""

from __future__ import annotations

import json
import os
import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from lmms_textweighted.errors import InputError
from lmms_textweighted.prompts import user_message
from lmms_textweighted.questions import LETTERS, find_options, read_questions

TEXT = "Which is red?\nA. the disc\nB. the square"


def entry(key="q", value=TEXT, label="B", **more):
    return {"id": key, "conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": label}], **more}


def write(folder, entries, name="Q.json"):
    path = folder / name
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return path


def picture(path, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 80).convert("RGB").save(path)
    return path


def read_error(*arguments, lines=1, **options):
    """The message of the InputError: so many lines, the first of which names the question file."""
    with pytest.raises(InputError) as caught:
        read_questions(*arguments, **options)
    message = str(caught.value)
    assert message.count("\n") == lines - 1
    assert "Q.json" in message.splitlines()[0]
    return message


# What a file may look like.


def test_a_question_is_read_as_it_stands(tmp_path):
    picture(tmp_path / "images" / "5" / "image.png")
    text = f"<image>\nContext: two shapes.\n{TEXT}"
    found = read_questions(write(tmp_path, [entry(5, text, image="5/image.png")]), tmp_path / "images")
    (question,) = found.questions
    assert (question.id, question.text, question.label, question.options) == (
        "5",
        text,
        "B",
        ("the disc", "the square"),
    )
    assert question.image == tmp_path / "images" / "5" / "image.png"
    assert question.prompt == f"Context: two shapes.\n{TEXT}"
    assert question.answer == 1
    assert found.skipped == ()
    assert set(found.picture_hashes) == {"5"}


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"<image>\n{TEXT}",
        f"<image> {TEXT}",
        f" \n<image>\n\n{TEXT}",
        f"{TEXT}\n<image>",
        f"{TEXT}<image>\n",
        TEXT.replace("Which", "<image>Which"),
        TEXT.replace(" red", "<image> red"),
    ],
)
def test_the_picture_goes_in_front_wherever_its_tag_stands(tmp_path, text):
    """As in LLaVA's own scripts, which take every tag out and put one in front."""
    (question,) = read_questions(
        write(tmp_path, [entry(value=text, image="a.png")]), None, check_images=False
    ).questions
    assert user_message(question.prompt, ["the picture"]).text == f"<image>\n{TEXT}"
    assert question.options == ("the disc", "the square")


def test_questions_without_a_picture_need_no_folder(tmp_path):
    found = read_questions(write(tmp_path, [entry("a"), entry("b", image=None)]), None)
    assert [question.image for question in found.questions] == [None, None]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_every_encoding_of_json_is_read(tmp_path, encoding):
    text = "Which is grün?\nA. 猫\nB. 🟢"
    path = tmp_path / "Q.json"
    path.write_bytes(json.dumps([entry(value=text)], ensure_ascii=False).encode(encoding))
    assert read_questions(path, None).questions[0].options == ("猫", "🟢")


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("Q\nA. x\nB. y", ("x", "y")),
        ("Q\r\nA. x\r\nB. y\r\n", ("x", "y")),
        ("Q\n  A.  x \n\tB. y\nAnswer with the option's letter.", ("x", "y")),
        ("A. Smith wrote this.\nQ\nA. x\nB. y", ("x", "y")),
        ("Q\nA. x\nB. y\nSource:\nA. Smith", ("x", "y")),
        ("Q\nA. x\n\nB. y\n\nC. z", ("x", "y", "z")),
        ("Q\nA. x\nB. y\nD. z", ("x", "y")),
        ("Q\nA. \nB.", ("", "")),
        ("Q\nA. x", ()),
        ("Q A. x B. y", ()),
        ("Q\nA.x\nB.y", ()),
        ("Q\nB. x\nC. y", ()),
        ("\n".join(f"{letter}. {letter.lower()}" for letter in string.ascii_uppercase), tuple("abcdefgh")),
    ],
)
def test_options_are_the_last_lettered_lines_in_order(text, options):
    assert find_options(text) == options


OPTION = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"), max_size=30).map(str.strip)


@given(
    question=st.text(st.characters(exclude_categories=["Cs"]), max_size=80),
    options=st.lists(OPTION, min_size=2, max_size=len(LETTERS)),
    data=st.data(),
)
def test_options_and_labels_survive_the_file(tmp_path_factory, question, options, data):
    label = data.draw(st.sampled_from(LETTERS[: len(options)]))
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    text = "\n".join([question, *lines])
    assume("<image>" not in text)
    path = write(tmp_path_factory.mktemp("questions"), [entry(value=text, label=label)])
    (found,) = read_questions(path, None).questions
    assert found.options == tuple(options)
    assert (found.label, found.options[found.answer]) == (label, options[LETTERS.index(label)])
    assert found.text == text


# What is wrong with a file.

TAG = f"<image>\n{TEXT}"
WRONG = {
    "a value without options": (entry(value="Which?"), "has no two options"),
    "one option": (entry(value="Which?\nA. x", label="A"), "has no two options"),
    "a label behind the options": (entry(label="C"), "has the answer 'C', which is none of its options A, B"),
    "a label in words": (entry(label="the disc"), "has the answer 'the disc'"),
    "a small label": (entry(label="a"), "has the answer 'a'"),
    "two letters": (entry(label="AB"), "has the answer 'AB'"),
    "no id": ({"conversations": []}, "entry 0 has no id"),
    "an id that is true": (entry(True), "has true as id: give a text or a whole number"),
    "an id that is null": (entry(None), "has null as id"),
    "an id of a fraction": (entry(1.5), "has 1.5 as id"),
    "an empty id": (entry(" "), "has an empty id"),
    "no conversations": ({"id": 7}, "entry 0 (id '7') has no conversations"),
    "conversations that are a text": ({"id": 7, "conversations": "A"}, "has a text as conversations: give a list"),
    "one turn": ({"id": 7, "conversations": [{"from": "human", "value": TEXT}]}, "has 1 conversations: give two"),
    "a turn that is a text": ({"id": 7, "conversations": ["a", "b"]}, "conversations[0] is a text, not an object"),
    "turns the wrong way round": (
        {"id": 7, "conversations": [{"from": "gpt", "value": "A"}, {"from": "human", "value": TEXT}]},
        "conversations[0] is from 'gpt': it must be from 'human'",
    ),
    "a turn without a value": ({"id": 7, "conversations": [{"from": "human"}, {}]}, "conversations[0] has no value"),
    "a value that is a number": (entry(value=3), "conversations[0] has 3 as value: give a text"),
    "an empty label": (entry(label=""), "conversations[1] has an empty value"),
    "an image that is a list": (entry(image=["a.png"]), "has a list as image: give a text"),
    "an empty image": (entry(image=""), "has an empty image"),
    "a tag without an image": (entry(value=TAG), "has an <image> tag but no image"),
    "two tags": (entry(value="<image>" + TAG, image="a.png"), "has 2 <image> tags for its one image"),
    "an absolute path": (entry(image="/etc/a.png"), "has the image '/etc/a.png': give a path inside the image folder"),
    "a path out of the folder": (entry(image="x/../../a.png"), "has the image 'x/../../a.png': give a path inside"),
    "a path with a zero": (entry(image="a\0.png"), r"has the image 'a\x00.png': give a path inside"),
    "half a character": (entry(value=TEXT + "\ud800"), "has half a character (position 39) in value"),
    "an entry that is a text": ("a", "entry 0 is a text, not an object"),
    "an entry that is a list": ([1], "entry 0 is a list, not an object"),
}


@pytest.mark.parametrize(("wrong", "words"), WRONG.values(), ids=list(WRONG))
def test_a_wrong_entry_is_named(tmp_path, wrong, words):
    assert words in read_error(write(tmp_path, [wrong]), tmp_path)
    assert words in read_error(write(tmp_path, [wrong]), None, check_images=False)


def test_the_entrys_number_and_id_are_said(tmp_path):
    message = read_error(write(tmp_path, [entry("a"), entry("b", label="D")]), None)
    assert "entry 1 (id 'b') has the answer 'D'" in message


def test_repeated_ids_are_named_and_compared_as_texts(tmp_path):
    entries = [entry(5), entry("6"), entry("5"), entry("7"), entry(6)]
    assert "more than one entry with id '5', '6'" in read_error(write(tmp_path, entries), None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"id": 1,\n  "image" "a.png"}]', "is no JSON: Expecting ':' delimiter, line 2, column 11"),
        ("", "is no JSON: Expecting value, line 1, column 1"),
        ('{"id": 1}\n{"id": 2}\n', "is no JSON: Extra data, line 2, column 1"),
        ('{"id": 1}', "holds an object, not a list"),
        ("3", "holds 3, not a list"),
        ("[]", "holds an empty list"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[" + "1" * 5_000 + "]", "cannot be read as JSON"),
    ],
)
def test_a_file_that_is_no_list_of_questions_is_refused(tmp_path, content, words):
    assert words in read_error(write(tmp_path, content), None)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    assert "does not exist" in read_error(tmp_path / "Q.json", None)
    (tmp_path / "dir" / "Q.json").mkdir(parents=True)
    assert "cannot be read: Is a directory" in read_error(tmp_path / "dir" / "Q.json", None)
    latin = tmp_path / "latin" / "Q.json"
    latin.parent.mkdir()
    latin.write_bytes(json.dumps([entry(value="grün" + TEXT)], ensure_ascii=False).encode("latin-1"))
    assert "is no utf-8 text (byte " in read_error(latin, None)


# Pictures.


def folder_of_pictures(tmp_path):
    """Two good pictures, and one of every kind that is not; their questions."""
    images = tmp_path / "images"
    picture(images / "good.png")
    picture(images / "good.jpg", (64, 64))
    whole = picture(images / "cut.jpg", (64, 64)).read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    whole = picture(images / "cut.png", (64, 64)).read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    whole = bytearray(picture(images / "flipped.png", (64, 64)).read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    (images / "flipped.png").write_bytes(whole)
    (images / "text.png").write_text("no picture")
    (images / "empty.png").write_bytes(b"")
    (images / "folder.png").mkdir()
    (images / "loop.png").symlink_to("loop.png")
    Image.new("1", (10_000, 10_000)).save(images / "bomb.png")
    Image.new("1", (20_000, 10_000)).save(images / "huge.png")
    bad = [
        "cut.jpg",
        "cut.png",
        "flipped.png",
        "text.png",
        "empty.png",
        "folder.png",
        "loop.png",
        "bomb.png",
        "huge.png",
    ]
    names = ["good.png", *bad, "missing.png", "good.jpg"]
    return write(tmp_path, [entry(name, image=name) for name in names]), images, [*bad, "missing.png"]


def test_missing_and_broken_pictures_are_listed_at_once(tmp_path):
    path, images, bad = folder_of_pictures(tmp_path)
    message = read_error(path, images, lines=1 + len(bad))
    assert f"{len(bad)} of 12 pictures cannot be used" in message
    for name in bad:
        assert f"{str(images / name)!r}" in message
    for words in (
        "cut.jpg' is broken: image file is truncated",
        "text.png' is no picture",
        "empty.png' is no picture",
        "missing.png' is missing",
        "folder.png' cannot be read: Is a directory",
        "loop.png' cannot be read: Too many levels of symbolic links",
        "bomb.png' has more than",
        "huge.png' has more than",
    ):
        assert words in message
    assert "good" not in message
    assert "--skip-missing" in message


def test_truncated_pictures_are_found_although_lmms_eval_lets_pillow_fill_them_up(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path, images, bad = folder_of_pictures(tmp_path)
    assert f"{len(bad)} of 12 pictures" in read_error(path, images, lines=1 + len(bad))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_unusable_pictures_can_be_left_out(tmp_path):
    path, images, bad = folder_of_pictures(tmp_path)
    found = read_questions(path, images, skip_missing=True)
    assert [question.id for question in found.questions] == ["good.png", "good.jpg"]
    assert [key for key, _ in found.skipped] == bad
    assert all(name in reason for name, reason in found.skipped)


def test_leaving_out_everything_is_an_error(tmp_path):
    (tmp_path / "images").mkdir()
    path = write(tmp_path, [entry("a", image="a.png"), entry("b", image="b.png")])
    message = read_error(path, tmp_path / "images", lines=3, skip_missing=True)
    assert "2 of 2 pictures cannot be used" in message
    assert "--skip-missing" not in message


def test_every_missing_picture_is_listed_on_a_line_of_its_own(tmp_path):
    path = write(tmp_path, [entry(number, image=f"{number}.png") for number in range(33)])
    first, *listed = read_error(path, tmp_path, lines=34).splitlines()
    assert "33 of 33 pictures" in first
    assert [line.split("(id ")[1] for line in listed] == [f"'{number}')" for number in range(33)]


def test_a_long_list_of_repeated_ids_is_cut(tmp_path):
    message = read_error(write(tmp_path, [entry(number // 2) for number in range(66)]), None)
    assert "'19', … and 13 more" in message


def test_the_image_folder_must_be_there(tmp_path):
    path = write(tmp_path, [entry(image="a.png")])
    assert "names 1 picture, but no image folder is given" in read_error(path, None)
    assert "is no folder" in read_error(path, tmp_path / "nowhere")
    assert "is no folder" in read_error(path, path)


def test_links_may_not_lead_out_of_the_folder(tmp_path):
    picture(tmp_path / "outside" / "a.png")
    images = tmp_path / "images"
    picture(images / "b.png")
    (images / "out.png").symlink_to(tmp_path / "outside" / "a.png")
    (images / "outside").symlink_to(tmp_path / "outside")
    (images / "inside.png").symlink_to("b.png")
    (tmp_path / "linked").symlink_to(images)
    for name in ("out.png", "outside/a.png"):
        assert "a link that leads out of the image folder" in read_error(
            write(tmp_path, [entry(image=name)]), images, skip_missing=True
        )
    assert len(read_questions(write(tmp_path, [entry(image="inside.png")]), tmp_path / "linked").questions) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_picture_without_permission_is_listed(tmp_path):
    picture(tmp_path / "a.png").chmod(0)
    assert "a.png' cannot be read: Permission denied" in read_error(write(tmp_path, [entry(image="a.png")]), tmp_path)


def test_the_digest_changes_with_the_questions_the_pictures_and_what_is_left_out(tmp_path):
    images = tmp_path / "images"
    picture(images / "a.png")
    picture(images / "b.png")
    entries = [entry("a", image="a.png"), entry("b", image="b.png")]
    path = write(tmp_path, entries)
    digests = [read_questions(path, images).digest]
    assert read_questions(path, images, skip_missing=True).digest == digests[0]
    picture(images / "a.png")
    digests.append(read_questions(path, images).digest)
    (images / "b.png").unlink()
    digests.append(read_questions(path, images, skip_missing=True).digest)
    write(tmp_path, [*entries[:1], entry("b", label="A", image="b.png")])
    digests.append(read_questions(path, images, skip_missing=True).digest)
    assert len(set(digests)) == 4

"""Bad pictures and captions in one's own data: what is left out is counted, what is left is enough or the job says why not."""

import json

import pytest

from emu.lines import BadLine
from emu.own_data import PicturePlan, PictureStore, SplitPictures
from emu.own_data.captioned_records import with_caption
from emu.training.stages import FitText, filled
from tests.own_toys import write_pictures
from tests.test_data_bad_input import FOLDERS, REFUSED, write


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_wrong_with_some_files_is_counted_and_the_others_are_divided(tmp_path, name):
    files, expected = FOLDERS[name]
    if name == "picture as video":
        expected = {"not a captioned picture": 1}
    folder = write_pictures(tmp_path / "in", 3, 16)
    for row in map(json.loads, (folder / "metadata.jsonl").read_text().splitlines()):
        (folder / row["file_name"]).with_suffix(".txt").write_text(row["text"])
    (folder / "metadata.jsonl").unlink()
    for file, data in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(data)
    assert SplitPictures(str(folder), 8).run(tmp_path / "split") == int(bool(expected))
    split = PictureStore(tmp_path / "split").split
    assert split["left_out"] == expected and len(split["train"]) >= 2 and len(split["held_out"]) == 1
    assert [path.name for path in tmp_path.iterdir() if ".partial" in path.name] == []


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_cannot_be_used_is_refused_and_nothing_is_written(tmp_path, name):
    files, told = REFUSED[name]
    folder = write(tmp_path / "in", files)
    for work in (lambda: SplitPictures(str(folder), 8).run(tmp_path / "split"), PicturePlan(str(folder)).make):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            work()
        assert told in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("captions", [["1", "2"], ["a"], ["a red disc", "a blue disc"]])
def test_a_few_captions_fill_a_text_tokenizer_of_few_ids(captions):
    tokenizer = filled(captions, 320)
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in [*captions, "other words"])
    assert 256 < tokenizer.size <= 320


def test_texts_without_a_word_are_refused(tmp_path):
    (tmp_path / "in.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="corpus"):
        FitText(str(tmp_path / "in.txt")).run(tmp_path / "text")
    assert not (tmp_path / "text").exists()


@pytest.mark.parametrize(
    ("items", "keys", "kind", "job"),
    [
        ([{"video": "a.gif"}, "a ball"], ("image",), "picture", "own-videos"),
        ([{"image": "a.png"}, "a ball"], ("video", "frames"), "clip", "own-images"),
    ],
)
def test_what_another_job_takes_is_said_of_its_documents(items, keys, kind, job):
    with pytest.raises(BadLine, match=f"expected one {kind} and its caption .*{job}"):
        with_caption(items, keys, kind)

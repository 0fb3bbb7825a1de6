"""Generated files say that a model made them, and how; one function reads it back from each kind of file."""

import io
import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from emu import Emu, __version__
from emu.media import gif_bytes, mp4_bytes, png_bytes, read_provenance
from emu.provenance import DIGITAL_SOURCE_TYPE

PROMPTS = [
    "a red circle",
    'quotes " \' and <tags> & "&amp;"',
    "two\nlines\tand a tab",
    "żółw 龍 🐉",
    "",
    '<?xpacket begin="" id=""?><x/><?xpacket end="r"?>',
    "nul \x00 escape \x1b and half a pair \ud83d",
]
ABOUT = {"seed": 7, "model": "digits 0123", "settings": {"size": [8, 12], "top_p": 0.9, "negative_prompt": "grey"}}


def frames(count=3):
    noise = np.random.default_rng(0).integers(0, 255, (count, 8, 12, 3), np.uint8)
    return [Image.fromarray(frame) for frame in noise]


WRITERS = {"png": lambda about: png_bytes(frames()[0], about), "gif": lambda about: gif_bytes(frames(), 8, about)}
WRITERS["mp4"] = lambda about: (pytest.importorskip("av"), mp4_bytes(frames(), 8, about))[1]


@pytest.mark.parametrize("kind", list(WRITERS))
@pytest.mark.parametrize("prompt", PROMPTS)
def test_what_is_told_is_read_back_from_every_kind_of_file(kind, prompt, tmp_path):
    about = {"prompt": prompt, **ABOUT}
    (tmp_path / f"file.{kind}").write_bytes(WRITERS[kind](about))
    found = read_provenance(tmp_path / f"file.{kind}")
    assert found == {**about, "library": f"emu-tokens {__version__}", "digital_source_type": DIGITAL_SOURCE_TYPE}
    assert found["digital_source_type"].endswith("/digitalsourcetype/trainedAlgorithmicMedia")


@pytest.mark.parametrize("kind", list(WRITERS))
def test_equal_contents_give_equal_bytes(kind):
    assert WRITERS[kind]({"prompt": "a", **ABOUT}) == WRITERS[kind]({"prompt": "a", **ABOUT})


@pytest.mark.parametrize("kind", list(WRITERS))
def test_a_file_without_provenance_tells_nothing(kind, tmp_path):
    (tmp_path / "file").write_bytes(WRITERS[kind](None))
    assert read_provenance(tmp_path / "file") == {}
    (tmp_path / "file").write_bytes(b"")
    assert read_provenance(tmp_path / "file") == {}


@pytest.mark.parametrize("packet", ["<", "<!DOCTYPE x [<!ENTITY a 'b'>]><x>&a;</x>", "[1]"])
def test_a_packet_that_cannot_be_read_is_told_with_its_file(packet, tmp_path):
    (tmp_path / "odd.png").write_text(f'<?xpacket begin="" id=""?>{packet}<?xpacket end="r"?>')
    with pytest.raises(ValueError, match=r"odd\.png"):
        read_provenance(tmp_path / "odd.png")


def test_readers_of_pictures_find_it_where_they_look():
    about = {"prompt": "a red circle", **ABOUT}
    with Image.open(io.BytesIO(WRITERS["png"](about))) as picture:
        assert (picture.text["prompt"], picture.text["seed"]) == ("a red circle", "7")
        assert DIGITAL_SOURCE_TYPE in picture.text["XML:com.adobe.xmp"]
        assert np.array_equal(np.asarray(picture), np.asarray(frames()[0]))
    with Image.open(io.BytesIO(WRITERS["gif"](about))) as clip:
        assert json.loads(clip.info["comment"]) == about
        assert clip.n_frames == 3
        for index in range(clip.n_frames):
            clip.seek(index)
            clip.load()


def test_readers_of_clips_find_it_where_they_look():
    av = pytest.importorskip("av")
    about = {"prompt": "a red circle", **ABOUT}
    with av.open(io.BytesIO(mp4_bytes(frames(6), 8, about))) as container:
        assert container.metadata["title"] == "a red circle"
        assert json.loads(container.metadata["comment"]) == about
        assert len(list(container.decode(video=0))) == 6


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
@pytest.mark.parametrize("kind", list(WRITERS))
def test_exiftool_finds_the_digital_source_type(kind, tmp_path):
    (tmp_path / f"file.{kind}").write_bytes(WRITERS[kind]({"prompt": "a", **ABOUT}))
    command = ["exiftool", "-s3", "-n", "-XMP-iptcExt:DigitalSourceType", str(tmp_path / f"file.{kind}")]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == DIGITAL_SOURCE_TYPE


def test_pictures_carry_all_that_made_them(tiny_emu, tmp_path):
    options = {"size": (8, 12), "guidance_scale": 1.5, "temperature": 0.7, "top_k": 9, "top_p": 0.8}
    pictures = tiny_emu.generate_images(
        "a red circle", seed=5, images_per_prompt=2, negative_prompt="a ball", **options
    )
    for stream, picture in enumerate(pictures):
        picture.save(tmp_path / "new" / "image.png")
        found = read_provenance(tmp_path / "new" / "image.png")
        assert (found["prompt"], found["seed"]) == ("a red circle", 5)
        assert found["model"] == picture.model and tiny_emu.fingerprint in picture.model
        told = {**options, "size": [8, 12], "negative_prompt": "a ball", "stream": stream, "window": 1}
        assert found["settings"] == dict(picture.settings)
        assert told.items() <= found["settings"].items()
        with Image.open(tmp_path / "new" / "image.png") as saved:
            assert np.array_equal(np.asarray(saved), np.asarray(picture.image))


def test_what_a_picture_tells_is_enough_to_draw_it_again(tiny_emu):
    (first,) = tiny_emu.generate_images("a ball", size=(16, 16), seed=3, top_k=5, deterministic=True)
    again = {name: value for name, value in first.settings.items() if name not in ("stream", "dtype", "device")}
    (second,) = tiny_emu.generate_images(first.prompt, seed=first.seed, **{**again, "size": tuple(again["size"])})
    assert second.codes.tolist() == first.codes.tolist() and second.settings == first.settings


def test_clips_carry_it_in_every_form_and_every_frame(tiny_emu, tmp_path):
    (clip,) = tiny_emu.generate_videos("a ball", frames=6, first_frames=frames()[:1], size=(8, 12))
    targets = [tmp_path / "clip.gif", tmp_path / "clip", *([tmp_path / "clip.mp4"] if has_av() else [])]
    for target in targets:
        clip.save(target)
        found = read_provenance(target)
        assert found["settings"]["first_frames"] == 1 and found["settings"]["frames"] == 6
        assert found["digital_source_type"] == DIGITAL_SOURCE_TYPE
    names = sorted(path.name for path in (tmp_path / "clip").iterdir())
    assert names == [f"{index:04d}.png" for index in range(6)]
    assert [read_provenance(tmp_path / "clip" / name)["frame"] for name in names] == list(range(6))
    with pytest.raises(ValueError, match=r"\.webm"):
        clip.save(tmp_path / "clip.webm")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):
        read_provenance(tmp_path / "empty")


def has_av():
    try:
        import av
    except ModuleNotFoundError:
        return False
    return av is not None


def test_other_weights_have_another_name(tiny_emu):
    import copy

    other = copy.deepcopy(tiny_emu)
    assert other.fingerprint == tiny_emu.fingerprint
    other.model.lm_head.weight.data.mul_(1.001)
    assert other.fingerprint != tiny_emu.fingerprint
    assert other.fingerprint.startswith(tiny_emu.fingerprint.rpartition("-")[0])


def test_a_clip_has_the_same_bytes_on_any_number_of_cores():
    """The encoder writes what it was told into the file: by default one thread for each core, on which its choices depend."""
    pytest.importorskip("av")
    frames = [Image.new("RGB", (32, 32), (number, 90, 40)) for number in range(6)]
    written = mp4_bytes(frames, 8.0)
    assert b" threads=1 " in written and b"lookahead_threads=1 " in written


@pytest.mark.slow
def test_equal_frames_give_equal_bytes_whatever_memory_held_before():
    pytest.importorskip("av")
    noise = np.random.default_rng(0)
    (clip,) = Emu.from_pretrained("digits", device="cpu").generate_videos("a handwritten seven", seed=2)
    found = set()
    for _ in range(300):
        held = [noise.integers(0, 256, noise.integers(1_000, 400_000), dtype=np.uint8) for _ in range(50)]
        del held
        found.add(mp4_bytes(clip.frames, clip.fps))
    assert len(found) == 1

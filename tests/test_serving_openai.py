"""The official client of OpenAI's interface against bundled models: the same bytes as from `Emu` itself."""

from __future__ import annotations

import base64
import io
import time

import numpy as np
import openai
import pytest
from PIL import Image

from emu.media import mp4_bytes, png_bytes
from tests.serving_toys import bundled, png, running

pytest.importorskip("av")
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
MAN = "man with beard, light skin tone"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    with running(bundled("digits"), tmp_path_factory.mktemp("files")) as server:
        yield server


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    with running(bundled("pictures"), tmp_path_factory.mktemp("files")) as server:
        yield server


def bytes_of(entry):
    return base64.b64decode(entry.b64_json)


def address_of(image):
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


def own_bytes(results):
    return [png_bytes(result.image, result.about) for result in results]


def asked(image, words):
    parts = [{"type": "image_url", "image_url": {"url": address_of(image)}}, {"type": "text", "text": words}]
    return [{"role": "user", "content": parts}]


def test_models_tell_what_they_can_do(digits):
    (model,) = digits.official.models.list().data
    assert model.id == "digits" and model == digits.official.models.retrieve("digits")
    assert model.emu["tasks"]["draw"] is None and "image_infill" in model.emu["tasks"]["fill"]
    assert model.emu["sizes"] == [[32, 32]] and model.emu["revision"] == digits.service.emu.fingerprint
    with pytest.raises(openai.NotFoundError, match="'digits'"):
        digits.official.models.retrieve("gpt-image-1")


def test_pictures_are_those_of_the_library_with_the_same_seed(digits):
    reply = digits.official.images.generate(
        prompt="a handwritten seven",
        model="digits",
        n=2,
        extra_body={"seed": 5, "guidance_scale": 2.0, "temperature": 0.9, "negative_prompt": "a handwritten one"},
    )
    own = digits.service.emu.generate_images(
        "a handwritten seven",
        images_per_prompt=2,
        seed=5,
        guidance_scale=2.0,
        temperature=0.9,
        negative_prompt="a handwritten one",
        deterministic=True,
    )
    assert list(map(bytes_of, reply.data)) == own_bytes(own)
    assert reply.model_extra["emu"]["seed"] == 5 and reply.model_extra["emu"]["settings"]["guidance_scale"] == 2.0
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens


def test_a_size_is_width_by_height_and_an_address_holds_the_same_picture(digits):
    reply = digits.official.images.generate(
        prompt="a handwritten two", size="64x32", response_format="url", extra_body={"seed": 1}
    )
    with pytest.warns(UserWarning, match="32x64"):
        (own,) = digits.service.emu.generate_images("a handwritten two", size=(32, 64), seed=1)
    data = digits.get(reply.data[0].url.removeprefix(digits.url)).content
    assert Image.open(io.BytesIO(data)).size == (64, 32) and [data] == own_bytes([own])
    assert reply.size == "64x32" and "32x64" in reply.model_extra["emu"]["warning"]


def test_a_seed_that_is_not_given_is_told_and_repeats_the_picture(digits):
    client = digits.official
    first = client.images.generate(prompt="a handwritten three")
    again = client.images.generate(prompt="a handwritten three", extra_body={"seed": first.model_extra["emu"]["seed"]})
    assert bytes_of(first.data[0]) == bytes_of(again.data[0])


def test_a_stream_shows_rows_over_grey_and_ends_in_the_whole_picture(digits):
    events = list(
        digits.official.images.generate(
            prompt="a handwritten seven", stream=True, partial_images=3, extra_body={"seed": 5}
        )
    )
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image"] * 3 + ["completed"]
    assert [event.partial_image_index for event in events[:-1]] == [0, 1, 2]
    for number, event in enumerate(events[:-1], start=1):
        pixels = np.asarray(Image.open(io.BytesIO(bytes_of(event))))
        assert event.emu == {"rows": number, "of": 4}
        assert (pixels[8 * number :] == 128).all() and not (pixels[: 8 * number] == 128).all()
    assert [bytes_of(events[-1])] == own_bytes(digits.service.emu.generate_images("a handwritten seven", seed=5))


def test_the_page_gets_every_row(digits):
    body = {"prompt": "a handwritten six", "stream": True, "emu": {"every_row": True}}
    lines = digits.post("/v1/images/generations", json=body).text.splitlines()
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert names == ["image_generation.partial_image"] * 4 + ["image_generation.completed"]


@pytest.mark.slow
def test_edits_are_those_of_the_library(pictures):
    emu = pictures.service.emu
    (given,) = emu.generate_images(MAN, seed=3)
    words = "dark skin tone"
    reply = pictures.official.images.edit(image=png(given.image), prompt=words, size="64x64", extra_body={"seed": 7})
    assert [bytes_of(reply.data[0])] == own_bytes(emu.edit_images(given.image, words, seed=7))
    stream = pictures.official.images.edit(
        image=png(given.image), prompt=words, stream=True, partial_images=1, extra_body={"seed": 7}
    )
    events = list(stream)
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert bytes_of(events[-1]) == bytes_of(reply.data[0])


@pytest.mark.slow
def test_several_pictures_are_references_of_one_edit(pictures):
    emu = pictures.service.emu
    a, b = (result.image for result in emu.generate_images([MAN, "person walking, dark skin tone"], seed=3))
    (own,) = emu.edit_images([[a, b]], "dark skin tone", seed=7)
    reply = pictures.official.images.edit(image=[png(a), png(b)], prompt="dark skin tone", extra_body={"seed": 7})
    assert bytes_of(reply.data[0]) == own_bytes([own])[0]


def test_a_conversation_describes_as_the_library_does(digits):
    (seven,) = digits.service.emu.generate_images("a handwritten seven", seed=5)
    reply = digits.official.chat.completions.create(model="digits", messages=asked(seven.image, "Describe it."))
    (own,) = digits.service.emu.generate_text([[seven.image, "Describe it."]])
    choice = reply.choices[0]
    assert choice.message.content == own == "a handwritten seven" and choice.finish_reason == "stop"
    chunks = list(
        digits.official.chat.completions.create(
            model="digits",
            messages=asked(seven.image, "Describe it."),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    said = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(text or "" for text in said) == own and chunks[-1].usage == reply.usage
    assert chunks[-2].choices[0].finish_reason == "stop"


@pytest.mark.slow
def test_text_that_is_cut_says_so(digits):
    (seven,) = digits.service.emu.generate_images("a handwritten seven", seed=5)
    reply = digits.official.chat.completions.create(
        model="digits", messages=asked(seven.image, "Describe it."), max_tokens=1
    )
    assert reply.choices[0].finish_reason == "length" and reply.usage.completion_tokens == 1


@pytest.mark.slow
def test_a_conversation_draws_pictures_where_they_are_asked_for(digits):
    reply = digits.official.chat.completions.create(
        model="digits",
        messages=[{"role": "user", "content": "a handwritten seven"}],
        seed=5,
        modalities=["image"],
    )
    (own,) = own_bytes(digits.service.emu.generate_images("a handwritten seven", seed=5))
    (part,) = reply.choices[0].message.images
    assert base64.b64decode(part["image_url"]["url"].partition(",")[2]) == own
    assert reply.choices[0].message.content is None


@pytest.mark.slow
def test_a_conversation_goes_on_in_text_and_pictures_as_the_library_does(pictures):
    (own,) = pictures.service.emu.generate_images(MAN, seed=3)
    options = {"seed": 4, "size": (64, 64), "max_new_tokens": 20}
    expected = list(pictures.service.emu.generate([own.image], **options))
    message = {"role": "user", "content": asked(own.image, "")[0]["content"][:1]}
    request = {"model": "pictures", "messages": [message], "seed": 4, "max_tokens": 20}
    reply = pictures.official.chat.completions.create(
        **request, modalities=["text", "image"], extra_body={"size": "64x64"}
    )
    found = reply.choices[0].message
    assert (found.content or "") == "".join(one for one in expected if isinstance(one, str))
    drawn = [
        Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2])))
        for part in getattr(found, "images", [])
    ]
    assert [image.tobytes() for image in drawn] == [one.tobytes() for one in expected if isinstance(one, Image.Image)]


def test_clips_are_those_of_the_library(digits):
    client = digits.official
    job = client.videos.create(prompt="a handwritten seven", extra_body={"seed": 2})
    assert job.status == "queued" and job.size == "32x32" and job.seconds == "1"
    job = client.videos.poll(job.id, poll_interval_ms=20)
    assert job.status == "completed" and job.progress == 100
    (own,) = digits.service.emu.generate_videos("a handwritten seven", seed=2)
    assert client.videos.download_content(job.id).read() == mp4_bytes(own.frames, own.fps, own.about)
    assert client.videos.list().data == [job]
    assert client.videos.delete(job.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(job.id)


@pytest.mark.slow
def test_a_clip_begins_with_a_picture_that_is_given(digits):
    client, emu = digits.official, digits.service.emu
    (seven,) = emu.generate_images("a handwritten seven", seed=5)
    job = client.videos.create(
        prompt="a handwritten seven", input_reference=png(seven.image), seconds="1", extra_body={"seed": 2}
    )
    client.videos.poll(job.id, poll_interval_ms=20)
    (own,) = emu.generate_videos("a handwritten seven", first_frames=seven.image, seed=2)
    assert client.videos.download_content(job.id).read() == mp4_bytes(own.frames, own.fps, own.about)


def test_a_clip_that_is_taken_back_frees_its_place(digits):
    client = digits.official
    jobs = [client.videos.create(prompt="a handwritten seven") for _ in range(3)]
    names = [job.id for job in jobs]
    assert [job.id for job in client.videos.list(limit=2)] == names[::-1]  # page by page
    assert [job.id for job in client.videos.list(order="asc", after=names[0]).data] == names[1:]
    for job in jobs:
        client.videos.delete(job.id)
    end = time.monotonic() + 10
    while digits.service.admission.taken and time.monotonic() < end:
        time.sleep(0.01)
    assert not digits.service.admission.taken

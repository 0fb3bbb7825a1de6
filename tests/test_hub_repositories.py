"""Repositories of a hub: what is fetched from them and put there, against a hub that is a folder of this machine."""

import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import transformers.utils.hub
from safetensors.torch import load_file

from emu import Emu, EmuForCausalLM, MultimodalTokenizer
from emu.checkpoints.repositories import model_name, resolve
from emu.checkpoints.weights import Checkpoint
from emu.families.emu3 import tiny as emu3
from emu.families.emu35 import write_tiny_vision
from emu.hub.load import read_tokenizer
from emu.hub.tiny_models import write

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Repositories as their makers keep them: code and pickles beside the weights, the vision tokenizer in one of its own."""
    root = tmp_path_factory.mktemp("published")
    for name in ("Emu3-Gen", "Emu3-Stage1"):
        write("emu3", root / "BAAI" / name, alone=True)
    write("emu3.5", root / "BAAI" / "Emu3.5-Image", alone=True)
    emu3.write_vision(root / "BAAI" / "Emu3-VisionTokenizer")
    write_tiny_vision(root / "BAAI" / "Emu3.5-VisionTokenizer")
    for folder in (root / "BAAI").iterdir():
        (folder / "modeling_emu3.py").write_text("raise SystemExit('code from a repository ran')")
        (folder / "pytorch_model.bin").write_bytes(b"a pickle")
        (folder / "README.md").write_text("a card")
    return root


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    """`snapshot_download` of a machine with a network: files of the published folders appear in a cache."""
    calls = []

    def snapshot_download(repo_id, *, allow_patterns, revision=None, cache_dir=tmp_path / "cache", **places):
        calls.append({"repo_id": repo_id, "revision": revision, **places})
        source = published / repo_id
        target = Path(cache_dir) / f"models--{repo_id.replace('/', '--')}" / "snapshots" / COMMIT
        for file in source.rglob("*"):
            name = file.relative_to(source).as_posix()
            if file.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target / name)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return SimpleNamespace(calls=calls, cache=tmp_path / "cache")


def in_cache(cache, published, repository):
    """A repository as huggingface_hub caches it."""
    place = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(published / repository, place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)


def test_a_repository_and_the_one_of_its_vision_tokenizer_are_an_emu(hub, published):
    emu = Emu.from_pretrained("BAAI/Emu3-Gen", device="cpu", revision="v1", token="hf_x")
    folder = Emu.from_pretrained(
        published / "BAAI/Emu3-Gen", vision_tokenizer=published / "BAAI/Emu3-VisionTokenizer", device="cpu"
    )
    assert {call["repo_id"]: call["revision"] for call in hub.calls} == {
        "BAAI/Emu3-Gen": "v1",
        "BAAI/Emu3-VisionTokenizer": None,
    }
    assert all(call["token"] == "hf_x" for call in hub.calls)
    assert emu.tokenizer.fingerprints == folder.tokenizer.fingerprints and emu.defaults == folder.defaults
    assert all(torch.equal(a, b) for a, b in zip(emu.model.parameters(), folder.model.parameters(), strict=True))
    assert emu.model.name_or_path == "BAAI/Emu3-Gen"


def test_every_repository_takes_a_revision_of_its_own(hub):
    Emu.from_pretrained("BAAI/Emu3-Gen@v1", vision_tokenizer="BAAI/Emu3-VisionTokenizer@v2", device="cpu")
    assert {call["repo_id"]: call["revision"] for call in hub.calls} == {
        "BAAI/Emu3-Gen": "v1",
        "BAAI/Emu3-VisionTokenizer": "v2",
    }
    with pytest.raises(ValueError, match="names one revision and revision='v3' another"):
        resolve("BAAI/Emu3-Gen@v1", revision="v3")


def test_neither_code_nor_pickles_are_fetched(hub):
    read_tokenizer("BAAI/Emu3-Gen")
    names = {path.name for path in hub.cache.rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "emu3.tiktoken"} <= names
    assert not [name for name in names if name.endswith((".py", ".bin"))]


def test_a_pickle_is_fetched_where_the_caller_names_it(hub):
    folder = resolve("BAAI/Emu3-Gen", files=["pytorch_model.bin"])
    assert (folder / "pytorch_model.bin").is_file() and not list(folder.glob("*.py"))


def test_a_repository_of_pickles_says_how_to_fetch_them(hub, published):
    source = published / "BAAI/Emu3.5-VisionTokenizer"
    held = (source / "model.safetensors").rename(source / "held")
    torch.save({"state_dict": load_file(held)}, source / "model.ckpt")
    try:
        with pytest.raises(FileNotFoundError, match=r"fetched only by name, e\.g\. allow_pickle='model\.ckpt'"):
            read_tokenizer("BAAI/Emu3.5-Image")
        tokenizer = read_tokenizer("BAAI/Emu3.5-Image", allow_pickle="model.ckpt")
        assert tokenizer.vision.codebook_sizes == (64,)
    finally:
        held.rename(source / "model.safetensors")
        (source / "model.ckpt").unlink()


def test_what_a_repository_is_called_tells_its_words_and_settings(hub):
    assert read_tokenizer("BAAI/Emu3-Stage1").templates.answer == "{items}"
    assert "ASSISTANT" in read_tokenizer("BAAI/Emu3-Gen").templates.answer
    newer = Emu.from_pretrained("BAAI/Emu3.5-Image", device="cpu")
    assert newer.defaults.guidance_scale == 5.0 and newer.tokenizer.vision.config.quantizer == "ibq"


def test_a_cache_is_read_without_a_network(published, tmp_path):
    for name in ("Emu3-Gen", "Emu3-VisionTokenizer"):
        in_cache(tmp_path, published, f"BAAI/{name}")
    emu = Emu.from_pretrained("BAAI/Emu3-Gen", device="cpu", cache_dir=tmp_path, local_files_only=True)
    assert emu.generate_images("a cat", size=(16, 16))[0].codes.shape == (2, 2)
    alone = EmuForCausalLM.from_pretrained("BAAI/Emu3-Gen", cache_dir=tmp_path, revision=COMMIT)
    assert torch.equal(alone.lm_head.weight, emu.model.lm_head.weight)
    assert model_name(resolve("BAAI/Emu3-Gen", cache_dir=tmp_path)) == "Emu3-Gen"


@pytest.mark.parametrize(
    "read", [Emu.from_pretrained, EmuForCausalLM.from_pretrained, MultimodalTokenizer.from_pretrained]
)
def test_without_network_and_cache_the_repository_and_the_way_out_are_named(read):
    with pytest.raises(FileNotFoundError, match=r"'BAAI/Emu3-Gen'.*HF_HUB_OFFLINE.*hf download BAAI/Emu3-Gen"):
        read("BAAI/Emu3-Gen")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RepositoryNotFoundError", "none of that name, or it is private"),
        ("GatedRepoError", "consent"),
        ("RevisionNotFoundError", "no such revision"),
        ("HfHubHTTPError", "the hub answers 403.*token"),
    ],
)
def test_refusals_of_the_hub_are_told(error, message, monkeypatch):
    def refuse(*args, **options):
        raise getattr(huggingface_hub.errors, error)("no", response=Answer(403))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match=f"'some-one/a-model' could not be read: .*{message}"):
        resolve("some-one/a-model")


class Answer:
    """What the hub answers, as far as huggingface_hub's errors look at it."""

    def __init__(self, status_code):
        self.status_code, self.headers, self.request, self.text = status_code, {}, None, ""


@pytest.fixture
def uploads(tmp_path, monkeypatch):
    """`HfApi` of a hub that keeps repositories as folders; what was asked of it stands in `asked`."""
    asked, root = {}, tmp_path / "hub"

    class Api:
        def __init__(self, token=None, **_):
            asked["token"] = token

        def create_repo(self, repo_id, **options):
            name = repo_id if "/" in repo_id else f"me/{repo_id}"
            (root / name).mkdir(parents=True, exist_ok=True)
            asked["create_repo"] = {"repo_id": name, **options}
            return SimpleNamespace(repo_id=name)

        def create_branch(self, repo_id, **options):
            asked["create_branch"] = options

        def file_exists(self, repo_id, filename, **_):
            return (root / repo_id / filename).is_file()

        def upload_folder(self, *, repo_id, folder_path, allow_patterns, delete_patterns=(), **options):
            asked["upload_folder"] = options
            for file in list((root / repo_id).rglob("*")):
                if any(fnmatch(file.name, pattern) for pattern in delete_patterns):
                    file.unlink()
            for file in Path(folder_path).rglob("*"):
                name = file.relative_to(folder_path)
                if file.is_file() and any(fnmatch(name.as_posix(), pattern) for pattern in allow_patterns):
                    (root / repo_id / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, root / repo_id / name)
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return SimpleNamespace(asked=asked, root=root)


def test_a_pushed_emu_is_read_again_and_tells_no_secrets(tiny_emu, uploads, tmp_path):
    tiny_emu.save_pretrained(tmp_path / "saved")
    saved = Emu.from_pretrained(tmp_path / "saved", device="cpu")
    address = saved.push_to_hub("mine", private=True, revision="draft", commit_message="First")
    assert address == "https://hub/me/mine/commit/1"
    assert uploads.asked["create_repo"] == {"repo_id": "me/mine", "private": True, "exist_ok": True}
    assert uploads.asked["create_branch"]["branch"] == "draft"
    assert uploads.asked["upload_folder"] == {"revision": "draft", "commit_message": "First", "create_pr": False}
    folder = uploads.root / "me/mine"
    assert 'Emu.from_pretrained("me/mine")' in (folder / "README.md").read_text()
    again = Emu.from_pretrained(folder, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), tiny_emu.model.parameters(), strict=True))
    for file in folder.rglob("*"):
        if file.suffix in (".json", ".md"):
            assert not [word for word in ("hf_secret", str(tmp_path)) if word in file.read_text()], file


def test_a_push_keeps_the_card_and_replaces_the_model(tiny_emu, uploads):
    folder = uploads.root / "me/mine"
    folder.mkdir(parents=True)
    for name in ("README.md", "model.safetensors.index.json", "model-00001-of-00002.safetensors"):
        (folder / name).write_text("of before")
    tiny_emu.push_to_hub("me/mine", create_pr=True, token="hf_other")
    assert uploads.asked["token"] == "hf_other" and uploads.asked["upload_folder"]["create_pr"]
    assert (folder / "README.md").read_text() == "of before"
    assert [file.name for file in folder.glob("model*.*") if "tokenizer" not in file.name] == ["model.safetensors"]


def test_a_pushed_tokenizer_is_read_again(tiny_emu, uploads, monkeypatch):
    tiny_emu.tokenizer.push_to_hub("me/words")
    folder = uploads.root / "me/words"
    assert not list(folder.glob("model*"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(uploads.root / name))
    assert MultimodalTokenizer.from_pretrained("me/words").fingerprints == tiny_emu.tokenizer.fingerprints


def test_a_pushed_transformer_is_that_of_transformers(tiny_emu, tmp_path, monkeypatch):
    found = {}

    class Api:
        def create_repo(self, repo_id, **options):
            found["create_repo"] = options
            return SimpleNamespace(repo_id=repo_id)

        def create_commit(self, repo_id, operations, **options):
            for operation in operations:
                (tmp_path / operation.path_in_repo).write_bytes(Path(operation.path_or_fileobj).read_bytes())
            return SimpleNamespace(commit_url="done")

        def create_branch(self, **options):
            found["create_branch"] = options

    monkeypatch.setattr(transformers.utils.hub, "hf_api", Api)
    monkeypatch.setattr(
        transformers.utils.hub,
        "create_and_tag_model_card",
        lambda *args, **options: SimpleNamespace(save=lambda file: Path(file).write_text("card")),
    )
    tiny_emu.model.push_to_hub("me/model", private=True)
    assert found["create_repo"]["private"] is True
    state = dict(Checkpoint.open(tmp_path).tensors())
    assert all(torch.equal(tensor, state[name]) for name, tensor in tiny_emu.model.state_dict().items())


@pytest.mark.parametrize("part", ["emu", "tokenizer"])
def test_nobody_logged_in_is_told_before_work(part, tiny_emu, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(tiny_emu, "save_pretrained", None)
    thing = tiny_emu if part == "emu" else tiny_emu.tokenizer
    with pytest.raises(ValueError, match=r"'me/mine' cannot be written: nobody is logged in.*hf auth login.*token="):
        thing.push_to_hub("me/mine")


def test_a_hub_out_of_reach_is_told(tiny_emu, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    with pytest.raises(ValueError, match="'me/mine' could not be written: HF_HUB_OFFLINE is set"):
        tiny_emu.push_to_hub("me/mine")

"""Repositories of a hub: what is fetched from them, and what is put there.

Only configuration, tokenizer files and safetensors travel, in both directions: neither code nor pickles, save the pickled files that a
caller names.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DOWNLOADS = ("*.json", "*.safetensors", "*.tiktoken", "*.txt", "*.yaml", "*.model")
"""Files that are fetched."""

UPLOADS = ("*.json", "*.safetensors", "*.model", "README.md")
"""Files that are put into a repository."""

REPLACED = ("model*.safetensors", "model.safetensors.index.json")
"""Files of an earlier model in a repository that go when they have no successor: an old index would win over a new single file."""

PLACES = ("revision", "token", "cache_dir", "local_files_only", "force_download")
"""Options that say where and how a repository is fetched, as huggingface_hub calls them."""

CARD = """---
library_name: emu-tokens
tags: [emu]
---

# {name}

Text and images (and clips, where the model knows them) as tokens of one transformer, for the library emu-tokens:

```python
from emu import {kind}

model = {kind}.from_pretrained("{repository}")
```
"""


def is_repository(name: str) -> bool:
    """Whether a name has the form owner/name of a hub's repository, or owner/name@revision."""
    parts = name.partition("@")[0].split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~", "/"))


def resolve(path: str | Path, *, files: Iterable[str] = (), **places: Any) -> Path:
    """A folder on this machine: the path itself, or what a hub's repository of that name holds.

    Args:
        path: folder, or owner/name, or owner/name@revision; a folder wins.
        files: names of files to fetch beside the usual ones, e.g. of pickled weights that the caller allowed.
        places: see `PLACES`.

    Raises:
        FileNotFoundError: the folder is missing, and the repository could not be read; the message names it and what to do.
        ValueError: two revisions are named.
    """
    folder = Path(path)
    if folder.is_dir() or not is_repository(str(path)):
        return folder
    from huggingface_hub import snapshot_download

    places = {name: value for name, value in places.items() if value is not None}
    name, _, revision = str(path).partition("@")
    if revision and places.setdefault("revision", revision) != revision:
        raise ValueError(
            f"{str(path)!r} names one revision and revision={places['revision']!r} another; give one of them"
        )
    with _translate_hub_errors(
        f"no folder {str(path)!r}, and the repository {name!r} could not be read", FileNotFoundError, name
    ):
        return Path(snapshot_download(name, allow_patterns=[*DOWNLOADS, *files], **places))


def model_name(folder: Path) -> str:
    """What a model is called: its folder's name, or that of the repository whose files a hub's cache holds there."""
    for part in (folder, *folder.parents)[:3]:
        if part.name.startswith("models--"):
            return part.name.rpartition("--")[2]
    return folder.name


def push(
    repository: str,
    save: Callable[[Path], Any],
    *,
    kind: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> str:
    """Put what `save` writes into a repository, as one commit; the repository and the branch are made where they are missing.

    Args:
        repository: owner/name, or a name of the caller's own.
        save: writes a folder.
        kind: the class that reads it, for the card of a repository that has none.
        private: of a new repository.
        revision: branch; the main one by default.
        token: by default that of `hf auth login` or HF_TOKEN.
        commit_message: "Upload <kind>" by default.
        create_pr: open a pull request instead of committing to the branch.

    Returns:
        The address of the commit.

    Raises:
        ValueError: not logged in, no right to write there, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    if not (token or get_token()):
        raise ValueError(
            f"{repository!r} cannot be written: nobody is logged in at the hub. Run `hf auth login`, set HF_TOKEN, or pass token="
        )
    api = HfApi(token=token, library_name="emu-tokens")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        save(folder)
        with _translate_hub_errors(f"the repository {repository!r} could not be written", ValueError, repository):
            name = api.create_repo(repository, private=private, exist_ok=True).repo_id
            if revision is not None and not create_pr:
                api.create_branch(name, branch=revision, exist_ok=True)
            if not api.file_exists(name, "README.md"):
                card = CARD.format(name=name.rpartition("/")[2], repository=name, kind=kind)
                (folder / "README.md").write_text(card)
            commit = api.upload_folder(
                repo_id=name,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message or f"Upload {kind}",
                create_pr=create_pr,
                allow_patterns=list(UPLOADS),
                delete_patterns=list(REPLACED),
            )
    return str(commit.commit_url)


@contextmanager
def _translate_hub_errors(what: str, kind: type[Exception], path: Any) -> Any:
    """Turn what huggingface_hub raises into an error of `kind` that says what to do."""
    from huggingface_hub import errors

    name = str(path)
    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise kind(f"{what}: HF_HUB_OFFLINE is set; unset it and try again") from error
    except errors.LocalEntryNotFoundError as error:
        raise kind(
            f"{what}: it is not in this machine's cache, or not whole, and the hub cannot be reached. Unset HF_HUB_OFFLINE and check the "
            f"network, or fetch it where there is one (`hf download {name} --local-dir {name.rpartition('/')[2]}`) and pass that folder"
        ) from error
    except errors.GatedRepoError as error:
        raise kind(f"{what}: its owner asks for consent; give it on its page, then run `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise kind(f"{what}: it has no such revision; give a branch, a tag or a commit of it") from error
    except errors.RepositoryNotFoundError as error:
        raise kind(
            f"{what}: there is none of that name, or it is private; check the name, or `hf auth login`"
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        right = " (the token may not do this: `hf auth login` with one that may)" if status in (401, 403) else ""
        raise kind(f"{what}: the hub answers {status or error}{right}") from error
    except errors.HFValidationError as error:
        raise kind(f"{what}: {error}") from error

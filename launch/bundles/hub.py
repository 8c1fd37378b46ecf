"""Bundles on a model hub: fetched by name, and pushed, with the hub's own client.

``HF_ENDPOINT`` says which hub, ``HF_TOKEN`` or the client's own login who asks. Only the files that
a bundle consists of are taken; nothing else of a repository is looked at.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from core.bundle import read_config
from core.command import Refused
from core.encoders.pretrained import hub_address, hub_silence

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# What a bundle may hold. No pickles, no code.
PATTERNS = (
    "config.json",
    "model.safetensors",
    "codebooks.safetensors",
    "README.md",
    "text/config.json",
    "tokenizer/*.json",
    "tokenizer/*.txt",
    "tokenizer/*.model",
)
PROGRAM = "program.pt2"  # for other software, pushed and never fetched


def is_hub_name(source: str) -> bool:
    """Whether this may be ``org/name``, and is no path."""
    return HUB_NAME.fullmatch(source) is not None and not Path(source).exists()


def fetch(name: str) -> Path:
    """The folder of a bundle from the hub, in the client's cache; what was fetched before is not
    fetched again unless it has changed, and serves where no hub answers.

    Raises:
        Refused: the hub does not answer, has no such bundle, or holds something else.
    """
    silence = hub_silence()
    try:
        found = _snapshot(name, cached=bool(silence))
    except LocalEntryNotFoundError:
        raise Refused(
            f"{name} is no folder, and no hub answers ({silence}); give the folder of a run or of "
            "an exported model"
        ) from None
    except Exception as error:  # the client raises errors of many libraries
        raise Refused(f"{name}: the hub has no such model ({_one_line(error)})") from None
    read_config(found)
    return found


def _snapshot(name: str, *, cached: bool) -> Path:
    folder = snapshot_download(
        name, allow_patterns=list(PATTERNS), local_files_only=cached, endpoint=hub_address()
    )
    return Path(folder)


def push(folder: Path, name: str) -> str:
    """Put a bundle on the hub as ``org/name``, made if need be; where it can be seen.

    Raises:
        Refused: the hub does not answer, or does not take it.
    """
    if HUB_NAME.fullmatch(name) is None:
        raise Refused(f"--push {name!r} is no name on a hub; write ORGANISATION/NAME")
    read_config(folder)
    silence = hub_silence()
    if silence:
        raise Refused(f"--push {name}: no hub answers ({silence}); {folder} is written, push later")
    api = HfApi(endpoint=hub_address())
    try:
        api.create_repo(name, repo_type="model", exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=[*PATTERNS, PROGRAM],
            commit_message="Model exported by concord",
        )
    except Exception as error:  # the client raises errors of many libraries
        raise Refused(
            f"--push {name}: the hub does not take it ({_one_line(error)}); {folder} is written; "
            "set HF_TOKEN to a token that may write there, and push again"
        ) from None
    return str(commit.commit_url)


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]

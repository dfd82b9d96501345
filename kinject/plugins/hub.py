"""Plugins on Hugging Face's hub: `kinject plugins push|pull`. What comes from there is trusted only as far as checked.

A plugin's repository is a plugin's folder: `plugin.json`, its card, `params/` and perhaps `head/`. Nothing else is
pushed, nothing else is taken, and nothing is there before it was loaded strictly: a pull leaves a good plugin or none.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinject.errors import InputError, first_line
from kinject.integrity import SEAL
from kinject.plugins.manifest import PICKLES
from kinject.plugins.store import load_plugin, read_head

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kinject.plugins.store import HostIdentity, StoredPlugin

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ALONE, PARTS = ("plugin.json", "README.md", SEAL), ("params", "head")
PATTERNS = [*ALONE, *(f"{part}/*" for part in PARTS)]  # the hub's `*` matches `/` too
MEND = "check its name, the revision, the network and who you are there (hf auth whoami)"


def push(folder: str | os.PathLike[str], repository: str, *, revision: str | None = None, private: bool = False) -> str:
    """Uploads a plugin as one commit, in the place of the one that was there; makes the repository where there is none.

    Args:
      folder: a plugin's, loaded strictly before anything is sent.
      repository: OWNER/NAME.
      revision: a branch; None = the main one.
      private: of a repository that is made; one that exists stays as it is.

    Returns:
      The address of the commit.

    Raises:
      InputError: a damaged plugin, or the hub does not take it.
    """
    folder = Path(folder)
    _check_name(repository)
    check_whole(load_plugin(folder))
    with _told(repository, "the hub did not take it"):
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repository, repo_type="model", private=private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            repo_type="model",
            folder_path=folder,
            revision=revision,
            allow_patterns=PATTERNS,
            delete_patterns=[f"{part}/*" for part in PARTS],  # arrays of the plugin that was there before
            commit_message=f"kinject plugin {folder.absolute().name}",
        )
    return str(commit.commit_url)


def pull(
    repository: str,
    folder: str | os.PathLike[str],
    *,
    revision: str | None = None,
    host: HostIdentity | None = None,
    knowledge: Mapping[str, Any] | None = None,
) -> tuple[Path, str]:
    """Downloads a plugin into a new folder, if it is whole, and fits.

    Args:
      repository: OWNER/NAME.
      folder: must not exist.
      revision: branch, tag or commit; None = the main branch.
      host: what it shall fit, as for `load_plugin`; None skips that check.
      knowledge: the same.

    Returns:
      (the folder, the commit that it is from).

    Raises:
      InputError: the folder exists, the hub does not give it, files that a plugin has not (pickles above all), a
        damaged plugin, one for another host or knowledge base. The folder is then not there.
    """
    folder = Path(folder).absolute()
    _check_name(repository)
    if folder.exists():
        raise InputError(folder, "it exists already", "choose another folder; nothing was overwritten")
    with _told(repository, "the hub did not give it"):
        from huggingface_hub import snapshot_download

        snapshot = Path(snapshot_download(repository, revision=revision, allow_patterns=PATTERNS))
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(snapshot, partial, ignore=_others)  # links of the hub's cache become files
        check_whole(load_plugin(partial, host=host, knowledge=knowledge))
        partial.replace(folder)
    except InputError as error:
        raise InputError(repository, str(error).replace(f"{partial}/", "").replace(str(partial), "it")) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder, snapshot.name


def check_whole(stored: StoredPlugin) -> None:
    """Raises InputError for a file that may be a pickle, named or not, and for a damaged head."""
    named = set(stored.manifest["files"])
    for name in named:
        if name.endswith(PICKLES):
            raise InputError(stored.folder / name, "it may be a pickle, which can execute anything", "train it again")
    if stored.manifest.get("head") is not None:
        read_head(stored)


def _others(folder: str, names: list[str]) -> list[str]:
    """What is at the top of a snapshot and no part of a plugin: what the hub adds, or another download asked for."""
    top = (Path(folder) / "plugin.json").exists()
    return [name for name in names if top and name not in (*ALONE, *PARTS)]


def _check_name(repository: str) -> None:
    if not REPOSITORY.fullmatch(repository):
        raise InputError(repository, "it is no repository on the hub", "name it OWNER/NAME")


@contextmanager
def _told(repository: str, problem: str) -> Iterator[None]:
    """Says in one line what the hub, the network or the cache said: their errors have no common class."""
    try:
        yield
    except Exception as error:
        raise InputError(repository, f"{problem} ({first_line(error)})", MEND) from error

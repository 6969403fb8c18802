"""Downloads folders from the Hugging Face hub, and uploads them."""

import pathlib
import re
from collections.abc import Iterable

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)

from lsrjax import paths
from lsrjax.convert.read.tensors import CheckpointError
from lsrjax.errors import InputError


def is_local(path_or_id: str) -> bool:
    """Whether it is a folder, because it looks like one or exists; else a hub id."""
    if path_or_id.startswith((".", "/", "~")) or pathlib.Path(path_or_id).exists():
        return True
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", path_or_id) is None


def local_folder(path: str) -> pathlib.Path:
    """The folder of a model on this machine, which need not exist; see `paths`."""
    return pathlib.Path(paths.local(path, "the model"))


def pinned(path_or_id: str) -> tuple[str, str | None]:
    """The id of a repository, and the revision of `id@revision` or None."""
    repo_id, _, revision = path_or_id.partition("@")
    return repo_id, revision or None


def fetch(path_or_id: str, patterns: Iterable[str]) -> pathlib.Path:
    """The folder of a checkpoint; downloads matching files if it is on the hub.

    A hub id may name a commit, tag or branch, as in `BAAI/bge-m3@5617a9f`.

    Raises:
      CheckpointError: it does not exist, or cannot be fetched.
    """
    if is_local(path_or_id):
        folder = local_folder(path_or_id)
        if not folder.is_dir():
            found = "is a file, not a folder" if folder.exists() else "does not exist"
            raise CheckpointError(
                f"Checkpoint {path_or_id!r} (absolute: {folder.absolute()}) {found}. "
                "Give the folder that holds config.json, or the id of a repository on "
                "the Hugging Face hub, such as 'FacebookAI/xlm-roberta-base'."
            )
        return folder
    repo_id, revision = pinned(path_or_id)
    instead = "or give a local folder with the downloaded files."
    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                repo_id, revision=revision, allow_patterns=list(patterns)
            )
        )
    except GatedRepoError as error:
        raise CheckpointError(
            f"Repository {repo_id!r} on the Hugging Face hub is gated: accept its "
            f"terms at https://huggingface.co/{repo_id} and log in with `hf auth "
            f"login`, {instead}"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is no folder {path_or_id!r} in {pathlib.Path.cwd()}, and no "
            "repository of this id on the Hugging Face hub that you may read. Correct "
            f"the id, log in with `hf auth login` if it is private, {instead}"
        ) from error
    # The hub's client raises errors of its HTTP library, which differs by release.
    except Exception as error:
        raise CheckpointError(
            f"There is no folder {path_or_id!r} in {pathlib.Path.cwd()}, and the"
            f" Hugging Face hub could not be reached for a repository {repo_id!r}"
            f" ({_reason(error)}). Correct the path, or, for a repository, check the"
            f" network and HF_HUB_OFFLINE, {instead}"
        ) from error


def _reason(error: BaseException) -> str:
    """Why the hub was not reached, in a clause: the first cause that says it."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    while (below := error.__cause__ or error.__context__) is not None:
        if isinstance(below, InputError):  # an attempt before this one
            break
        error = below
    said = re.split(r"[.;\n]\s", str(error).strip())[0][:120]
    return f"{type(error).__name__}: {said}"


def push(folder: pathlib.Path, repo_id: str, *, private: bool = True) -> str:
    """Uploads a folder's files to a model repository in one commit.

    The hub is `HF_ENDPOINT`, the login that of `hf auth login` or `HF_TOKEN`. The
    repository, "name" or "owner/name", is created if needed; an existing one keeps its
    visibility.

    Returns:
      The address of the repository.

    Raises:
      InputError: the hub cannot be reached, or refuses; the folder stays.
    """
    # Created on each call, for the endpoint and token of that time.
    api = huggingface_hub.HfApi(library_name="lsrjax")
    try:
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            commit_message="Model exported by lsrjax.convert",
        )
    except HFValidationError as error:
        raise InputError(f"--push {repo_id}: {error}") from error
    # The hub's client raises errors of its HTTP library, which differs by release.
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        login = ""
        if isinstance(error, HfHubHTTPError) and error.response.status_code == 401:
            login = " Log in with `hf auth login`."
        raise InputError(
            f"--push {repo_id}: {folder} is written, but was not uploaded ({said})."
            f"{login} Then `hf upload {repo_id} {folder}` uploads it without converting"
            " again."
        ) from error
    return str(made)

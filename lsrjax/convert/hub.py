"""Finished folders to the Hugging Face hub."""

import pathlib

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from lsrjax.errors import InputError


def push(folder: pathlib.Path, repo_id: str, *, private: bool = True) -> str:
    """Uploads a folder's files to a model repository in one commit.

    The hub is `HF_ENDPOINT`, the login that of `hf auth login` or `HF_TOKEN`.

    Args:
      folder: a finished export.
      repo_id: "name" or "owner/name". It is made if there is none; the visibility of
        one that exists stays as it is.
      private: a repository that is made is seen by its owner only.

    Returns:
      The address of the repository.

    Raises:
      InputError: the hub cannot be reached, or refuses; the folder stays.
    """
    # Read when it is called, as the token is.
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
    # The hub's client lets errors of its HTTP library through, and which library that
    # is differs between releases.
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

"""A quantized checkpoint to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from dualscale_mamba.errors import CheckpointError
from dualscale_mamba.quantization.manifest import FILES, manifest_at


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Upload a checkpoint that is as it was written; the repository is made if there is none.

    Args:
        folder: Where it lies.
        repository: ``owner/name``.
        private: Whether a new repository is private; one that exists stays as it is.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: The folder is damaged, or the hub refuses.
    """
    manifest = manifest_at(folder)
    if manifest is None:
        raise CheckpointError(f"{folder} holds no quantized checkpoint; save=DIR makes one")
    manifest.check_tensors()
    manifest.check_tokenizer()
    from huggingface_hub import HfApi  # here: its import takes long

    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        made = api.upload_folder(
            repo_id=repository,
            folder_path=str(folder),
            allow_patterns=list(FILES),
            commit_message=f"Quantized by dualscale_mamba {manifest['package_version']}",
        )
    except Exception as error:  # the hub's and the network's errors share no base
        reason = (str(error).splitlines() or ["no message"])[0]
        raise CheckpointError(
            f"{folder} could not be uploaded to {repository} ({type(error).__name__}: {reason}); check the name, the"
            " connection, and that `hf auth login` was done with a token that may write"
        ) from error
    return str(made)

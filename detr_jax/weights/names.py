"""Check that weights are given as a path. The error for a name or an address says how to get the weights."""

import difflib
import re
from pathlib import Path

from detr_jax.weights.files import TORCH_SUFFIXES, WeightsError
from detr_jax.weights.official import OFFICIAL, Official, find

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://?\S+")
_HUB_ADDRESS = re.compile(r"(?:hf://|https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)([\w.-]+/[\w.-]+)(?:/.*)?")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_is_path(path: str | Path) -> None:
    """Refuses names and addresses that were given instead of a path. Nothing is downloaded.

    Raises:
      WeightsError: the path does not exist, and is a listed name, an address, or looks like a name of Hugging Face's
        Hub or a misspelled name. The message has the command that gets the weights.
    """
    text = _as_given(path)
    if Path(path).exists():
        return
    if listed := find(text):
        sentences = f"{text} does not exist here. {how_to_get(listed)}"
        if text in listed.aliases and _HUB_NAME.fullmatch(text):
            sentences += f" Hugging Face's Hub has it too. {_from_the_hub(text)}"
        raise WeightsError(sentences)
    if hub := _HUB_ADDRESS.fullmatch(text):
        raise WeightsError(f"{text} is an address, and nothing is downloaded from it. {_from_the_hub(hub[1])}")
    if _ADDRESS.fullmatch(text):
        raise WeightsError(
            f"{text} is an address, and only listed weights are downloaded: download the file yourself with "
            f"curl -LO {text}, check that you trust it, and give its path. detr-jax import-weights --list shows the "
            "listed weights."
        )
    if _HUB_NAME.fullmatch(text) and not text.endswith((".safetensors", *TORCH_SUFFIXES)):
        owner = text.split("/")[0]
        if not Path(owner).exists():
            raise WeightsError(
                f"{text} does not exist here. It may be a name of Hugging Face's Hub. {_from_the_hub(text)}"
            )
    if close := difflib.get_close_matches(text, [weights.name for weights in OFFICIAL], n=1):
        raise WeightsError(
            f"{text} does not exist and is not a listed name. The closest listed name is {close[0]}. detr-jax "
            "import-weights --list shows all names."
        )


def _as_given(path: str | Path) -> str:
    """The text of a path. An address as a `Path` has only one slash after its scheme, and gets the second one back."""
    text = str(path)
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]+):/(?=[^/])", r"\1://", text) if isinstance(path, Path) else text


def how_to_get(weights: Official) -> str:
    """Sentences with a description of listed weights and the command that downloads and imports them."""
    size = f"{weights.megabytes} MiB" if weights.megabytes else "of unpublished size"
    what = (
        f"It is listed: {weights.about}, {size}, {weights.licence}, from {weights.address}. It is downloaded only with "
        "--download."
    )
    if weights.backbone:
        return f"{what} Run detr-jax import-weights {weights.name} --download, and give the file whose path it prints."
    return (
        f"{what} Run detr-jax import-weights {weights.name} {weights.name} --download, and give the folder "
        f"{weights.name}."
    )


def _from_the_hub(name: str) -> str:
    """A sentence with the commands that download a model of Hugging Face's Hub and import it."""
    folder = name.split("/")[1]
    return (
        f"Download it with hf download {name} --local-dir {folder} (pip install huggingface_hub), and give that "
        f"folder: detr-jax import-weights {folder} OUT."
    )

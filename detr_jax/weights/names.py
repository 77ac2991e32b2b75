"""What is given as weights and is not a path: a listed name, an address, a name of Hugging Face's Hub."""

import difflib
import re
from pathlib import Path

from detr_jax.weights.files import TORCH_SUFFIXES, WeightsError
from detr_jax.weights.official import OFFICIAL, Official, find

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://?\S+")
_HUB_ADDRESS = re.compile(r"(?:hf://|https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)([\w.-]+/[\w.-]+)(?:/.*)?")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_is_path(path: str | Path) -> None:
    """Lets paths pass that exist, or that cannot be anything but a path.

    Raises:
      WeightsError: it is a listed name, an address or looks like a name of the Hub; the message has the command that
        gets the weights. Nothing is fetched.
    """
    text = _as_given(path)
    if Path(path).exists():
        return
    if listed := find(text):
        also = f" Or {_from_the_hub(text)}" if text in listed.aliases and _HUB_NAME.fullmatch(text) else ""
        raise WeightsError(f"{text} is not here. {how_to_get(listed)}{also}")
    if hub := _HUB_ADDRESS.fullmatch(text):
        raise WeightsError(f"{text} is an address, and nothing is fetched from it. {_from_the_hub(hub[1])}")
    if _ADDRESS.fullmatch(text):
        raise WeightsError(
            f"{text} is an address, and only listed weights are fetched: download the file yourself, with "
            f"curl -LO {text}, check that you trust it, and give its path. detr-jax import-weights --list names those "
            "that are listed."
        )
    if _HUB_NAME.fullmatch(text) and not text.endswith((".safetensors", *TORCH_SUFFIXES)):
        owner = text.split("/")[0]
        if not Path(owner).exists():
            raise WeightsError(
                f"{text} does not exist here. If it is a name of Hugging Face's Hub: {_from_the_hub(text)}"
            )
    if close := difflib.get_close_matches(text, [weights.name for weights in OFFICIAL], n=1):
        raise WeightsError(
            f"{text} does not exist, and is not the name of listed weights; {close[0]} is: detr-jax import-weights "
            "--list shows all."
        )


def _as_given(path: str | Path) -> str:
    """The text of a path; a `Path` has lost one of an address's two slashes."""
    text = str(path)
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]+):/(?=[^/])", r"\1://", text) if isinstance(path, Path) else text


def how_to_get(weights: Official) -> str:
    """What listed weights are, and the command that fetches and imports them."""
    size = f"{weights.megabytes} MiB" if weights.megabytes else "a size that its publisher does not give"
    what = f"It is in the list of weights: {weights.about}, {size}, {weights.licence}, from {weights.address}."
    if weights.backbone:
        return (
            f"{what} Nothing is fetched unless you ask for it: detr-jax import-weights {weights.name} --download; then "
            "give the file whose path it prints."
        )
    return (
        f"{what} Nothing is fetched unless you ask for it: detr-jax import-weights {weights.name} {weights.name} "
        f"--download; then give the folder {weights.name}."
    )


def _from_the_hub(name: str) -> str:
    folder = name.split("/")[1]
    return (
        f"download it with hf download {name} --local-dir {folder} (pip install huggingface_hub), and give that "
        f"folder: detr-jax import-weights {folder} OUT."
    )

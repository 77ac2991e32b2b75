"""`download`: listed weights from their publishers, over HTTPS, into the user's cache folder.

No other function of this package downloads anything.
"""

import errno
import hashlib
import http.client
import os
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from detr_jax.compilation_cache import default_folder
from detr_jax.weights.files import WeightsError
from detr_jax.weights.official import BASES, Official

Progress = Callable[[int, int | None], None]
"""Called with the bytes received since the last call, and the size of the file in bytes or None if it is unknown."""

_TIMEOUT = 30  # seconds without an answer
_CHUNK = 2**18  # bytes
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TOO_LARGE = 1.5  # this many times the listed size


def weights_folder() -> Path:
    """The folder of downloaded weights: ``weights`` in the cache folder of this package."""
    return default_folder() / "weights"


def download(
    weights: Official,
    folder: Path | None = None,
    *,
    progress: Progress | None = None,
    bases: Mapping[str, str] = BASES,
) -> Path:
    """Downloads the file of listed weights, unless the folder already holds it with the right hash.

    The file gets its name only after all bytes have arrived and the hash is right. Until then it has a temporary name.

    Args:
      weights: an entry of `detr_jax.weights.official.OFFICIAL`.
      folder: where the file is stored. None: `weights_folder`.
      progress: called for every received piece.
      bases: address of each origin. It must be HTTPS, or on this machine's loopback.

    Returns:
      The path of the file.

    Raises:
      WeightsError: the file cannot be downloaded or written, or it is not the listed file.
    """
    folder = folder or weights_folder()
    path = folder / weights.file
    try:
        if path.is_file() and _sha256(path).startswith(weights.sha256):
            return path
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{weights.file}.", suffix=".part", dir=folder)
        part = Path(name)
    except OSError as error:
        raise WeightsError(
            f"Weights cannot be stored in {folder} ({error.strerror or error}): set the environment variable "
            "XDG_CACHE_HOME to a writable folder."
        ) from None
    address = f"{bases[weights.origin]}/{weights.file}"
    try:
        os.close(handle)
        found = _fetch(address, part, weights, progress or (lambda _, __: None))
        if not found.startswith(weights.sha256):
            raise WeightsError(
                f"The file from {address} is not {weights.file}: its SHA-256 begins with {found[:8]}, and must begin "
                f"with {weights.sha256}. It was deleted. Try again, or ask the administrator of your network."
            )
        part.replace(path)
    except OSError as error:
        raise WeightsError(_reason(error, address, folder, weights)) from None
    except (http.client.HTTPException, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{address} could not be downloaded ({error or type(error).__name__}): try again.") from None
    finally:
        part.unlink(missing_ok=True)  # also after Ctrl-C
    return path


def _fetch(address: str, part: Path, weights: Official, progress: Progress) -> str:
    """Downloads an address into the file ``part`` and returns the SHA-256 in hexadecimal digits."""
    _check_secure(address)
    request = urllib.request.Request(address, headers={"User-Agent": "detr-jax", "Accept-Encoding": "identity"})
    opener = urllib.request.build_opener(_SecureRedirects())
    most = weights.megabytes * 2**20 * _TOO_LARGE if weights.megabytes else None
    with opener.open(request, timeout=_TIMEOUT) as answer, part.open("wb") as file:
        total = _length(answer)
        if total is not None and shutil.disk_usage(part.parent).free < total:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        digest, done = hashlib.sha256(), 0
        while piece := answer.read(_CHUNK):
            done += len(piece)
            if most is not None and max(done, total or 0) > most:
                raise WeightsError(
                    f"{address} is much larger than the listed {weights.megabytes} MiB: it is another file."
                )
            file.write(piece)
            digest.update(piece)
            progress(len(piece), total)
    if total is not None and done != total:
        raise WeightsError(f"The download of {address} ended after {done} of {total} bytes: try again.")
    return digest.hexdigest()


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects only to HTTPS."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The request for the new address, which must be HTTPS."""
        if urllib.parse.urlsplit(newurl).scheme != "https":
            raise WeightsError(f"{req.full_url} redirects to {newurl}, which is not HTTPS: nothing was downloaded.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_secure(address: str) -> None:
    parts = urllib.parse.urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise WeightsError(f"{address} is refused: weights are downloaded only over HTTPS.")


def _length(answer: Any) -> int | None:
    text = answer.headers.get("Content-Length")
    return int(text) if text is not None and text.isdecimal() else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: OSError, address: str, folder: Path, weights: Official) -> str:
    """A sentence about an error of the network or the disk."""
    if isinstance(error, urllib.error.HTTPError):
        return f"{address} could not be downloaded: the server answered {error.code} {error.reason}. Try again later."
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"{address} could not be downloaded: no answer for {_TIMEOUT} seconds. Try again later."
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        size = f", which has {weights.megabytes} MiB" if weights.megabytes else ""
        return (
            f"The disk of {folder} is too full for {weights.file}{size}: free some space, or set XDG_CACHE_HOME to "
            "another folder."
        )
    proxies = sorted(
        {name for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY") if os.environ.get(name)}
    )
    through = f" The proxy in the environment variable {proxies[0]} is used." if proxies else ""
    return f"{address} could not be downloaded ({cause}): check the connection and try again.{through}"

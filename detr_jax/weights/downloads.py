"""Listed weights, fetched over HTTPS into the user's cache folder; nothing is fetched unless a caller asks for it."""

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
"""Is told the bytes that have come since the last call, and how many there are in all, if that is known."""

_TIMEOUT = 30  # seconds without an answer
_CHUNK = 2**18
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TOO_LARGE = 1.5  # times the size that is listed


def weights_folder() -> Path:
    """Where fetched weights are kept: ``weights`` in the cache folder of this package."""
    return default_folder() / "weights"


def download(
    weights: Official,
    folder: Path | None = None,
    *,
    progress: Progress | None = None,
    bases: Mapping[str, str] = BASES,
) -> Path:
    """The file of listed weights, fetched if the folder does not hold it with the right hash.

    The file gets its name when it is whole and its hash is right; until then it has another one.

    Args:
      weights: from `detr_jax.weights.official`.
      folder: to keep it in, by default `weights_folder`.
      progress: is called for every piece that comes.
      bases: addresses by origin; all must be HTTPS, except on this machine's loopback.

    Raises:
      WeightsError: it cannot be fetched or written, or is another file than the one that is listed.
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
            f"Weights cannot be kept in {folder} ({error.strerror or error}): set the environment variable "
            "XDG_CACHE_HOME to a folder that can be written."
        ) from None
    address = f"{bases[weights.origin]}/{weights.file}"
    try:
        os.close(handle)
        found = _fetch(address, part, weights, progress or (lambda _, __: None))
        if not found.startswith(weights.sha256):
            raise WeightsError(
                f"What came from {address} is not {weights.file}: its SHA-256 begins with {found[:8]}, and must begin "
                f"with {weights.sha256}. It was deleted; try again, or ask who runs your network."
            )
        part.replace(path)
    except OSError as error:
        raise WeightsError(_reason(error, address, folder, weights)) from None
    except (http.client.HTTPException, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{address} could not be fetched ({error or type(error).__name__}): try again.") from None
    finally:
        part.unlink(missing_ok=True)  # also after Ctrl-C
    return path


def _fetch(address: str, part: Path, weights: Official, progress: Progress) -> str:
    """Writes what an address has into a file; returns its SHA-256 in hexadecimal digits."""
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
                    f"{address} is much larger than the {weights.megabytes} MiB that are listed: it is another file."
                )
            file.write(piece)
            digest.update(piece)
            progress(len(piece), total)
    if total is not None and done != total:
        raise WeightsError(f"{address} broke off after {done} of {total} bytes: try again.")
    return digest.hexdigest()


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to HTTPS only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urllib.parse.urlsplit(newurl).scheme != "https":
            raise WeightsError(f"{req.full_url} redirects to {newurl}, which is not HTTPS: nothing was fetched.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_secure(address: str) -> None:
    parts = urllib.parse.urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise WeightsError(f"{address} is refused: weights are fetched over HTTPS only.")


def _length(answer: Any) -> int | None:
    text = answer.headers.get("Content-Length")
    return int(text) if text is not None and text.isdecimal() else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: OSError, address: str, folder: Path, weights: Official) -> str:
    """A sentence about what went wrong, on the network or on the disk."""
    if isinstance(error, urllib.error.HTTPError):
        return f"{address} could not be fetched: the server answered {error.code} {error.reason}. Try again later."
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"{address} could not be fetched: no answer for {_TIMEOUT} seconds. Try again later."
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        size = f"{weights.megabytes} MiB are" if weights.megabytes else "Its size is"
        return (
            f"There is no room for {weights.file} in {folder}: {size} needed; make room, or set XDG_CACHE_HOME to "
            "another folder."
        )
    proxies = sorted(
        {name for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY") if os.environ.get(name)}
    )
    through = f" Requests go through the proxy that {proxies[0]} names." if proxies else ""
    return f"{address} could not be fetched ({cause}): check the connection and try again.{through}"

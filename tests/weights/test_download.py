"""The download of listed weights, from a server on this machine's loopback. No other machine is asked."""

import errno
import hashlib
import http.server
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save

from detr_jax.checkpoints import load_class_names, load_config
from detr_jax.cli import main
from detr_jax.config import Config, TrainingConfig
from detr_jax.training.resolve import resolve_model
from detr_jax.weights import WeightsError, download, load_pretrained, official
from detr_jax.weights.official import OFFICIAL, Official, find
from tests.weights import framework_states as states

ROOT = Path(__file__).parent.parent.parent


class Server(http.server.ThreadingHTTPServer):
    """Serves ``content``, in the way that ``behaviour`` names, and counts requests."""

    content, behaviour, requests = b"", "whole", 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.requests += 1
        if server.behaviour == "missing":
            return self.send_error(404)
        if server.behaviour.startswith("redirect"):
            self.send_response(302)
            self.send_header("Location", server.behaviour.split(" ")[1])
            return self.end_headers()
        self.send_response(200)
        if server.behaviour != "without length":
            self.send_header("Content-Length", len(server.content) + 10 * (server.behaviour == "cut"))
        self.end_headers()
        if server.behaviour == "stalled":
            server.released.wait(10)
        self.wfile.write(server.content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(rng, monkeypatch):
    """A server with random bytes. Its address is the address of the origin "test"."""
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        server.content = rng.bytes(600_000)
        server.released = threading.Event()
        monkeypatch.setitem(official.BASES, "test", f"http://127.0.0.1:{server.server_port}/models")
        yield server
        server.released.set()
        server.shutdown()


def listed(server, **fields):
    """The server's file as listed weights with the right hash."""
    digest = hashlib.sha256(server.content).hexdigest()
    fields = {"file": f"tiny-{digest[:8]}.safetensors", "megabytes": 1, **fields}
    return Official(name="tiny", origin="test", about="a test", licence="none", **fields)


@pytest.mark.parametrize("behaviour", ["whole", "without length"])
def test_a_file_is_downloaded_once_and_every_byte_is_reported(server, tmp_path, behaviour):
    server.behaviour = behaviour
    seen = []
    path = download(listed(server), tmp_path / "new" / "cache", progress=lambda n, total: seen.append((n, total)))
    assert path.read_bytes() == server.content
    assert path.name == listed(server).file
    assert sum(n for n, _ in seen) == len(server.content)
    assert {total for _, total in seen} == {len(server.content) if behaviour == "whole" else None}
    assert list(path.parent.iterdir()) == [path]
    assert download(listed(server), path.parent) == path
    assert server.requests == 1


def test_a_damaged_file_is_downloaded_again(server, tmp_path):
    (tmp_path / listed(server).file).write_bytes(server.content[:-1])
    assert download(listed(server), tmp_path).read_bytes() == server.content


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("missing", "the server answered 404 Not Found"),
        ("cut", "ended after 600000 of 600010 bytes"),
        ("redirect http://example.org/file", r"redirects to http://example\.org/file, which is not HTTPS"),
        ("redirect ftp://example.org/file", "which is not HTTPS"),
        ("redirect file:///etc/passwd", "is not allowed"),
    ],
)
def test_a_failed_download_raises_one_sentence_and_leaves_no_file(server, tmp_path, behaviour, said):
    server.behaviour = behaviour
    with pytest.raises(WeightsError, match=said):
        download(listed(server), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_stalled_download_ends_after_the_timeout(server, tmp_path, monkeypatch):
    monkeypatch.setattr("detr_jax.weights.downloads._TIMEOUT", 0.2)
    server.behaviour = "stalled"
    with pytest.raises(WeightsError, match=r"no answer for 0\.2 seconds"):
        download(listed(server), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_file_is_refused_and_deleted(server, tmp_path):
    expected = listed(server)
    server.content = server.content[::-1]
    with pytest.raises(WeightsError, match=rf"must begin with {expected.sha256}\. It was deleted"):
        download(expected, tmp_path)
    server.content *= 3
    with pytest.raises(WeightsError, match="much larger than the listed 1 MiB"):
        download(expected, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_download_leaves_no_file(server, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(listed(server), tmp_path, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_and_an_impossible_folder_raise_one_sentence(server, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(WeightsError, match=r"too full for tiny-.*, which has 1 MiB: free some space"):
        download(listed(server), tmp_path, progress=full)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="set the environment variable XDG_CACHE_HOME"):
        download(listed(server), tmp_path / "file" / "cache")


def test_a_refused_connection_raises_one_sentence_which_names_the_proxy(server, tmp_path, monkeypatch):
    server.shutdown()
    server.server_close()
    with pytest.raises(WeightsError, match=r"could not be downloaded \(.*refused.*check the connection"):
        download(listed(server), tmp_path)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(WeightsError, match=r"The proxy in the environment variable HTTPS_PROXY is used"):
        download(listed(server), tmp_path)


def test_other_machines_must_be_asked_over_https(tmp_path):
    for base in ("http://example.org", "ftp://127.0.0.1", "http://127.0.0.1.example.org"):
        with pytest.raises(WeightsError, match="only over HTTPS"):
            download(OFFICIAL[0], tmp_path, bases={"facebook": base})
    assert list(tmp_path.iterdir()) == []


def test_every_listed_file_has_an_https_address_a_hash_and_unique_names():
    for weights in OFFICIAL:
        assert weights.address.startswith("https://")
        assert len(bytes.fromhex(weights.sha256)) == 4
        assert weights.dilation == ("dc5" in weights.name)
        for name in (weights.name, weights.file, weights.address, *weights.aliases):
            assert find(name) is weights


def test_the_document_has_the_same_list():
    rows = [line for line in (ROOT / "docs" / "weights.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) == len(OFFICIAL)
    for row, weights in zip(rows, OFFICIAL, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        size = f"{weights.megabytes} MiB" if weights.megabytes else "not published"
        assert [cells[0], *cells[2:]] == [
            f"`{weights.name}`",
            "" if weights.ap is None else str(weights.ap),
            weights.licence,
            size,
            f"[{weights.file}]({weights.address})",
        ]
        assert ("DC5" in cells[1]) == weights.dilation


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("detr-r50", r"159 MiB, Apache-2\.0.*import-weights detr-r50 detr-r50 --download"),
        ("detr-r101-dc5-a2e86def.pth", r"232 MiB.*import-weights detr-r101-dc5 "),
        ("https://dl.fbaipublicfiles.com/detr/detr-r50-e632da11.pth", "import-weights detr-r50 "),
        ("resnet50", r"98 MiB, BSD-3-Clause.*import-weights resnet50 --download"),
        (
            "facebook/detr-resnet-50",
            r"import-weights detr-r50 detr-r50 --download.* hf download facebook/detr-resnet-50",
        ),
        ("somebody/detr-of-theirs", r"hf download somebody/detr-of-theirs --local-dir detr-of-theirs"),
        ("https://huggingface.co/somebody/detr-of-theirs/tree/main", "hf download somebody/detr-of-theirs --local-dir"),
        ("hf://somebody/detr-of-theirs", "hf download somebody/detr-of-theirs --local-dir"),
        ("https://example.org/model.pth", r"is an address.*curl -LO https://example\.org/model\.pth"),
        ("detr-r5O", r"closest listed name is detr-r50\."),
        ("weights/detr.pth", r"^weights/detr\.pth does not exist: give a checkpoint file"),
    ],
)
def test_for_names_and_addresses_the_error_has_the_command_that_gets_the_weights(given, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=said):
        load_pretrained(given)
    result = CliRunner().invoke(main, ["import-weights", given, "out"])
    assert result.exit_code == 1
    assert not (tmp_path / "out").exists()
    if "does not exist: give" not in said:
        with pytest.raises(WeightsError, match=said):
            resolve_model(Config(training=TrainingConfig(init_from=given)), None)


def test_only_listed_weights_are_downloaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in ("https://example.org/model.pth", "somebody/theirs", "detr-r5"):
        result = CliRunner().invoke(main, ["import-weights", given, "out", "--download"])
        assert result.exit_code == 1
        assert "--download needs a listed name" in result.output
    assert list(tmp_path.iterdir()) == []


def test_one_command_downloads_and_imports_a_listed_detector(server, bottleneck, tmp_path, monkeypatch):
    state = {name: np.ascontiguousarray(x) for name, x in states.facebook(bottleneck.weights).items()}
    server.content = save(state)
    monkeypatch.setattr(official, "OFFICIAL", (listed(server, dilation=True), listed(server, backbone=True)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = CliRunner().invoke(main, ["import-weights", "tiny", str(tmp_path / "out"), "--download"])
    assert result.exit_code == 0, result.output
    kept = tmp_path / "cache" / "detr_jax" / "weights" / listed(server).file
    assert kept.read_bytes() == server.content
    assert load_config(tmp_path / "out").model.backbone.dilation
    assert load_class_names(tmp_path / "out") == {}
    result = CliRunner().invoke(main, ["import-weights", "tiny", "--download"])
    assert result.stdout.strip() == str(kept)
    assert server.requests == 1
    shown = CliRunner().invoke(main, ["import-weights", "--list"])
    assert shown.exit_code == 0
    assert "https://dl.fbaipublicfiles.com/detr/detr-r50-e632da11.pth" in shown.output


def test_without_out_the_error_of_the_source_comes_first(tmp_path):
    result = CliRunner().invoke(main, ["import-weights", "detr-r50"])
    assert result.exit_code == 1
    assert "--download" in result.output

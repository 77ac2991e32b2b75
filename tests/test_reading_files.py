"""Regular files only, stated sizes, JSON and YAML of any content, and text that is safe to print."""

import gzip
import json
import os
import socket
import string
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import yaml

from detr_jax import array_files, files, json_files, yaml_files
from detr_jax.files import UnusableFileError
from detr_jax.json_files import JsonError, parse_json, read_object
from detr_jax.printing import printable, say

READ = """
import sys
from detr_jax.files import open_regular, read_bytes
for path in sys.argv[1:]:
    try:
        print(len(read_bytes(path, 1000)))
    except OSError as error:
        print(error)
"""


def test_what_is_not_a_regular_file_is_refused_and_never_waited_for(tmp_path):
    pipe, folder, link, place = (tmp_path / name for name in ("pipe", "folder", "link", "socket"))
    os.mkfifo(pipe)
    folder.mkdir()
    link.symlink_to(pipe)
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(place))
        paths = [pipe, link, folder, place, "/dev/zero", "/dev/stdin"]
        ended = subprocess.run(
            [sys.executable, "-c", READ, *map(str, paths)], capture_output=True, text=True, timeout=60
        )
    kinds = ["a named pipe", "a named pipe", "a folder", "a socket", "a device"]
    assert ended.stdout.splitlines()[:5] == [f"it is {kind}, not a regular file" for kind in kinds], ended.stderr
    assert not ended.stderr


def test_a_file_has_its_content_up_to_the_limit_and_is_refused_beyond_it(tmp_path, rng):
    content = rng.bytes(int(rng.integers(1, 5000)))
    path = tmp_path / "file"
    path.write_bytes(content)
    (tmp_path / "link").symlink_to(path)
    for name in ("file", "link"):
        assert files.read_bytes(tmp_path / name, len(content)) == content
    with pytest.raises(UnusableFileError, match="the limit is"):
        files.read_bytes(path, len(content) - 1)
    with pytest.raises(FileNotFoundError):
        files.read_bytes(tmp_path / "none", 10)
    with pytest.raises(UnusableFileError, match="null character"):
        files.read_bytes("a\0b", 10)


def test_a_file_that_states_no_size_is_read_to_its_end_or_to_the_limit():
    with open("/proc/self/cmdline", "rb") as file:
        expected = file.read()
    assert files.read_bytes("/proc/self/cmdline", 2**20) == expected
    with pytest.raises(UnusableFileError, match="more than the limit"):
        files.read_bytes("/proc/self/cmdline", 3)


def test_gzip_unpacks_to_its_content_and_to_no_more_than_the_limit(tmp_path, rng, monkeypatch):
    content = rng.bytes(100_000)
    (tmp_path / "plain").write_bytes(content)
    (tmp_path / "packed").write_bytes(gzip.compress(content[:50_000]) + gzip.compress(content[50_000:]))
    for name in ("plain", "packed"):
        assert files.read_unzipped(tmp_path / name, 2**20) == content
    monkeypatch.setattr(files, "ALWAYS_UNPACKED", 2**20)
    (tmp_path / "zeros").write_bytes(gzip.compress(bytes(3 * 2**20)))
    with pytest.raises(UnusableFileError, match="it has more than 1 MiB when it is unpacked"):
        files.read_unzipped(tmp_path / "zeros", 2**30)
    monkeypatch.setattr(files, "MOST_EXPANSION", 10_000)
    assert files.read_unzipped(tmp_path / "zeros", 2**30) == bytes(3 * 2**20)


def test_text_is_utf8(tmp_path, rng):
    path = tmp_path / "text"
    path.write_text("grüße", encoding="utf-8-sig")
    assert files.read_text(path) == "grüße"
    path.write_bytes("grüße".encode("latin-1"))
    with pytest.raises(UnusableFileError, match="not text in UTF-8"):
        files.read_text(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ("[" * 65 + "]" * 65, "nested too deeply"),
        ("9" * 5000, "4300 digits"),
        (b'{"a": "\xff"}', "not text in UTF-8"),
        ("", "Expecting value"),
    ],
)
def test_json_that_cannot_be_used_is_one_error(text, reason):
    with pytest.raises(JsonError, match=reason):
        parse_json(text)


def test_json_is_what_the_standard_library_reads(rng, tmp_path):
    value = {"a": rng.normal(size=3).tolist(), "b": [None, True, {"c": "é"}], "n": int(rng.integers(2**62))}
    deepest = json.loads("[" * json_files.MOST_NESTED + "]" * json_files.MOST_NESTED)
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(deepest)) == deepest
    (tmp_path / "file").write_text(json.dumps(value))
    assert read_object(tmp_path / "file") == value
    for other in ([], "text", 3, None, True):
        (tmp_path / "file").write_text(json.dumps(other))
        with pytest.raises(JsonError, match="must hold a JSON object, and holds"):
            read_object(tmp_path / "file")


def bomb(levels, width, *, merge=False):
    """YAML of ``levels`` lines that stands for ``width ** levels`` values."""
    lines = ["a0: &a0 {k: v}" if merge else f"a0: &a0 [{', '.join('x' * width)}]"]
    for i in range(1, levels):
        inner = ", ".join([f"*a{i - 1}"] * width)
        lines.append(f"a{i}: &a{i} {{<<: [{inner}]}}" if merge else f"a{i}: &a{i} [{inner}]")
    return "\n".join(lines)


@pytest.mark.parametrize("merge", [False, True])
def test_yaml_whose_aliases_stand_for_too_much_is_refused(merge):
    with pytest.raises(yaml.YAMLError, match="aliases stand for more than"):
        yaml_files.compose_yaml(bomb(40, 9, merge=merge))
    text = f"a: &a {'x' * 2**16}\nb: &b [{', '.join(['*a'] * 2**10)}]"  # few values, and many characters
    with pytest.raises(yaml.YAMLError, match="aliases stand for more than"):
        yaml_files.compose_yaml(text)
    with pytest.raises(yaml.YAMLError, match="stands for itself"):
        yaml_files.compose_yaml("a: &a [1, *a]")


def test_yaml_has_the_value_that_yaml_reads(rng):
    text = f"a: &a [{', '.join(map(str, rng.integers(9, size=5)))}]\nb: [*a, *a]\nc: &c {{k: v}}\nd: {{<<: *c, e: 1}}\n"
    for loader in (yaml.BaseLoader, yaml.SafeLoader):
        for one in (text, bomb(3, 3), "", "5"):
            node = yaml_files.compose_yaml(one, loader)
            assert yaml_files.construct_yaml(node, loader) == yaml.load(one, Loader=loader)


def test_arrays_are_what_was_saved_and_sizes_are_checked_first(tmp_path, rng, monkeypatch):
    arrays = {"a": rng.normal(size=(3, 4)), "b": rng.integers(9, size=5), "c": np.zeros(2**20, np.float32)}
    path = tmp_path / "arrays.npz"
    np.savez_compressed(path, **arrays)
    found = array_files.read_arrays(path, list(arrays))
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    monkeypatch.setattr(files, "ALWAYS_UNPACKED", 2**20)
    with pytest.raises(UnusableFileError, match="its parts need 4 MiB"):
        array_files.read_arrays(path, list(arrays))
    np.savez(path, a=np.array([print], object))
    with pytest.raises((ValueError, UnusableFileError)):
        array_files.read_arrays(path, ["a"])


def test_arrays_whose_header_asks_for_more_than_the_file_holds_are_refused(tmp_path):
    np.save(tmp_path / "whole.npy", np.zeros(10_000))
    content = (tmp_path / "whole.npy").read_bytes()
    for claimed in (b"(99999,)", b"(9, 999)", b"(-1, 1,)"):
        with zipfile.ZipFile(tmp_path / "arrays.npz", "w") as file:
            file.writestr("a.npy", content.replace(b"(10000,)", claimed))
        with pytest.raises(UnusableFileError, match="another size than its header says"):
            array_files.read_arrays(tmp_path / "arrays.npz", ["a"])


def test_printed_text_keeps_what_a_reader_sees_and_escapes_the_rest(rng):
    plain = "".join(rng.choice(list(string.printable[:95] + "äß日本🙂\t\n"), 200))
    assert printable(plain) == plain
    codes = [*range(32), *range(0x7F, 0xA0), 0x202E, 0x2066, 0x2028, 0x200F, 0xFEFF, 0xDC1B, 0xD800]
    for code in set(codes) - {9, 10}:
        shown = printable(f"a{chr(code)}b")
        assert shown.startswith("a\\")
        assert chr(code) not in shown
        shown.encode("utf-8")
    assert printable("a\x1b[2Jb") == "a\\x1b[2Jb"
    assert printable(b"a\xff".decode("utf-8", "surrogateescape")) == "a\\xff"
    assert len(printable("x" * 10**6)) < 501_000


def test_a_line_that_is_said_is_one_line(capsys):
    say("first\nfalse\x1b[1m", 2)
    say("error", err=True)
    say()
    output = capsys.readouterr()
    assert output.out == "first\\nfalse\\x1b[1m\n2\n\n"
    assert output.err == "error\n"

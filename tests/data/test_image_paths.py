import pytest

from detr_jax.data.image_paths import ImagePaths
from detr_jax.data.source import Faults


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "sub/b.jpg", "sub/deep/c d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("written", "change"),
    [
        (lambda name: name, None),
        (lambda name: name.replace("/", "\\"), "backslashes"),
        (lambda name: f"images/{name}", "first folder"),
        (lambda name: f"images\\{name}".replace("/", "\\"), "first folder"),
    ],
)
def test_file_names_of_another_machine_are_found(folder, written, change):
    names = ["a.jpg", "sub/b.jpg", "sub/deep/c d.jpg"]
    faults = Faults("x")
    given = [written(name) for name in names]
    assert list(ImagePaths(folder).found(given, faults)) == names
    changed = sum(name != one for name, one in zip(names, given, strict=True))
    assert sum(faults.counts.values()) == changed
    assert all(change in kind for kind in faults.counts)


def test_addresses_and_folders_of_another_machine_are_ignored_if_the_file_exists(folder):
    faults = Faults("x")
    given = ["https://example.org/x/a.jpg?download=1", r"C:\data\a.jpg", "../../upload/4/a.jpg", "/mnt/set/a.jpg"]
    assert list(ImagePaths(folder).found(given, faults)) == ["a.jpg"] * 4
    assert sum(faults.counts.values()) == 4


def test_names_that_are_not_found_and_absolute_paths_are_kept(folder):
    faults = Faults("x")
    there = str(folder / "sub" / "b.jpg")
    assert list(ImagePaths(folder).found(["gone.jpg", there], faults)) == ["gone.jpg", there]
    assert not faults.counts

import jax
import pytest

from detr_jax.compilation_cache import keep_compiled_programs


@pytest.fixture
def undecided(tmp_path, monkeypatch):
    """A user who has set nothing, with a cache folder."""
    before = jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "cache" / "detr_jax"
    jax.config.update("jax_compilation_cache_dir", before)


def _folder():
    return jax.config.values["jax_compilation_cache_dir"]


def test_compiled_functions_are_kept_in_the_users_cache_folder(undecided):
    keep_compiled_programs()
    assert _folder() == str(undecided)
    assert undecided.is_dir()


@pytest.mark.parametrize("decided", ["", "elsewhere"])
def test_the_environment_decides(undecided, monkeypatch, decided):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", decided)
    keep_compiled_programs()
    assert _folder() is None  # jax reads the variable itself, when it is imported
    assert not undecided.exists()


def test_a_folder_that_was_set_in_jax_stays(undecided, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    keep_compiled_programs()
    assert _folder() == str(tmp_path)


def test_a_folder_that_cannot_be_created_is_ignored(undecided):
    undecided.parent.write_text("")
    keep_compiled_programs()
    assert _folder() is None

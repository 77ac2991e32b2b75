"""Names in /dev/shm that tell which started process they belong to, also while other tests run."""

import os
from pathlib import Path

_SITE = """
import multiprocessing.process, multiprocessing.shared_memory, os

name = "/" + os.environ["OWN_SHARED_MEMORY"]
multiprocessing.shared_memory._SHM_NAME_PREFIX = name + "_"
multiprocessing.process.current_process()._config["semprefix"] = name
"""


class OwnSharedMemory:
    """The names of the shared memory and the semaphores of one process and its children."""

    def __init__(self, folder: Path):
        """Writes a module into ``folder`` that Python imports at its start."""
        self._name = f"c{os.urandom(2).hex()}"
        self._folder = folder / "site"
        self._folder.mkdir(exist_ok=True)
        (self._folder / "sitecustomize.py").write_text(_SITE)

    def environment(self, environment: dict[str, str]) -> dict[str, str]:
        """The environment of the process, from the one that it would have."""
        path = f"{self._folder}{os.pathsep}{environment.get('PYTHONPATH', '')}"
        return {**environment, "PYTHONPATH": path, "OWN_SHARED_MEMORY": self._name}

    def left(self) -> list[str]:
        """What is in /dev/shm now under these names."""
        return sorted(path.name for path in Path("/dev/shm").glob(f"*{self._name}*"))

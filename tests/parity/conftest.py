import pytest

pytest.importorskip("torch", reason='the live comparison needs: pip install -e ".[parity]"')
pytest.importorskip("transformers", reason='the live comparison needs: pip install -e ".[parity]"')

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_first_screen_has_the_two_commands():
    commands = re.findall(r"^python3 -m venv .*$", "\n".join(README.splitlines()[:25]), re.MULTILINE)
    assert [command.split(" && ")[-1] for command in commands] == [
        "python train.py --config configs/shapes.py",
        "pytest",
    ]


def test_the_module_example_runs_and_prints_what_it_says(capsys):
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "DETR(config" in block]
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out.strip()
    assert printed
    assert f"# {printed}" in example


def test_every_file_that_is_named_exists():
    for name in re.findall(r"(?:configs|detr_jax)/\w+\.py", README):
        assert (ROOT / name).is_file(), name
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target

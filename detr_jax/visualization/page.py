"""An HTML page that contains its pictures, so that the file can be read without any other file."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from detr_jax.printing import printable

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; margin: 0 auto; padding: 1rem;
  max-width: 1280px; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); gap: 1rem; }
figure { margin: 0; } figure img { width: 100%; height: auto; } figcaption { font-size: .9rem; color: #555; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(6.5rem, 1fr)); gap: .5rem; padding: 0; }
.numbers div { background: #f2f4fb; border-radius: .4rem; padding: .4rem .7rem; }
.numbers b { display: block; font-size: 1.25rem; }
"""
_KINDS = {".png": "image/png", ".gif": "image/gif", ".webp": "image/webp"}


def write_page(
    path: Path,
    title: str,
    introduction: str,
    numbers: Mapping[str, str],
    sections: Mapping[str, Sequence[tuple[Path, str]]],
) -> None:
    """Writes a page with a title, a paragraph, numbers by name, and sections of pictures with captions.

    A section without pictures is dropped.

    Args:
      path: the file to write.
      title: title of the page.
      introduction: text below the title.
      numbers: values as text by name, shown as boxes.
      sections: picture files and their captions by heading.
    """
    boxes = "".join(f"<div>{_escaped(name)}<b>{_escaped(value)}</b></div>" for name, value in numbers.items())
    parts = [f"<h1>{_escaped(title)}</h1><p>{_escaped(introduction)}</p><div class=numbers>{boxes}</div>"]
    for heading, pictures in sections.items():
        if not pictures:
            continue
        figures = "".join(_figure(file, caption) for file, caption in pictures)
        parts.append(f"<h2>{_escaped(heading)}</h2><div class=pictures>{figures}</div>")
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{_escaped(title)}</title><style>{_STYLE}</style></head>"
    )
    path.write_text(f"{head}<body>{''.join(parts)}</body></html>\n", encoding="utf-8")


def _escaped(text: str) -> str:
    """The text without markup and without control characters."""
    return html.escape(printable(text))


def _figure(file: Path, caption: str) -> str:
    data = base64.b64encode(file.read_bytes()).decode()
    text = _escaped(caption)
    source = f"data:{_KINDS[file.suffix]};base64,{data}"
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'

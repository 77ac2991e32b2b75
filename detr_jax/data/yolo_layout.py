"""Read the description of a YOLO data set: a ``data.yaml``, Darknet's ``obj.data``, or a list of class names."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from detr_jax.data.annotation_rows import shown
from detr_jax.data.boundaries import OutsideError, is_inside
from detr_jax.data.image_folders import subfolder
from detr_jax.data.layouts import TEST, TRAIN, VALIDATION, WHOLE, split_group
from detr_jax.data.source import DataError
from detr_jax.data.text_files import decode_text, posix_path, read_any_text, shortened
from detr_jax.json_files import parse_json
from detr_jax.yaml_files import compose_yaml, construct_yaml, read_yaml

IMAGE_FOLDERS = frozenset(("images", "image", "imgs", "img", "jpegimages"))
"""The usual names of folders of images, in lower case."""

_NAME_FILES = ("classes.txt", "obj.names", "notes.json", "classes.names")
_MOST_CLASSES = 10**5
_NOTHING = ("", "null", "~", "None")


class YoloLayout(NamedTuple):
    """The description of a YOLO data set."""

    file: Path
    """The file that describes the data set; messages name it."""
    root: str
    """The base of the paths, relative to the folder of ``file``, which is tried as well."""
    names: dict[int, str]
    """Class name by label."""
    splits: dict[str, list[str]]
    """The folders or lists of images of each split, as written in the file."""
    key_points: tuple[int, int] | None
    """How many key points a row has, and how many numbers each has."""
    task: str
    """The task, for example "detect" or "segment"; empty if it is not given."""
    notes: tuple[tuple[str, str], ...]
    """Kind and name of each unusual item that was read, for `Faults.add`."""
    inside: tuple[Path, ...] = ()
    """The folders that all files must be in. Empty: anywhere."""

    def entries(self, split: str) -> list[str]:
        """The folders or lists of images of a split.

        Raises:
          DataError: the split does not exist.
        """
        for name in (split, *split_group(split)):
            if self.splits.get(name):
                return self.splits[name]
        there = ", ".join(self.splits) or "none"
        raise DataError(
            f"{self.file} names no images under {split!r} (splits: {there}): add {split} as a folder of images."
        )


def read_layout(path: Path, root: Path | None = None, *, allow_outside: bool = False) -> YoloLayout:
    """Reads the description of a data set.

    Args:
      path: a ``data.yaml``, an ``obj.data``, a file of class names, or the folder of one of these.
      root: the folder of the data set, by default that of the file.
      allow_outside: accept files outside of ``root`` and of the folder of the file.

    Raises:
      DataError: the file is missing, damaged or incomplete, or names a file of class names outside of the data set.
    """
    if path.is_dir():
        described = description_file(path)
        if described is None:
            raise DataError(f"{path} has no data.yaml, obj.data or classes.txt: one of them must give the class names.")
        path = described
    inside = () if allow_outside else tuple(dict.fromkeys(filter(None, (root, path.parent))))
    if path.suffix.lower() == ".data":
        return _read_darknet(path, inside)
    if path.suffix.lower() in (".txt", ".names", ".json"):
        return _read_names_only(path)._replace(inside=inside)
    return _read_data_yaml(path, inside)


def description_file(root: Path) -> Path | None:
    """The file in a folder that describes a YOLO data set, or None."""
    files = sorted(entry.name for entry in os.scandir(root) if entry.is_file() and not entry.name.startswith("."))
    yamls = [name for name in files if name.lower().endswith((".yaml", ".yml"))]
    yamls.sort(key=lambda name: (not name.lower().startswith(("data.", "dataset.")), name))
    for name in yamls:
        if _is_data_yaml(root / name):
            return root / name
    for name in files:
        if name.lower().endswith(".data"):
            return root / name
    folders = (root, *(subfolder(root, name) for name in ("labels", "images", "obj_train_data", *TRAIN, *VALIDATION)))
    for folder in folders:
        for name in _NAME_FILES:
            if (
                folder is not None
                and (folder / name).is_file()
                and (name != "notes.json" or _has_categories(folder / name))
            ):
                return folder / name
    return None


def _is_data_yaml(path: Path) -> bool:
    try:
        content = _load_yaml(path)
    except DataError:
        return path.name.lower() in ("data.yaml", "data.yml")  # reading it again reports the error
    return ("names" in content or "nc" in content) and any(_split_entries(content))


def _read_data_yaml(path: Path, inside: tuple[Path, ...]) -> YoloLayout:
    content = _load_yaml(path)
    names, notes = _class_names(content, path, inside)
    root = str(content.get("path") or "")
    root = "" if root in _NOTHING else posix_path(root)
    splits: dict[str, list[str]] = {}
    for split, entries in _split_entries(content):
        if not all(isinstance(entry, str) for entry in entries):
            raise DataError(f"{path} has {split}={shown(content[split])}: it must be a folder or file of images.")
        splits[split] = entries
    points = content.get("kpt_shape")
    if points is not None:
        numbers = [int(one) for one in points if _is_whole(one)] if isinstance(points, list) else []
        if len(numbers) != 2 or numbers[1] not in (2, 3):
            raise DataError(
                f"{path} has kpt_shape={shown(points)}: it must be the number of key points, and 2 or 3 numbers for "
                "each, such as [17, 3]."
            )
        key_points = numbers[0], numbers[1]
    task = str(content.get("task") or "").lower()
    key_points_given = None if points is None else key_points
    return YoloLayout(path, root, names, splits, key_points_given, task, tuple(notes), inside)


def _split_entries(content: dict[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """The fields that give the images of a split."""
    for split in (*TRAIN, *VALIDATION, *TEST):
        value = content.get(split)
        if value is not None and value not in _NOTHING:
            yield split, value if isinstance(value, list) else [value]


def _load_yaml(path: Path) -> dict[str, Any]:
    """The fields of a YAML file. All values are texts as written, so that a class may be called "no".

    Raises:
      DataError: the file is missing, or is not YAML with fields.
    """
    try:
        node = compose_yaml(decode_text(read_yaml(path)))
        _check_keys(node, path)
        content = construct_yaml(node)
    except FileNotFoundError:
        raise DataError(
            f"The file {path} does not exist: set data.root and data.sources.yolo.file to the data.yaml."
        ) from None
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        tabs = ": indent it with spaces, not with tabs" if "'\\t'" in str(error.problem) else ""
        raise DataError(f"The file {path} is not YAML ({error.problem}{line}){tabs}.") from None
    except DataError:
        raise
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"The file {path} cannot be read as YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(content, dict):
        raise DataError(f"The file {path} holds no fields: a data.yaml has train, val and names.")
    return content


def _check_keys(node: yaml.Node | None, path: Path) -> None:
    """Refuses duplicate fields and classes. YAML would silently keep the last one."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        if key.value in seen:
            raise DataError(
                f"{path} has {shown(key.value)} twice, the second time in line {key.start_mark.line + 1}: keep one."
            )
        if isinstance(key, yaml.ScalarNode):
            seen.add(key.value)
            if key.value == "names":
                _check_keys(value, path)


def _class_names(
    content: dict[str, Any], path: Path, inside: tuple[Path, ...]
) -> tuple[dict[int, str], list[tuple[str, str]]]:
    names, notes = content.get("names"), list[tuple[str, str]]()
    given = str(content.get("nc", ""))
    count = int(given) if _is_whole(given) else None
    if (count is None and given not in _NOTHING) or (count or 0) > _MOST_CLASSES:
        raise DataError(
            f"{path} has nc={shown(content['nc'])}: it must be the number of classes, at most {_MOST_CLASSES}."
        )
    if (names is None or names in _NOTHING) and count:
        notes.append(("data files without names: the classes are named by their numbers", f"{path}, nc: {count}"))
        names = [str(label) for label in range(count)]
    if isinstance(names, str) and _exists(path.parent / names):
        _check_inside(names, path.parent / names, inside)
        return _read_names(path.parent / names), notes
    if isinstance(names, list):
        names = {str(label): name for label, name in enumerate(names)}
    if isinstance(names, dict) and not all(map(_is_whole, names)):
        inverted = {str(label): name for name, label in names.items()}
        if len(inverted) == len(names) and all(map(_is_whole, inverted)):
            notes.append(("data files that map names to numbers instead of numbers to names", str(path)))
            names = inverted
    if not isinstance(names, dict) or not names or not all(map(_is_whole, names)):
        raise DataError(
            f"{path} has names={shown(names)}: they must be a list of class names, such as [cat, dog], or map "
            "numbers to names (0: person)."
        )
    for label, name in names.items():
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{path} has names with {label}: {shown(name)}: it must be the name of the class.")
    by_label = {int(label): name for label, name in names.items()}
    if len(by_label) < len(names):
        raise DataError(f"{path} has names={shown(names)}, with one number twice: give each class its own.")
    if count is not None and count not in (len(by_label), max(by_label) + 1):
        raise DataError(f"{path} has nc={count}, but {len(names)} names: correct the one that is wrong.")
    return by_label, notes


def _is_whole(text: Any) -> bool:
    """Whether a text is a whole number below a billion."""
    return str(text).isdecimal() and len(str(text)) < 10


def _read_names(path: Path) -> dict[int, str]:
    """The class names in a file with one name per line, or in Label Studio's ``notes.json``."""
    try:
        text = read_any_text(path)
        if path.suffix.lower() == ".json":
            categories = parse_json(text)["categories"]
            return {int(one["id"]): str(one["name"]) for one in categories}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"The file of class names {path} cannot be read ({error}).") from None
    names = [line.strip() for line in text.rstrip().splitlines()]
    if not all(names) or not names:
        raise DataError(f"The file of class names {path} has an empty line: write one class per line.")
    return dict(enumerate(names))


def _has_categories(path: Path) -> bool:
    try:
        return bool(_read_names(path))
    except DataError:
        return False


def _read_darknet(path: Path, inside: tuple[Path, ...]) -> YoloLayout:
    """Reads an ``obj.data`` of Darknet or of CVAT's YOLO 1.1, whose ``names``, ``train`` and ``valid`` are files."""
    fields: dict[str, str] = {}
    try:
        for line in read_any_text(path).splitlines():
            name, equals, value = line.partition("=")
            if equals and not name.strip().startswith("#"):
                fields[name.strip()] = value.strip()
    except OSError as error:
        raise DataError(f"The file {path} cannot be read ({error}).") from None
    names = fields.get("names")
    there = find_below(names, [path.parent], path.parent, inside) if names else None
    if there is None:
        raise DataError(f"{path} has names={shown(names)}, but this file does not exist: it must list the classes.")
    splits = {name: [fields[name]] for name in (*TRAIN, *VALIDATION, *TEST) if fields.get(name)}
    return YoloLayout(path, "", _read_names(there[0]), splits, None, "", (), inside)


def _read_names_only(path: Path) -> YoloLayout:
    """Reads a file of class names (Label Studio, labelImg). The images are next to it or next to its folder."""
    root = path.parent
    if root.name.lower() in ("labels", "images", "obj_train_data", *TRAIN, *VALIDATION):
        root = root.parent
    splits: dict[str, list[str]] = {}
    images = subfolder(root, "images")
    for name in (*TRAIN, *VALIDATION, *TEST):
        for folder in ([images] if images else []) + [root]:
            if (there := subfolder(folder, name)) is not None:
                splits.setdefault(name, [os.path.relpath(there, path.parent)])
    all_images = [os.path.relpath(images or root, path.parent)]
    return YoloLayout(path, "", _read_names(path), splits or {WHOLE: all_images}, None, "", ())


def find_below(text: str, bases: list[Path], folder: Path, inside: tuple[Path, ...]) -> tuple[Path, bool] | None:
    """The path of a file or folder that a description names, and whether it differs from the path in the description.

    Args:
      text: the path as written. It may have backslashes or come from another machine.
      bases: the folders that the path may be relative to.
      folder: the folder that is searched for the end of the path if the path does not exist.
      inside: the folders that the file must be in. Empty: anywhere.

    Raises:
      OutsideError: the path exists only outside of these folders.
    """
    name = posix_path(text)
    inner = name
    while inner.startswith("../"):  # Roboflow writes ../train/images for train/images
        inner = inner.removeprefix("../")
    inner = inner.removeprefix("data/")  # CVAT writes data/train.txt for train.txt
    candidates = [base / one for one in dict.fromkeys((text, name, inner)) for base in bases]
    existing = [candidate for candidate in candidates if _exists(candidate)]
    for candidate in existing:
        if not inside or is_inside(candidate, inside):
            return candidate, False
    for end in shortened(name)[1:]:
        if end.lower() not in IMAGE_FOLDERS and _exists(folder / end):  # a folder "images" may belong to another split
            return folder / end, True
    for candidate in existing:
        _check_inside(text, candidate, inside)
    return None


def _check_inside(text: str, path: Path, inside: tuple[Path, ...]) -> None:
    """Raises an `OutsideError` if a path, written as ``text``, is outside of the folders of the data set."""
    if inside and not is_inside(path, inside):
        raise OutsideError(
            f"{shown(text)} leads to {path}, outside of the data set in {inside[0]}: move it there, set data.root to a "
            "folder that holds both, or set data.sources.yolo.allow_outside=True if you trust the data set."
        )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # the path is too long or has a null character
        return False

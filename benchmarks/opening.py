"""Opening a data set of COCO's size: seconds of CPU and peak memory, next to pycocotools.

Command::

    python benchmarks/opening.py [--json FILE]

An instances JSON of 118,287 images and 860,001 objects with polygons is generated (470 MB, in a temporary folder). Each
row is a process of its own: only imports, opening the JSON as a `CocoDataset`, and opening it with pycocotools. Peak
memory is that of the process, imports included.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import environment  # finds the package, installed or not
import numpy as np

IMAGES, OBJECTS = 118_287, 860_001
_SIZES = ((480, 640), (640, 480), (427, 640), (640, 427), (500, 375), (375, 500), (612, 612))
_PROGRAMS = {
    "imports": "import detr_jax.data.coco",
    "detr_jax": "from detr_jax.data.coco import CocoDataset; s = CocoDataset(folder, file); assert len(s) == {images}",
    "check": (
        "from detr_jax.data.coco import CocoDataset; from detr_jax.data.checking import check_source\n"
        "assert check_source(CocoDataset(folder, file, strict=False), 100, pixels=False).objects.sum() == {objects}"
    ),
    "pycocotools": "from pycocotools.coco import COCO; c = COCO(file); assert len(c.anns) == {objects}",
}

_BEGIN = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import environment\n"
    "environment.end_with_parent()\n"
)


def write_json(path: Path) -> None:
    """Writes an instances JSON of COCO's size, its numbers drawn from seed 0."""
    rng = np.random.default_rng(0)
    sizes = rng.choice(np.array(_SIZES), IMAGES)
    ids = rng.permutation(581_929)[:IMAGES] + 1
    categories = [label for label in range(1, 91) if label not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    images = [
        {"license": 3, "file_name": f"{i:012d}.jpg", "height": h, "width": w, "date_captured": "2013-11-14", "id": i}
        for i, (h, w) in zip(ids.tolist(), sizes.tolist(), strict=True)
    ]
    owners, labels = rng.integers(0, IMAGES, OBJECTS), rng.choice(categories, OBJECTS).tolist()
    corners = rng.random((OBJECTS, 2)) * sizes[owners][:, ::-1] * 0.8
    extents = rng.random((OBJECTS, 2)) * sizes[owners][:, ::-1] * 0.19 + 2
    points = rng.integers(8, 40, OBJECTS).tolist()
    annotations = []
    for k, (owner, label, corner, extent) in enumerate(zip(owners.tolist(), labels, corners, extents, strict=True)):
        polygon = np.round(corner + rng.random((points[k], 2)) * extent, 2).ravel().tolist()
        box = np.round([*corner, *extent], 2).tolist()
        annotations.append(
            {
                "segmentation": [polygon],
                "area": round(box[2] * box[3] * 0.6, 4),
                "iscrowd": 0,
                "image_id": int(ids[owner]),
                "bbox": box,
                "category_id": label,
                "id": k + 1,
            }
        )
    listed = [{"supercategory": "thing", "id": label, "name": f"name {label}"} for label in categories]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": listed}))


def measure(program: str, file: Path) -> dict[str, float]:
    """CPU seconds, wall seconds and peak GiB of a Python program in a process of its own."""
    lines = f"folder, file = {str(file.parent)!r}, {str(file)!r}\n" + program.format(images=IMAGES, objects=OBJECTS)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    peak = "\nprint('peak', [line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    program = _BEGIN + lines + peak
    command, variables = [sys.executable, "-c", program], environment.for_child()
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=variables)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    gib = float(done.stdout.rpartition("peak")[2]) / 2**20
    return {"cpu_s": cpu, "wall_s": time.perf_counter() - started, "peak_gib": gib}


def main() -> None:
    """Prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "instances.json"
        write_json(file)
        rows = {name: measure(program, file) for name, program in _PROGRAMS.items()}
    for name, row in rows.items():
        print(f"{name:<12} {row['cpu_s']:6.1f} s CPU  {row['wall_s']:6.1f} s  {row['peak_gib']:5.2f} GiB")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()

"""Writes the numbers of small transformers models to fixtures/, for the tests that run without torch.

Command, with the extra "parity" installed::

    python -m tests.weights.make_fixtures

Each file holds the weights under transformers 5.x's own names (``weights/...``), two images [h, w, 3] uint8
(``image0``, ``image1``), and for each case the last feature map, the memory, logits and boxes: ``batch`` is both
images on one bucket, padded with zeros after normalisation, ``alone0`` and ``alone1`` each image by itself; ``dc5``
in front is the same model with its last stage dilated by hand.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from tests.parity.torch_models import dilate_last_stage, random_detr, reference_outputs
from tests.weights.fixture_images import BUCKET, SIZES, normalized, padded

FOLDER = Path(__file__).parent / "fixtures"

TRANSFORMER = {
    "d_model": 16,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "num_queries": 7,
    "num_labels": 80,
}
MODELS = {
    "bottleneck": {
        "resnet": {
            "layer_type": "bottleneck",
            "depths": (1, 1, 1, 2),
            "hidden_sizes": (16, 32, 64, 128),
            "embedding_size": 4,
        },
    },
    "basic_learned": {
        "resnet": {"layer_type": "basic", "depths": (1, 2, 1, 1), "hidden_sizes": (4, 8, 16, 32), "embedding_size": 4},
        "position_embedding_type": "learned",
    },
}


def main() -> None:
    """Writes one file per model."""
    FOLDER.mkdir(exist_ok=True)
    for seed, (name, fields) in enumerate(MODELS.items()):
        rng = np.random.default_rng(seed)
        model = random_detr(rng, **{**TRANSFORMER, **fields})
        images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
        content = {f"weights/{key}": value.numpy() for key, value in model.state_dict().items()}
        content |= {f"image{i}": image for i, image in enumerate(images)}
        variants = {"": lambda model: None}
        if name == "bottleneck":
            variants["dc5/"] = dilate_last_stage
        for variant, change in variants.items():
            change(model)
            cases = {"batch": (padded(images, BUCKET), SIZES)}
            cases |= {f"alone{i}": (normalized(image)[None], SIZES[i : i + 1]) for i, image in enumerate(images)}
            for case, inputs in cases.items():
                outputs = reference_outputs(model, *inputs)
                content |= {f"{variant}{case}/{key}": np.ascontiguousarray(x) for key, x in outputs.items()}
        save_file(content, FOLDER / f"{name}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

"""Torch's side: a detector of Hugging Face transformers with a ResNet-50, its forward pass and its training step.

`remote.start` makes a `Peer` in a process of its own.
"""

import copy
import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import environment
import numpy as np
import torch
from inputs import Inputs
from models import MODELS
from timing import Candidate
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    PreTrainedModel,
    ResNetConfig,
)
from transformers.utils import logging

from detr_jax.config import IMAGENET_MEAN, IMAGENET_STD
from tests.parity.torch_models import RESNETS, random_detr, random_segmentation, randomise
from tests.parity.torch_training import freeze_as_the_original

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.set_num_threads(environment.THREADS)
logging.disable_progress_bar()
warnings.filterwarnings("ignore", module="torch")


def create_model(seed: int, kind: str) -> PreTrainedModel:
    """A random detector with the paper's dropout and auxiliary losses, and the library's fused attention."""
    rng = np.random.default_rng(seed)
    if kind == "panoptic":
        model = random_segmentation(rng, RESNETS[50])
    elif kind == "detr":
        model = random_detr(rng, RESNETS[50], dropout=0.1, attention_dropout=0.1, activation_dropout=0.1)
    else:
        model = random_deformable_resnet50(rng)
    model.config._attn_implementation = "sdpa"  # its setter refuses the ResNet inside
    return model.to(DEVICE)


def random_deformable_resnet50(rng: np.random.Generator) -> DeformableDetrForObjectDetection:
    """Deformable DETR, multi-scale, with random weights and the paper's dropout."""
    torch.manual_seed(int(rng.integers(2**31)))
    config = DeformableDetrConfig(
        use_timm_backbone=False,
        backbone=None,
        backbone_config=ResNetConfig(**RESNETS[50], out_features=["stage2", "stage3", "stage4"]),
        num_labels=91,
        disable_custom_kernels=True,
        dropout=0.1,
        attention_dropout=0.1,
        activation_dropout=0.1,
    )
    model = DeformableDetrForObjectDetection(config).eval()
    randomise(model, model)
    return model


def pixels(inputs: Inputs) -> torch.Tensor:
    """The images without padding, normalised, [B, 3, h, w] float32."""
    height, width = inputs.sizes[0]
    images = torch.from_numpy(inputs.images[:, :height, :width]).to(DEVICE).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values, device=DEVICE)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((images - mean) / std).contiguous()


def labels(inputs: Inputs) -> list[dict[str, torch.Tensor]]:
    """The objects as transformers' loss wants them."""
    return [
        {
            "class_labels": torch.from_numpy(classes[:count]).long().to(DEVICE),
            "boxes": torch.from_numpy(boxes[:count]).to(DEVICE),
        }
        for boxes, classes, count in zip(inputs.boxes, inputs.labels, inputs.count, strict=True)
    ]


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Inside, float32 products are IEEE's, or TF32 on a GPU where ``dtype`` says so."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = dtype == "tf32"
    yield
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value


@torch.inference_mode()
def reference(model: PreTrainedModel, images: torch.Tensor) -> "Arrays":
    """What the model says in plain float32, one image at a time."""
    with precision("float32"):
        outputs = [model.eval()(image[None]) for image in images]
    return tuple(torch.cat([getattr(out, name) for out in outputs]).cpu().numpy() for name in answers(outputs[0]))


def answers(outputs: object) -> list[str]:
    """The names of the model's answers."""
    return [name for name in ("logits", "pred_boxes", "pred_masks") if getattr(outputs, name, None) is not None]


Arrays = tuple[np.ndarray, ...]
"""Logits [B, Q, C + 1] and boxes [B, Q, 4] of the last layer, and mask logits if there are any."""


class Peer:
    """A random model, and what is timed of it."""

    def __init__(self, seed: int, kind: str):
        self._kind = kind
        gc.disable()  # as it is in the other process while candidates are timed
        self._model = create_model(seed, kind)
        self._candidates: dict[str, Candidate] = {}
        self._first_loss: float | None = None

    def save(self, folder: str) -> None:
        """Writes the model, as Hugging Face does."""
        self._model.save_pretrained(folder)

    def forwards(self, inputs: Inputs, kinds: list[str], dtype: str) -> tuple[Arrays, Arrays]:
        """Prepares the forward pass as each of ``kinds`` runs it; with "bfloat16" model and images are bfloat16.

        Returns what the model says in plain float32, one image at a time, and what it says in this precision.
        """
        images = pixels(inputs)
        expected = reference(self._model, images)
        cast = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        model, images = copy.deepcopy(self._model).eval().to(cast), images.to(cast)

        def candidate(kind: str) -> Candidate:
            module, image_format = _as(kind, model)
            batch = images.contiguous(memory_format=image_format)

            def run(calls: int) -> None:
                with torch.inference_mode(), precision(dtype):
                    for _ in range(calls):
                        module(batch)
                finish()

            return run

        self._candidates = {kind: candidate(kind) for kind in kinds}
        with torch.inference_mode(), precision(dtype):
            out = model(images)
        return expected, tuple(getattr(out, name).float().cpu().numpy() for name in answers(out))

    def steps(self, inputs: Inputs, kinds: list[str], dtype: str) -> None:
        """Prepares the training step as each of ``kinds`` runs it, each on its own copy of the model.

        A step is loss, gradients, clipping at 0.1 and AdamW, with dropout on.
        """
        self._first_loss = None
        template = copy.deepcopy(self._model).train()
        template.config.auxiliary_loss = True
        images, objects = pixels(inputs), labels(inputs)
        self._candidates = {kind: self._step(kind, copy.deepcopy(template), images, objects, dtype) for kind in kinds}

    def _step(
        self,
        kind: str,
        model: PreTrainedModel,
        images: torch.Tensor,
        objects: list[dict[str, torch.Tensor]],
        dtype: str,
    ) -> Candidate:
        trained = freeze_as_the_original(model)
        count = sum(parameter.numel() for parameter in trained.values())
        wanted = MODELS[self._kind].trained_parameters
        if count != wanted:
            raise AssertionError(f"torch trains {count} parameters, and this detector has {wanted} to train")
        backbone = [p for name, p in trained.items() if "backbone" in name]
        others = [p for name, p in trained.items() if "backbone" not in name]
        optimizer = torch.optim.AdamW(
            [{"params": others}, {"params": backbone, "lr": 1e-5}], lr=1e-4, weight_decay=1e-4, fused=True
        )
        if not kind.startswith("whole"):  # scipy in the loss would break the graph at every image
            model.loss_function = torch.compiler.disable(model.loss_function)
        module, image_format = _as(kind, model)
        images = images.contiguous(memory_format=image_format)
        autocast = torch.autocast(DEVICE.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()

        def step() -> torch.Tensor:
            optimizer.zero_grad(set_to_none=True)
            with autocast:
                loss = module(images, labels=objects).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*others, *backbone], 0.1)
            optimizer.step()
            return loss

        def run(calls: int) -> None:
            with precision(dtype):
                for _ in range(calls):
                    loss = step()
                finish()
            if self._first_loss is None:
                self._first_loss = float(loss.detach())

        return run

    def run(self, kind: str, calls: int) -> None:
        """Runs a candidate, and waits for the device."""
        self._candidates[kind](calls)

    def first_loss(self) -> float | None:
        """The loss of the very first step."""
        return self._first_loss

    def peak_memory(self) -> int | None:
        """The most bytes in use since the start: on a GPU those of tensors, on a CPU those of the whole process."""
        return torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else environment.peak_memory_of_process()

    def forget(self) -> None:
        """Gives unused memory and compiled code back, before the next row."""
        self._candidates = {}
        gc.collect()
        torch.compiler.reset()
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()


def finish() -> None:
    """Waits until the device has done everything."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _as(kind: str, model: PreTrainedModel) -> tuple[Callable, torch.memory_format]:
    """The model prepared and compiled for one of `timing.PEERS`, and the memory format of its images."""
    image_format = torch.channels_last if kind.endswith("-nhwc") else torch.contiguous_format
    if image_format == torch.channels_last:
        model = copy.deepcopy(model).to(memory_format=image_format)
    if kind.startswith("eager"):
        return model, image_format
    mode = "reduce-overhead" if kind.startswith("graphs") else "default"
    return torch.compile(model, dynamic=False, mode=mode), image_format

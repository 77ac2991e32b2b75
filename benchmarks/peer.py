"""Torch's side: the DETR of Hugging Face transformers with a ResNet-50, its forward pass and its training step."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import environment
import numpy as np
import torch
from inputs import Inputs
from timing import Candidate
from transformers import DetrForObjectDetection
from transformers.utils import logging

from detr_jax.models.resnet import PIXEL_MEAN, PIXEL_STD
from tests.parity.torch_models import RESNETS, random_detr
from tests.parity.torch_training import freeze_as_the_original

TRAINED_PARAMETERS = 41_302_368
"""Of DETR R50 with 91 classes: all but the stem, the first stage and the batch norms."""

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.set_num_threads(environment.THREADS)
logging.disable_progress_bar()
warnings.filterwarnings("ignore", module="torch")


def create_model(seed: int) -> DetrForObjectDetection:
    """A random DETR R50 with the paper's dropout and auxiliary losses, and the library's fused attention."""
    rng = np.random.default_rng(seed)
    model = random_detr(rng, RESNETS[50], dropout=0.1, attention_dropout=0.1, activation_dropout=0.1)
    model.config._attn_implementation = "sdpa"  # its setter refuses the ResNet inside
    return model.to(DEVICE)


def pixels(inputs: Inputs) -> torch.Tensor:
    """The images without padding, normalised, [B, 3, h, w] float32."""
    height, width = inputs.sizes[0]
    images = torch.from_numpy(inputs.images[:, :height, :width]).to(DEVICE).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values, device=DEVICE)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
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
def reference(model: DetrForObjectDetection, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Logits [B, Q, C + 1] and boxes [B, Q, 4] of the last layer in plain float32, one image at a time."""
    with precision("float32"):
        outputs = [model.eval()(image[None]) for image in images]
    return tuple(torch.cat([getattr(out, name) for out in outputs]).cpu().numpy() for name in ("logits", "pred_boxes"))


def forwards(
    model: DetrForObjectDetection, images: torch.Tensor, kinds: list[str], dtype: str
) -> tuple[dict[str, Candidate], Callable[[], tuple[np.ndarray, np.ndarray]]]:
    """The forward pass as each of ``kinds`` runs it, and a function that gives its logits and boxes.

    With "bfloat16" the whole model and the images are bfloat16.
    """
    cast = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    model, images = copy.deepcopy(model).eval().to(cast), images.to(cast)

    def candidate(kind: str) -> Candidate:
        module, image_format = _as(kind, model)
        batch = images.contiguous(memory_format=image_format)

        def run(calls: int) -> None:
            with torch.inference_mode(), precision(dtype):
                for _ in range(calls):
                    module(batch)
            finish()

        return run

    @torch.inference_mode()
    def outputs() -> tuple[np.ndarray, np.ndarray]:
        with precision(dtype):
            out = model(images)
        return out.logits.float().cpu().numpy(), out.pred_boxes.float().cpu().numpy()

    return {kind: candidate(kind) for kind in kinds}, outputs


class TrainSteps:
    """Training steps on one batch: loss, gradients, clipping at 0.1 and AdamW, with dropout on."""

    def __init__(self, model: DetrForObjectDetection, inputs: Inputs, dtype: str):
        self.first_loss: float | None = None
        self._model = copy.deepcopy(model).train()
        self._model.config.auxiliary_loss = True
        self._images, self._labels, self._dtype = pixels(inputs), labels(inputs), dtype

    def candidate(self, kind: str) -> Candidate:
        """The step as ``kind`` runs it, on its own copy of the model."""
        model = copy.deepcopy(self._model)
        trained = freeze_as_the_original(model)
        count = sum(parameter.numel() for parameter in trained.values())
        if count != TRAINED_PARAMETERS:
            raise AssertionError(f"torch trains {count} parameters, and DETR R50 has {TRAINED_PARAMETERS} to train")
        backbone = [p for name, p in trained.items() if "backbone" in name]
        others = [p for name, p in trained.items() if "backbone" not in name]
        optimizer = torch.optim.AdamW(
            [{"params": others}, {"params": backbone, "lr": 1e-5}], lr=1e-4, weight_decay=1e-4, fused=True
        )
        if not kind.startswith("whole"):  # scipy in the loss would break the graph at every image
            model.loss_function = torch.compiler.disable(model.loss_function)
        module, image_format = _as(kind, model)
        images = self._images.contiguous(memory_format=image_format)
        autocast = torch.autocast(DEVICE.type, torch.bfloat16) if self._dtype == "bfloat16" else nullcontext()

        def step() -> torch.Tensor:
            optimizer.zero_grad(set_to_none=True)
            with autocast:
                loss = module(images, labels=self._labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*others, *backbone], 0.1)
            optimizer.step()
            return loss

        def run(calls: int) -> None:
            with precision(self._dtype):
                for _ in range(calls):
                    loss = step()
                finish()
            if self.first_loss is None:
                self.first_loss = float(loss.detach())

        return run


def finish() -> None:
    """Waits until the device has done everything."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def forget() -> None:
    """Gives unused memory and compiled code back, before the next row."""
    torch.compiler.reset()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def _as(kind: str, model: DetrForObjectDetection) -> tuple[Callable, torch.memory_format]:
    """The model prepared and compiled for one of `timing.PEERS`, and the memory format of its images."""
    image_format = torch.channels_last if kind.endswith("-nhwc") else torch.contiguous_format
    if image_format == torch.channels_last:
        model = copy.deepcopy(model).to(memory_format=image_format)
    if kind.startswith("eager"):
        return model, image_format
    mode = "reduce-overhead" if kind.startswith("graphs") else "default"
    return torch.compile(model, dynamic=False, mode=mode), image_format

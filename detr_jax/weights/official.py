"""`OFFICIAL`: the list of released weights that this package reads, with address, size, licence and hash.

By PyTorch's convention the name of a file ends with the beginning of its SHA-256.
"""

from pathlib import Path
from typing import NamedTuple

BASES = {
    "facebook": "https://dl.fbaipublicfiles.com/detr",
    "pytorch": "https://download.pytorch.org/models",
    "openmmlab": "https://download.openmmlab.com/mmdetection/v3.0/detr/detr_r50_8xb2-150e_coco",
    **{
        f"openmmlab-{model}": f"https://download.openmmlab.com/mmdetection/v3.0/deformable_detr/{model}_r50_16xb2-50e_coco"
        for model in ("deformable-detr", "deformable-detr-refine", "deformable-detr-refine-twostage")
    },
}
"""Address of the folder of files, by origin."""


class Official(NamedTuple):
    """Weights that can be downloaded by name."""

    name: str
    """Name in commands and messages."""
    origin: str
    """A key of `BASES`."""
    file: str
    """Name of the file, which ends with the beginning of its SHA-256."""
    about: str
    """Architecture and publisher, for messages."""
    megabytes: int | None
    """Published size in 2**20 bytes. None: not published."""
    licence: str
    """Licence of the project that publishes the file."""
    dilation: bool = False
    """A DC5 model."""
    backbone: bool = False
    """A backbone without a detector."""
    ap: float | None = None
    """Published box AP on COCO val2017, after 500 epochs unless `about` gives another number."""
    aliases: tuple[str, ...] = ()
    """Names of the same weights on Hugging Face's Hub (converted from this file) and in torch.hub."""

    @property
    def address(self) -> str:
        """Where the file is downloaded from."""
        return f"{BASES[self.origin]}/{self.file}"

    @property
    def sha256(self) -> str:
        """The first eight digits of the file's SHA-256."""
        return Path(self.file).stem.rsplit("-", 1)[1]


_OTHER_DC5 = ("r50_deformable_detr_single_scale_dc5-checkpoint.pth",)
"""Names of released DC5 models that cannot be downloaded by name."""

_APACHE, _BSD = "Apache-2.0", "BSD-3-Clause"

OFFICIAL = (
    Official(
        "detr-r50",
        "facebook",
        "detr-r50-e632da11.pth",
        "DETR, ResNet-50, of the paper's authors",
        159,
        _APACHE,
        ap=42.0,
        aliases=("facebook/detr-resnet-50", "detr_resnet50"),
    ),
    Official(
        "detr-r50-dc5",
        "facebook",
        "detr-r50-dc5-f0fb7ef5.pth",
        "DETR-DC5, ResNet-50, of the paper's authors",
        159,
        _APACHE,
        dilation=True,
        ap=43.3,
        aliases=("facebook/detr-resnet-50-dc5", "detr_resnet50_dc5"),
    ),
    Official(
        "detr-r101",
        "facebook",
        "detr-r101-2c7b67e5.pth",
        "DETR, ResNet-101, of the paper's authors",
        232,
        _APACHE,
        ap=43.5,
        aliases=("facebook/detr-resnet-101", "detr_resnet101"),
    ),
    Official(
        "detr-r101-dc5",
        "facebook",
        "detr-r101-dc5-a2e86def.pth",
        "DETR-DC5, ResNet-101, of the paper's authors",
        232,
        _APACHE,
        dilation=True,
        ap=44.9,
        aliases=("facebook/detr-resnet-101-dc5", "detr_resnet101_dc5"),
    ),
    Official(
        "detr-r50-panoptic",
        "facebook",
        "detr-r50-panoptic-00ce5173.pth",
        "panoptic DETR, ResNet-50, of the paper's authors",
        165,
        _APACHE,
        ap=38.8,
        aliases=("facebook/detr-resnet-50-panoptic", "detr_resnet50_panoptic"),
    ),
    Official(
        "detr-r50-dc5-panoptic",
        "facebook",
        "detr-r50-dc5-panoptic-da08f1b1.pth",
        "panoptic DETR-DC5, ResNet-50, of the paper's authors",
        165,
        _APACHE,
        dilation=True,
        ap=40.2,
        aliases=("facebook/detr-resnet-50-dc5-panoptic", "detr_resnet50_dc5_panoptic"),
    ),
    Official(
        "detr-r101-panoptic",
        "facebook",
        "detr-r101-panoptic-40021d53.pth",
        "panoptic DETR, ResNet-101, of the paper's authors",
        237,
        _APACHE,
        ap=40.1,
        aliases=("facebook/detr-resnet-101-panoptic", "detr_resnet101_panoptic"),
    ),
    Official(
        "detr-r50-mmdetection",
        "openmmlab",
        "detr_r50_8xb2-150e_coco_20221023_153551-436d03e8.pth",
        "DETR, ResNet-50, trained by mmdetection for 150 epochs",
        None,
        _APACHE,
        ap=39.9,
    ),
    Official(
        "deformable-detr-r50-mmdetection",
        "openmmlab-deformable-detr",
        "deformable-detr_r50_16xb2-50e_coco_20221029_210934-6bc7d21b.pth",
        "Deformable DETR, ResNet-50, trained by mmdetection for 50 epochs",
        None,
        _APACHE,
        ap=44.3,
    ),
    Official(
        "deformable-detr-refine-r50-mmdetection",
        "openmmlab-deformable-detr-refine",
        "deformable-detr-refine_r50_16xb2-50e_coco_20221022_225303-844e0f93.pth",
        "Deformable DETR with iterative box refinement, ResNet-50, trained by mmdetection for 50 epochs",
        None,
        _APACHE,
        ap=46.2,
    ),
    Official(
        "deformable-detr-refine-twostage-r50-mmdetection",
        "openmmlab-deformable-detr-refine-twostage",
        "deformable-detr-refine-twostage_r50_16xb2-50e_coco_20221021_184714-acc8a5ff.pth",
        "Deformable DETR with two stages, ResNet-50, trained by mmdetection for 50 epochs",
        None,
        _APACHE,
        ap=47.0,
    ),
    Official(
        "resnet18",
        "pytorch",
        "resnet18-f37072fd.pth",
        "ResNet-18 for ImageNet, of torchvision",
        45,
        _BSD,
        backbone=True,
    ),
    Official(
        "resnet34",
        "pytorch",
        "resnet34-b627a593.pth",
        "ResNet-34 for ImageNet, of torchvision",
        83,
        _BSD,
        backbone=True,
    ),
    Official(
        "resnet50",
        "pytorch",
        "resnet50-0676ba61.pth",
        "ResNet-50 for ImageNet, of torchvision (V1, as in the paper)",
        98,
        _BSD,
        backbone=True,
    ),
    Official(
        "resnet101",
        "pytorch",
        "resnet101-63fe2227.pth",
        "ResNet-101 for ImageNet, of torchvision (V1, as in the paper)",
        171,
        _BSD,
        backbone=True,
    ),
)
"""All listed weights. `docs/weights.md` has the same list."""


def find(name: str) -> Official | None:
    """The listed weights with this name, alias, file name or address, or None if there are none."""
    for weights in OFFICIAL:
        if name in (weights.name, weights.file, weights.address, *weights.aliases):
            return weights
    return None


def is_released_dc5(file_name: str) -> bool:
    """Whether this is the file name of a released DC5 model, listed or not."""
    listed = any(weights.dilation for weights in OFFICIAL if weights.file == file_name)
    return listed or file_name in _OTHER_DC5

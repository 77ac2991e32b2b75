"""Data: sources, transforms, and batches of static shapes."""

from detr_jax.data.batching import TrainPlan as TrainPlan
from detr_jax.data.batching import ValPlan as ValPlan
from detr_jax.data.batching import batches as batches
from detr_jax.data.coco import CocoDataset as CocoDataset
from detr_jax.data.coco_panoptic import CocoPanopticDataset as CocoPanopticDataset
from detr_jax.data.finding import find_layout as find_layout
from detr_jax.data.labelling import check_classes as check_classes
from detr_jax.data.masks import Masks as Masks
from detr_jax.data.opening import open_source as open_source
from detr_jax.data.opening import open_splits as open_splits
from detr_jax.data.panoptic_png import Panoptic as Panoptic
from detr_jax.data.shapes import ShapesDataset as ShapesDataset
from detr_jax.data.source import DataError as DataError
from detr_jax.data.source import Faults as Faults
from detr_jax.data.source import Objects as Objects
from detr_jax.data.source import Sample as Sample
from detr_jax.data.source import Source as Source
from detr_jax.data.voc import VocDataset as VocDataset
from detr_jax.data.yolo import YoloDataset as YoloDataset
from detr_jax.structures import Batch as Batch

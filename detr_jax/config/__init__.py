"""The typed configuration of a model and its training.

A file under ``configs/`` returns a `Config` from ``get_config()``; ``train.py`` changes single fields with
``--config.optimizer.learning_rate=1e-4``. `check` finds what cannot work before anything starts, and
`to_json` / `from_json` carry the configuration next to every checkpoint.
"""

from detr_jax.config.augmentation import Augmentation as Augmentation
from detr_jax.config.augmentation import ColorJitter as ColorJitter
from detr_jax.config.augmentation import DetrAugmentation as DetrAugmentation
from detr_jax.config.augmentation import Photometric as Photometric
from detr_jax.config.checks import check as check
from detr_jax.config.checks import check_buckets as check_buckets
from detr_jax.config.checks import check_data as check_data
from detr_jax.config.checks import check_fields as check_fields
from detr_jax.config.checks import check_prediction as check_prediction
from detr_jax.config.data import IMAGE_SIZES as IMAGE_SIZES
from detr_jax.config.data import DataConfig as DataConfig
from detr_jax.config.data import Exif as Exif
from detr_jax.config.data import OnError as OnError
from detr_jax.config.data import Rounding as Rounding
from detr_jax.config.error import ConfigError as ConfigError
from detr_jax.config.fields import Choice as Choice
from detr_jax.config.fields import ranged as ranged
from detr_jax.config.loss import L1 as L1
from detr_jax.config.loss import CardinalityError as CardinalityError
from detr_jax.config.loss import ClassAccuracy as ClassAccuracy
from detr_jax.config.loss import ClassError as ClassError
from detr_jax.config.loss import CrossEntropy as CrossEntropy
from detr_jax.config.loss import Diagnostic as Diagnostic
from detr_jax.config.loss import FocalCost as FocalCost
from detr_jax.config.loss import GIoU as GIoU
from detr_jax.config.loss import GIoUCost as GIoUCost
from detr_jax.config.loss import L1Cost as L1Cost
from detr_jax.config.loss import LossConfig as LossConfig
from detr_jax.config.loss import LossTerm as LossTerm
from detr_jax.config.loss import Matcher as Matcher
from detr_jax.config.loss import MatchingCost as MatchingCost
from detr_jax.config.loss import SigmoidFocal as SigmoidFocal
from detr_jax.config.loss import SoftmaxCost as SoftmaxCost
from detr_jax.config.model import IMAGENET_MEAN as IMAGENET_MEAN
from detr_jax.config.model import IMAGENET_STD as IMAGENET_STD
from detr_jax.config.model import LEARNED_CELLS as LEARNED_CELLS
from detr_jax.config.model import BackboneBase as BackboneBase
from detr_jax.config.model import BackboneConfig as BackboneConfig
from detr_jax.config.model import Block as Block
from detr_jax.config.model import Classification as Classification
from detr_jax.config.model import DetectorConfig as DetectorConfig
from detr_jax.config.model import DETRConfig as DETRConfig
from detr_jax.config.model import ModelConfig as ModelConfig
from detr_jax.config.model import Norm as Norm
from detr_jax.config.model import PositionEmbedding as PositionEmbedding
from detr_jax.config.model import Precision as Precision
from detr_jax.config.model import Remat as Remat
from detr_jax.config.model import ResNetConfig as ResNetConfig
from detr_jax.config.model import Stem as Stem
from detr_jax.config.renamed import current_path as current_path
from detr_jax.config.run import Config as Config
from detr_jax.config.run import EvaluationConfig as EvaluationConfig
from detr_jax.config.run import OptimizerConfig as OptimizerConfig
from detr_jax.config.run import Schedule as Schedule
from detr_jax.config.run import TrainingConfig as TrainingConfig
from detr_jax.config.serialization import differences as differences
from detr_jax.config.serialization import from_json as from_json
from detr_jax.config.serialization import to_json as to_json
from detr_jax.config.serialization import unknown_field as unknown_field
from detr_jax.config.sources import SHAPE_KINDS as SHAPE_KINDS
from detr_jax.config.sources import CocoFiles as CocoFiles
from detr_jax.config.sources import FirstPixel as FirstPixel
from detr_jax.config.sources import FolderConfig as FolderConfig
from detr_jax.config.sources import LabelmeFiles as LabelmeFiles
from detr_jax.config.sources import ShapesConfig as ShapesConfig
from detr_jax.config.sources import SourceConfig as SourceConfig
from detr_jax.config.sources import TfdsConfig as TfdsConfig
from detr_jax.config.sources import VocFiles as VocFiles
from detr_jax.config.sources import YoloFiles as YoloFiles
from detr_jax.config.sources import YoloRows as YoloRows

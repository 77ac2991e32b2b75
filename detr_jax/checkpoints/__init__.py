"""Checkpoints for training and inference, written by Orbax.

A checkpoint is a folder. It is written completely or not at all. It holds these parts by name:

* ``params``: all parameters of the model, trained and frozen, as a pure tree of float32 arrays.
* ``ema``: the same tree with the EMA of the parameters, if the training keeps one.
* ``optimizer``: the state of the optimizer.
* ``progress``: the step and the position in the data.
* ``checksums``: a checksum of every array and text of the other parts. Damage is found when a part is read.
* ``config``: the configuration as JSON. Inference rebuilds the model from it.
* ``classes``: the names of the labels as JSON, if they are known, and which of them are no things.
"""

from detr_jax.checkpoints.errors import CheckpointError as CheckpointError
from detr_jax.checkpoints.errors import CheckpointWriteError as CheckpointWriteError
from detr_jax.checkpoints.errors import DamagedCheckpointError as DamagedCheckpointError
from detr_jax.checkpoints.errors import damaged_error as damaged_error
from detr_jax.checkpoints.finding import all_checkpoints as all_checkpoints
from detr_jax.checkpoints.finding import checkpoints_of as checkpoints_of
from detr_jax.checkpoints.finding import find_checkpoint as find_checkpoint
from detr_jax.checkpoints.finding import newest_checkpoint as newest_checkpoint
from detr_jax.checkpoints.loading import labels_of_run as labels_of_run
from detr_jax.checkpoints.loading import load_category_ids as load_category_ids
from detr_jax.checkpoints.loading import load_class_names as load_class_names
from detr_jax.checkpoints.loading import load_config as load_config
from detr_jax.checkpoints.loading import load_labels as load_labels
from detr_jax.checkpoints.loading import load_model as load_model
from detr_jax.checkpoints.loading import load_stuff_labels as load_stuff_labels
from detr_jax.checkpoints.loading import read_newest as read_newest
from detr_jax.checkpoints.parts import check_sound as check_sound
from detr_jax.checkpoints.parts import check_step as check_step
from detr_jax.checkpoints.parts import has_part as has_part
from detr_jax.checkpoints.parts import restore_parts as restore_parts
from detr_jax.checkpoints.store import Checkpoints as Checkpoints

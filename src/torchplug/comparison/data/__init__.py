"""Data for a comparison: three parts of images and targets, the same for all trials.

========================  ========================================================================
``digits``                comes along: scikit-learn's 1,797 scans of handwritten digits, 8 x 8, for
                          classification; 1,000 scenes of 48 x 48 made of them, with masks or boxes,
                          for the other tasks
``PATH``                  a folder of images: ``PATH/train/<class>/…`` with ``val`` or ``test``
                          beside it, or ``PATH/<class>/…``, which is divided here;
                          ``folder/PATH`` is the same
``torch/NAME:ROOT``       a set of torchvision under a local root, such as ``torch/cifar10:data``;
                          ``cifar10:data`` is the same
``hfds/PATH``             a ``Dataset`` or ``DatasetDict`` of Hugging Face, by ``save_to_disk``
``wds/PATTERN``           webdataset shards: ``wds/data/train-{00..09}.tar``, or a folder of tars
``voc/PATH``              images with masks, or boxes, as PASCAL VOC lays them out
``yolo/PATH``             images with boxes as YOLO lays them out: ``data.yaml`` or ``images``
``coco/PATH``             images with boxes as COCO lays them out: ``instances_*.json``
========================  ========================================================================

Prefixes are those of timm. A set without a split is divided by rule; nothing is ever downloaded.
:func:`wrap_datasets` takes datasets that are already objects.
"""

from torchplug.comparison.data.assemble import DataWarning
from torchplug.comparison.data.items import LazyItems, MemoryItems
from torchplug.comparison.data.load import load_data
from torchplug.comparison.data.options import DataOptions
from torchplug.comparison.data.task_data import TaskData
from torchplug.comparison.data.wrapping import wrap_datasets

__all__ = [
    "DataOptions",
    "DataWarning",
    "LazyItems",
    "MemoryItems",
    "TaskData",
    "load_data",
    "wrap_datasets",
]

"""Sources of encoded images that need not fit in memory: lists, folders, tar shards, RecordIO."""

from trainer.datasets.sources.class_list import ClassList, read_class_list
from trainer.datasets.sources.files import ClassFolders, ImageList
from trainer.datasets.sources.source import Source

__all__ = ['ClassFolders', 'ClassList', 'ImageList', 'Source', 'read_class_list']

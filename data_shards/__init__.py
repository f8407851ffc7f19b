"""Samples in tar shards: packed, verified, streamed on any number of ranks, decoded and augmented."""

from typing import TYPE_CHECKING

from parallel.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from data_shards.augment.options import AugmentConfig
    from data_shards.augment.pipeline import Augment
    from data_shards.errors import DataError
    from data_shards.format.fields import Field
    from data_shards.format.index import Manifest
    from data_shards.format.rng import DrawKey
    from data_shards.format.samples import ArraySamples, Samples, Source
    from data_shards.image.decode import decode_image
    from data_shards.image.geometry import EvalTransform, TrainTransform
    from data_shards.order.sampling import TrainSampling
    from data_shards.order.sets import TrainSet
    from data_shards.stream.batch import Batch
    from data_shards.stream.collate import Fixed, Padded, Ragged
    from data_shards.stream.eval import EvalStream
    from data_shards.stream.mixed import MixedStream
    from data_shards.stream.options import EvalSampling, ReadOptions, StreamOptions
    from data_shards.stream.train import TrainStream
    from data_shards.stream.transform import Images, LabelledImages, PerhapsLabelled, Transform
    from data_shards.stream.webdataset import WebDatasetStream

__all__ = [
    "ArraySamples",
    "Augment",
    "AugmentConfig",
    "Batch",
    "DataError",
    "DrawKey",
    "EvalSampling",
    "EvalStream",
    "EvalTransform",
    "Field",
    "Fixed",
    "Images",
    "LabelledImages",
    "Manifest",
    "MixedStream",
    "Padded",
    "PerhapsLabelled",
    "Ragged",
    "ReadOptions",
    "Samples",
    "Source",
    "StreamOptions",
    "TrainSampling",
    "TrainSet",
    "TrainStream",
    "TrainTransform",
    "Transform",
    "WebDatasetStream",
    "decode_image",
]
__getattr__ = lazy_exports(__name__, __file__)

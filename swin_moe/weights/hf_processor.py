"""The preprocessor_config.json of Hugging Face: for transformers, what an evaluation here makes of an image.

`BitImageProcessor` is the class with a resize, a centre crop and nothing else. Its torchvision backend, the
default of transformers 5, resizes with the kernel that data_shards/image/decode.py uses, and the pixels are
the same bits. The pixels of its PIL backend differ by up to 3 of 255.

One size may differ. `EvalTransform` rounds the long side of the resized image, as timm's ResizeKeepRatio
does, and transformers rounds it down. Where the two differ, the long side has one pixel less there.

Legend: h, w height and width of the model's images in pixels.
"""

from typing import Any

from swin_moe.config import ModelConfig
from swin_moe.sizes import as_text
from swin_moe.weights.input_spec import InputSpec

BICUBIC = 3  # PIL.Image.Resampling.BICUBIC
CHANNELS = 3


def processor_json(config: ModelConfig, inputs: InputSpec) -> dict[str, Any]:
    """What goes into preprocessor_config.json, if `processor_gap` has no objection.

    Args:
        config: of the model, for the size of its images.
        inputs: the normalization and the crop of its evaluations.
    """
    height, width = config.image_sides
    crops = inputs.eval_crop < 1
    image = {"height": height, "width": width}
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(height / inputs.eval_crop)} if crops else image,
        "resample": BICUBIC,
        "do_center_crop": crops,
        "crop_size": image,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(inputs.mean),
        "image_std": list(inputs.std),
    }


def processor_gap(config: ModelConfig, inputs: InputSpec | None) -> str | None:
    """Why no processor of transformers gives the images of an evaluation; None if one does.

    Args:
        config: of the model.
        inputs: what is known of its images; None if nothing is.
    """
    if inputs is None:
        return "the weights do not say how their images were normalized; a recipe does: --config RECIPE"
    height, width = config.image_sides
    if height != width and inputs.eval_crop < 1:
        return (
            f"transformers cannot cut {as_text((height, width))} pixels out of a larger image that keeps its "
            f"aspect ratio, as data.eval_crop ({inputs.eval_crop}) does; data.eval_crop=1.0 needs no cut"
        )
    if config.in_chans != CHANNELS:
        return f"images have {CHANNELS} channels there, and model.in_chans is {config.in_chans}"
    return None

"""The JSON of requests and answers, which OpenAPI documents."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

IMAGE = "The file of an image in base64, or a data URL of it."


class ImagesRequest(BaseModel):
    """Images in base64, one or several."""

    model_config = ConfigDict(extra="forbid")

    images: Annotated[list[str], Field(min_length=1, description=IMAGE)]


class Class(BaseModel):
    """A class and how likely it is."""

    index: Annotated[int, Field(ge=0, description="The output of the model.")]
    name: Annotated[str | None, Field(description="The name of the class; null where it is not known.")]
    probability: Annotated[float, Field(ge=0, le=1.000001, description="Of the softmax over all classes.")]


class Experts(BaseModel):
    """Which experts an MoE layer gave the tokens of an image to."""

    layer: str
    num_experts: int
    height: Annotated[int, Field(description="Rows of tokens.")]
    width: Annotated[int, Field(description="Tokens of a row.")]
    experts: Annotated[
        list[list[int]],
        Field(description="For each token, row by row, its experts, the one with the largest weight first."),
    ]


class Classified(BaseModel):
    """The answer to one image."""

    top: Annotated[list[Class], Field(description="The most likely classes, best first.")]
    experts: Annotated[list[Experts] | None, Field(description="For ?experts=true.")] = None
    view: Annotated[str | None, Field(description="What the model sees, as a PNG, for ?view=true.")] = None


class ClassifyResponse(BaseModel):
    """Answers in the order of the images."""

    results: list[Classified]


class Embedded(BaseModel):
    """The features of one image."""

    features: Annotated[list[float], Field(description="The mean of the last map over its tokens.")]


class EmbedResponse(BaseModel):
    """Answers in the order of the images."""

    results: list[Embedded]


class PixelClass(BaseModel):
    """A class that some pixels have."""

    index: Annotated[int, Field(ge=0, le=255, description="The output of the model.")]
    name: Annotated[str | None, Field(description="The name of the class; null where it is not known.")]
    share: Annotated[float, Field(gt=0, le=1, description="Of the pixels of the image.")]
    colour: Annotated[str, Field(pattern="^#[0-9a-f]{6}$", description="Of the class in pictures.")]


class Segmented(BaseModel):
    """The answer to one image."""

    height: Annotated[int, Field(ge=1, description="Of the image and of its map, in pixels.")]
    width: Annotated[int, Field(ge=1)]
    classes: Annotated[list[PixelClass], Field(description="That some pixels have, most pixels first.")]
    map: Annotated[
        str, Field(description="The index of the class of each pixel: a gray PNG of 8 bits in base64.")
    ]
    view: Annotated[
        str | None,
        Field(description="The image as a PNG in base64, at most 1024 pixels long, for ?view=true."),
    ] = None


class SegmentResponse(BaseModel):
    """Answers in the order of the images."""

    results: list[Segmented]


class Health(BaseModel):
    """Whether the server takes requests."""

    status: str


class ErrorResponse(BaseModel):
    """Why a request was refused."""

    detail: str

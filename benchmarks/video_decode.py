"""Clips per second of one core: our decoding beside PyAV with a seek for each frame, or one seek for a clip.

    python benchmarks/video_decode.py                              # six minutes
    python benchmarks/video_decode.py --video my.mp4 --rounds 9    # a video of your own

Each contender gives the same 32 frames, every second one, of 320 x 256 pixels as RGB arrays, in one thread,
from bytes in memory. They take turns on the same starts in each round; the rates are of CPU time, and the
ratio is the median of those of the rounds. `clip` adds what training does: a random crop resized to
224 x 224. decord and torchvision's VideoReader take part where they can be imported. Frames are compared
before they are timed.
"""

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F

from data_shards.format.rng import DrawKey
from data_shards.image.geometry import TrainTransform
from data_shards.stream.clips import TrainClips
from data_shards.video.clips import ClipSampling
from data_shards.video.container import opened
from data_shards.video.decode import count_frames, decode_frames
from data_shards.video.library import pyav
from data_shards.video.write import Writer, i420

FRAMES, INTERVAL, SIDES, LENGTH, RATE = 32, 2, (256, 320), 300, 30
Contender = Callable[[bytes, Sequence[int]], np.ndarray]


def make_video(key_distance: int, seed: int = 0) -> bytes:
    """300 frames of a picture with detail at all scales that moves and turns brighter, at crf 23."""
    rng, (height, width) = np.random.default_rng(seed), SIDES
    layers = [
        F.interpolate(
            torch.from_numpy(rng.normal(size=(1, 3, *size)).astype(np.float32)),
            size=(512, 800),
            mode="bicubic",
        )
        for size in ((4, 6), (16, 25), (64, 100), (256, 400))
    ]
    picture = torch.stack(
        [layer * weight for layer, weight in zip(layers, (60, 30, 15, 8), strict=True)]
    ).sum(0)
    scene = (picture[0].permute(1, 2, 0).numpy() + 120).clip(0, 255)
    options = {"crf": "23", "preset": "fast"}
    writer = Writer(height, width, unit=Fraction(1, RATE), key_distance=key_distance, options=options)
    for number in range(LENGTH):
        top, left = int(60 + 50 * np.sin(number / 20)), int(number * 1.3)
        cut = (
            scene[top : top + height, left : left + width]
            + 10 * np.sin(number / 9)
            + rng.normal(0, 2, (*SIDES, 1))
        )
        frame = i420(cut.clip(0, 255).astype(np.uint8))
        writer.add(av.VideoFrame.from_ndarray(frame, format="yuv420p"), number)
    return writer.finished()


@cache
def time_stamps(body: bytes) -> tuple[int, ...]:
    """Those of the frames, which PyAV's users have to know before: not timed."""
    with opened(body) as packets:
        return packets.times


def seek_each(body: bytes, indices: Sequence[int]) -> np.ndarray:
    """PyAV: for each frame a seek to the key frame before it, and decoding up to the frame."""
    return _by_pyav(body, [[index] for index in indices])


def seek_once(body: bytes, indices: Sequence[int]) -> np.ndarray:
    """PyAV: one seek, and decoding of all frames up to the last."""
    return _by_pyav(body, [list(indices)])


def _by_pyav(body: bytes, runs: list[list[int]]) -> np.ndarray:
    found, times = [], time_stamps(body)
    with pyav().open(io.BytesIO(body)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        for run in runs:
            wanted = {times[index] for index in run}
            container.seek(min(wanted), stream=stream)
            for frame in container.decode(stream):
                if frame.pts in wanted:
                    found.append(frame.reformat(format="rgb24", threads=1).to_ndarray())
                if frame.pts >= max(wanted):
                    break
    return np.stack(found)


def by_decord(body: bytes, indices: Sequence[int]) -> np.ndarray:
    """decord, if it is installed."""
    import decord

    reader = decord.VideoReader(io.BytesIO(body), num_threads=1)
    frames: np.ndarray = reader.get_batch(list(indices)).asnumpy()
    return frames


def by_torchvision(body: bytes, indices: Sequence[int]) -> np.ndarray:
    """torchvision's VideoReader, which 0.28 removed."""
    from torchvision.io import VideoReader

    reader = VideoReader(torch.frombuffer(bytearray(body), dtype=torch.uint8), "video", num_threads=1)
    frames = []
    for number, frame in zip(
        range(indices[0], indices[-1] + 1), reader.seek(indices[0] / RATE), strict=False
    ):
        if number in indices:
            frames.append(frame["data"].permute(1, 2, 0).numpy())
    return np.stack(frames)


CONTENDERS: dict[str, Contender] = {
    "ours": decode_frames,
    "seek each": seek_each,
    "seek once": seek_once,
    "decord": by_decord,
    "torchvision": by_torchvision,
}


def usable(body: bytes) -> dict[str, Contender]:
    """The contenders that can be imported and give the frames of ours; the others are named."""
    indices = range(37, 37 + FRAMES * INTERVAL, INTERVAL)
    ours, found = decode_frames(body, indices), {}
    for name, contender in CONTENDERS.items():
        try:
            frames = contender(body, indices)
        except (ImportError, AttributeError, RuntimeError) as error:
            print(f"{name}: not here ({str(error).splitlines()[0]})")
            continue
        error_levels = np.abs(frames.astype(int) - ours).mean()
        if frames.shape != ours.shape or error_levels > 1:
            print(f"{name}: gives other frames ({error_levels:.1f} levels from ours on average)")
            continue
        found[name] = contender
    return found


def measure(body: bytes, rounds: int, clips: int) -> dict[str, Any]:
    """Clips per CPU second of each contender, and of a complete training sample."""
    contenders, count = usable(body), count_frames(body)
    transform = TrainClips(
        sampling=ClipSampling(frames=FRAMES, interval=INTERVAL), geometry=TrainTransform(image_size=224)
    )
    rng = np.random.default_rng(1)
    rates: dict[str, list[float]] = {name: [] for name in (*contenders, "clip")}
    for _ in range(rounds):
        starts = rng.integers(0, count - FRAMES * INTERVAL + 1, clips).tolist()
        for name, contender in contenders.items():
            began = time.process_time()
            for start in starts:
                contender(body, range(start, start + FRAMES * INTERVAL, INTERVAL))
            rates[name].append(clips / (time.process_time() - began))
        began = time.process_time()
        for position in range(clips):
            transform({"video": body, "label": 0}, DrawKey(0, position))
        rates["clip"].append(clips / (time.process_time() - began))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(rates["ours"], rates[name], strict=True))
        for name in contenders
    }
    return {"clips_s": medians, "ours_over": ratios, "bytes": len(body), "frames": count}


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--video", type=Path, help="a file in the place of those that are made up")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=10, help="of a round (default %(default)s)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.video:
        videos = {str(args.video): args.video.read_bytes()}
    else:
        videos = {f"key distance {distance}": make_video(distance) for distance in (32, 250)}
    results = {}
    for name, body in videos.items():
        found = results[name] = measure(body, args.rounds, args.clips)
        print(f"{name}: {found['frames']} frames, {found['bytes'] / 1e6:.2f} MB")
        for contender, rate in found["clips_s"].items():
            ratio = found["ours_over"].get(contender)
            print(
                f"  {contender:12s} {rate:7.1f} clips/s a core" + (f", ours x {ratio:.2f}" if ratio else "")
            )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

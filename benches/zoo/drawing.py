"""Text drawn into pictures, so that the truth is known: ppocr_rec, ppocr_cls, yolox_char."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from . import metrics
from .case import Case, Feed, Outputs
from .fetch import Store
from .imagenet import planar
from .metrics import Box
from .photos import cover, photographs
from .sentences import sentences

LINE_HEIGHT = 48
HANZI = "天地人山水火木金土日月星风云雨雪花草鸟鱼春秋东西国家"
SCENE = (344, 384)  # width, height of the pictures to find characters in
CANVAS, CANVAS_GREY = 416, 114
STRIDES = (8, 16, 32)  # of the detector's three grids


class Artist:
    """Draws with one seeded generator: the same seed gives the same pictures."""

    def __init__(self, store: Store, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.words = [text.split() for _, text in sentences(store)]
        self.latin = _latin_fonts(store)

    def pick(self, count: int) -> int:
        """One of `count` things."""
        return int(self.rng.integers(count))

    def phrase(self, shortest: int, longest: int) -> str:
        """One to four neighbouring plain words of an editorial, of a length within bounds."""
        while True:
            sentence = self.words[self.pick(len(self.words))]
            plain = [
                word for word in sentence if re.fullmatch(r"[A-Za-z\d,.$%'-]+", word, re.ASCII)
            ]
            start = self.pick(max(1, len(plain) - 3))
            text = " ".join(plain[start : start + int(self.rng.integers(1, 5))])
            if shortest <= len(text) <= longest:
                return text

    def font(self, files: Sequence[Path], smallest: int, largest: int) -> ImageFont.FreeTypeFont:
        """A random face and size."""
        file = files[self.pick(len(files))]
        return ImageFont.truetype(str(file), int(self.rng.integers(smallest, largest)))

    def colour(self, darkest: int, lightest: int) -> tuple[int, ...]:
        """A random colour."""
        return tuple(int(c) for c in self.rng.integers(darkest, lightest, 3))

    def line(self, text: str) -> Image.Image:
        """A slightly tilted line of dark text on a light ground."""
        font = self.font(self.latin, 16, 40)
        paper, ink = self.colour(150, 256), self.colour(0, 90)
        left, top, right, bottom = font.getbbox(text)
        image = Image.new("RGB", (int(right - left) + 16, int(bottom - top) + 12), paper)
        ImageDraw.Draw(image).text((8 - left, 6 - top), text, fill=ink, font=font)
        return image.rotate(self.rng.uniform(-1.5, 1.5), Image.Resampling.BICUBIC, fillcolor=paper)

    def photograph(self, image: Image.Image, noise: float, blur: float) -> np.ndarray:
        """Blurred and noisy pixels, in the order blue, green, red that these models expect."""
        soft = image.filter(ImageFilter.GaussianBlur(self.rng.uniform(0, blur)))
        pixels = np.asarray(soft, np.float32)[..., ::-1]
        strength = self.rng.uniform(1, noise)
        return np.clip(pixels + self.rng.normal(0, strength, pixels.shape), 0, 255)

    def strip(self, image: Image.Image, width: int, noise: float, blur: float) -> np.ndarray:
        """A line as the OCR models take it: 48 pixels high, -1 to 1, zeros on the right."""
        scaled = max(8, round(image.width * LINE_HEIGHT / image.height))
        image = image.resize((min(width, scaled), LINE_HEIGHT), Image.Resampling.BICUBIC)
        x = np.zeros((1, 3, LINE_HEIGHT, width), np.float32)
        x[..., : image.width] = planar(self.photograph(image, noise, blur) / 127.5 - 1)
        return x

    def scene(self, store: Store, faces: Sequence[Path]) -> tuple[Image.Image, list[Box]]:
        """Three to six outlined characters, apart from each other, on a faded photograph."""
        count, (width, height) = int(self.rng.integers(3, 7)), SCENE
        backgrounds = photographs(store).unlabelled
        photo = cover(backgrounds[self.pick(len(backgrounds))], width, height)
        image = photo.filter(ImageFilter.GaussianBlur(2))
        image = Image.blend(image, Image.new("RGB", SCENE, "white"), self.rng.uniform(0.2, 0.7))
        boxes: list[Box] = []
        while len(boxes) < count:
            character, font = HANZI[self.pick(len(HANZI))], self.font(faces, 40, 76)
            left, top, right, bottom = map(int, font.getbbox(character))
            w, h = right - left, bottom - top
            if w + 8 >= width or h + 8 >= height:
                continue
            x = int(self.rng.integers(4, width - w - 4))
            y = int(self.rng.integers(4, height - h - 4))
            around = (x - 12, y - 12, x + w + 12, y + h + 12)
            if any(metrics.overlap(around, box) for box in boxes):
                continue
            ImageDraw.Draw(image).text(
                (x - left, y - top),
                character,
                fill=self.colour(0, 100),
                font=font,
                stroke_width=2,
                stroke_fill="white",
            )
            boxes.append((x, y, x + w, y + h))
        return image, boxes


def _latin_fonts(store: Store) -> list[Path]:
    folders = [store.package("debian", key) for key in ("sans", "liberation")]
    found = [path for folder in folders for path in folder.rglob("*.ttf")]
    return sorted((path for path in found if "Narrow" not in path.name), key=lambda path: path.name)


def ppocr_rec(store: Store) -> Case:
    """PP-OCRv4 recogniser: depthwise convolutions, then transformer blocks, then CTC."""

    def draw(seed: int, count: int) -> tuple[list[str], list[Feed]]:
        artist = Artist(store, seed)
        texts = [artist.phrase(8, 22) for _ in range(count)]
        strips = [artist.strip(artist.line(text), 320, noise=40, blur=1.6) for text in texts]
        return texts, [{"x": strip} for strip in strips]

    model = store.find("wheel", "ocr", "ch_PP-OCRv4_rec_infer.onnx")
    metadata = {prop.key: prop.value for prop in onnx.load(model).metadata_props}
    alphabet = ["", *metadata["character"].splitlines(), " "]  # class 0 is CTC's blank
    texts, feeds = draw(1, 250)

    def score(outputs: Sequence[Outputs]) -> float:
        right = 0
        for text, (logits, *_) in zip(texts, outputs, strict=True):
            best = logits[0].argmax(axis=-1)
            starts = best[np.flatnonzero(np.diff(best, prepend=0))]  # repeats count once
            read = "".join(alphabet[i] for i in starts)
            right += read.replace(" ", "") == text.replace(" ", "")
        return right / len(texts)

    return Case("ppocr_rec", model, draw(2, 64)[1], feeds, score, "lines read without an error")


def ppocr_cls(store: Store) -> Case:
    """PP-OCR text direction: a small MobileNetV3 with squeeze-and-excitation."""

    def draw(seed: int, count: int) -> tuple[list[int], list[Feed]]:
        artist = Artist(store, seed)
        turned = [int(t) for t in artist.rng.integers(0, 2, count)]
        lines = [artist.line(artist.phrase(4, 14)).rotate(180 * t) for t in turned]
        return turned, [{"x": artist.strip(line, 192, noise=40, blur=1.2)} for line in lines]

    model = store.find("wheel", "ocr", "ch_ppocr_mobile_v2.0_cls_infer.onnx")
    turned, feeds = draw(3, 400)
    score = metrics.top1([{t} for t in turned])
    metric = "lines told upright or upside down"
    return Case("ppocr_cls", model, draw(4, 64)[1], feeds, score, metric)


def yolox_char(store: Store) -> Case:
    """ddddocr's YOLOX character detector: SiLU, an output of boxes and probabilities."""
    faces = sorted(store.package("debian", "hanzi").rglob("*.ttc"))

    def draw(seed: int, count: int) -> tuple[list[list[Box]], list[Feed]]:
        artist, truth, feeds = Artist(store, seed), [], []
        for _ in range(count):
            image, boxes = artist.scene(store, faces)
            x = np.full((1, 3, CANVAS, CANVAS), CANVAS_GREY, np.float32)
            x[..., : SCENE[1], : SCENE[0]] = planar(artist.photograph(image, noise=14, blur=0.9))
            truth.append(boxes)
            feeds.append({"images": x})
        return truth, feeds

    truth, feeds = draw(9, 60)
    find = _box_finder()

    def score(outputs: Sequence[Outputs]) -> float:
        return metrics.box_f1([find(raw[0]) for raw, *_ in outputs], truth)

    model = store.find("wheel", "characters", "common_det.onnx")
    return Case("yolox_char", model, draw(10, 32)[1], feeds, score, "box F1 at IoU 0.5")


def _box_finder(confident: float = 0.1, same: float = 0.45) -> Callable[[np.ndarray], list[Box]]:
    """Decodes YOLOX's rows (x, y, log w, log h, objectness, class) and drops overlapping boxes."""
    corners, sizes = [], []
    for stride in STRIDES:
        side = CANVAS // stride
        rows, columns = np.divmod(np.arange(side * side), side)
        corners.append(np.stack([columns, rows], axis=1))
        sizes.append(np.full((side * side, 1), stride))
    corner, size = np.concatenate(corners), np.concatenate(sizes)

    def find(raw: np.ndarray) -> list[Box]:
        centre, half = (raw[:, :2] + corner) * size, np.exp(raw[:, 2:4]) * size / 2
        confidence = raw[:, 4] * raw[:, 5]
        edges = np.concatenate([centre - half, centre + half], axis=1)
        kept: list[Box] = []
        for i in np.argsort(-confidence)[: np.count_nonzero(confidence > confident)]:
            left, top, right, bottom = map(float, edges[i])
            box = (left, top, right, bottom)
            if all(metrics.overlap(box, other) < same for other in kept):
                kept.append(box)
        return kept

    return find

"""Sentences of newspaper editorials, and which belong to the same article: minilm_l3."""

from __future__ import annotations

import re
import tarfile
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from .case import Case, Feed, Outputs
from .fetch import Store

LENGTH = 64
UNKNOWN, START, END = 100, 101, 102
PER_ARTICLE = 6
EVALUATED, CALIBRATED = 80, 96  # articles


@cache
def sentences(store: Store) -> list[tuple[str, str]]:
    """(article, sentence), in the order of the file."""
    archive = store.find("sdist", "editorials", "hutto_ICWSM_2014.tar.gz")
    with tarfile.open(archive) as tar:
        file = tar.extractfile("hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt")
        assert file is not None, "the ground truth is a regular file"
        lines = file.read().decode("latin-1").splitlines()
    rows = (line.split("\t") for line in lines)
    return [(row[0].partition("_")[0], row[2].strip()) for row in rows if len(row) == 3]


def wordpieces(word: str, vocabulary: Mapping[str, int]) -> list[int]:
    """The longest known piece from the left, again and again; unknown if that fails."""
    pieces: list[int] = []
    rest = word
    while rest:
        mark = "##" if pieces else ""
        length = next((n for n in range(len(rest), 0, -1) if mark + rest[:n] in vocabulary), 0)
        if not length:
            return [UNKNOWN]
        pieces.append(vocabulary[mark + rest[:length]])
        rest = rest[length:]
    return pieces


def tokenize(text: str, vocabulary: Mapping[str, int]) -> Feed:
    """BERT's uncased tokens of one sentence, padded to a fixed length."""
    letters = unicodedata.normalize("NFD", text.lower())
    plain = "".join(c for c in letters if unicodedata.category(c) != "Mn")  # without accents
    words = re.findall(r"[^\W_]+|[^\w\s]|_", plain)
    pieces = [piece for word in words for piece in wordpieces(word, vocabulary)]
    ids = [START, *pieces[: LENGTH - 2], END]
    padding = [0] * (LENGTH - len(ids))
    return {
        "input_ids": np.array([ids + padding], np.int64),
        "attention_mask": np.array([[1] * len(ids) + padding], np.int64),
    }


def minilm_l3(store: Store) -> Case:
    """paraphrase-MiniLM-L3-v2: mean pooling inside, inputs passed through as outputs."""
    listed = store.find("wheel", "vocabulary", "vocab.txt").read_text(encoding="utf-8")
    vocabulary = {word: number for number, word in enumerate(listed.splitlines())}
    articles = defaultdict(list)
    for article, text in sentences(store):
        if 40 < len(text) < 260:
            articles[article].append(text)
    groups = [texts[:PER_ARTICLE] for texts in articles.values() if len(texts) >= PER_ARTICLE]
    seen, unseen = groups[EVALUATED : EVALUATED + CALIBRATED], groups[:EVALUATED]

    def score(outputs: Sequence[Outputs]) -> float:
        vectors = np.concatenate([output[3] for output in outputs])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        likeness = vectors @ vectors.T
        np.fill_diagonal(likeness, -np.inf)
        article = np.arange(len(vectors)) // PER_ARTICLE
        return float(np.mean(article[likeness.argmax(axis=1)] == article))

    return Case(
        name="minilm_l3",
        model=store.find("wheel", "minilm", "*.onnx"),
        calibration=[tokenize(texts[0], vocabulary) for texts in seen],
        evaluation=[tokenize(text, vocabulary) for texts in unseen for text in texts],
        score=score,
        metric="nearest sentence is of the same article",
    )

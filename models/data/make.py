"""Make the data sets of this folder.

    python models/data/make.py digits           needs scikit-learn, which brings the images
    python models/data/make.py text FILE.txt    the play as a text file, from "First Citizen:" on

Both need numpy and give the same bytes each time.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
HELD_BACK_IMAGES = 360
TRAINED_TOKENS, HELD_BACK_TOKENS = 80_000, 8_000


def digits():
    """The images as uint8 [N, 1, 8, 8], 0 to 255; the last 360 are held back."""
    from sklearn.datasets import load_digits

    source = load_digits()
    images = np.round(source.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = source.target.astype(np.uint8)
    for name, part in [
        ("train", slice(None, -HELD_BACK_IMAGES)),
        ("val", slice(-HELD_BACK_IMAGES, None)),
    ]:
        np.savez_compressed(
            HERE / f"digits_{name}.npz", input=images[part], labels=labels[part]
        )


def text(path):
    """The text's bytes as u16 tokens; what follows the first 80,000 is held back."""
    tokens = np.frombuffer(Path(path).read_bytes(), np.uint8).astype("<u2")
    end = TRAINED_TOKENS + HELD_BACK_TOKENS
    tokens[:TRAINED_TOKENS].tofile(HERE / "coriolanus_train.bin")
    tokens[TRAINED_TOKENS:end].tofile(HERE / "coriolanus_val.bin")


if __name__ == "__main__":
    {"digits": digits, "text": text}[sys.argv[1]](*sys.argv[2:])

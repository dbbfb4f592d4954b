"""Makes the committed test images, with what the built-in model must say of them, and one request.

    python build_sample.py DEV.npz --model fashion.safetensors --output-dir .

DEV.npz holds test images of Fashion-MNIST as bytes `x` `[N, 28, 28]` with labels `y` `[N]`. The first
200 go into `fashion-sample.npz`, with `logits`, computed by `integer.py` and so not by the engine that
the tests compare with it; the first image, normalised, into `example.npy`.
"""

import argparse
from pathlib import Path

import numpy as np

import integer

COUNT = 200


def normalise(images):
    """Bytes `[N, 28, 28]` to the model's input `[N, 1, 28, 28]`."""
    return ((images[:, None] / 255 - 0.2860) / 0.3530).astype(np.float32)


def main():
    """Writes both files."""
    parser = argparse.ArgumentParser(description="Makes the committed test images.")
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    args = parser.parse_args()
    data = np.load(args.data)
    x, y = data["x"][:COUNT], data["y"][:COUNT]
    logits = integer.run(integer.Artifact(args.model), normalise(x))
    np.savez_compressed(args.output_dir / "fashion-sample.npz", x=x, y=y, logits=logits)
    np.save(args.output_dir / "example.npy", normalise(x[:1]))
    right = int((logits.argmax(axis=1) == y).sum())
    print(f"{len(x)} images, {right} named right; the example is of class {y[0]}")


if __name__ == "__main__":
    main()

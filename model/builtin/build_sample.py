"""Makes the committed test images: `fashion-sample.npz` and `example.npy`.

    python build_sample.py DEV.npz --output-dir .

DEV.npz holds test images of Fashion-MNIST as bytes `x` `[N, 28, 28]` with labels `y` `[N]`.
"""

import argparse
from pathlib import Path

import numpy as np

from build_fashion import normalise

COUNT = 200


def main():
    """Writes both files."""
    parser = argparse.ArgumentParser(description="Makes the committed test images.")
    parser.add_argument("data", type=Path)
    parser.add_argument("--output-dir", type=Path, required=True)
    args = parser.parse_args()
    data = np.load(args.data)
    x, y = data["x"][:COUNT], data["y"][:COUNT]
    np.savez_compressed(args.output_dir / "fashion-sample.npz", x=x, y=y)
    np.save(args.output_dir / "example.npy", normalise(x[:1]))
    print(f"{len(x)} images, {np.bincount(y)} of each class; the example is of class {y[0]}")


if __name__ == "__main__":
    main()

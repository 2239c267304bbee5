"""Deal scikit-learn's digits to two sites, each with classes that the other has not: site A 0 to 4, site B 5 to 9.

python make_site_data.py        writes a/train.npz and b/train.npz
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from feddkd.data.digits import LARGEST_VALUE, load_digits


def main() -> None:
    images, labels = (tensor.numpy() for tensor in load_digits())
    for site, classes in (("a", range(5)), ("b", range(5, 10))):
        mine = np.isin(labels, classes)
        folder = Path(site)
        folder.mkdir(exist_ok=True)
        inputs = (images[mine] / LARGEST_VALUE).astype(np.float32)
        np.savez(folder / "train.npz", inputs=inputs, labels=labels[mine])
        print(f"{folder / 'train.npz'}: {mine.sum()} images of {', '.join(map(str, classes))}")


if __name__ == "__main__":
    main()

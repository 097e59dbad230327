"""Makes a table of 569 breast tumours, whose measurements are missing here and there.

    python deploy/data/breast_cancer.py breast-cancer.csv

The rows come with scikit-learn: Breast Cancer Wisconsin (Diagnostic), by Wolberg, Street and
Mangasarian, 1995. They have no missing values, unlike what a clinic sends. So one measurement in
ten is taken out, always the same ones: which are left to chance, and say nothing about the tumour.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer

SEED = 1
MISSING = 0.1


def main(table: Path) -> None:
    """Writes the table."""
    tumours = load_breast_cancer()
    measurements = tumours.data  # [569, 30]
    missing = np.random.default_rng(SEED).random(measurements.shape) < MISSING
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*(name.replace(" ", "_") for name in tumours.feature_names), "diagnosis"])
        for values, absent, target in zip(measurements, missing, tumours.target, strict=True):
            cells = ["" if gone else value for value, gone in zip(values, absent, strict=True)]
            rows.writerow([*cells, tumours.target_names[target]])
    print(f"{table.name}: {len(measurements)} tumours, {missing.sum()} values of them missing")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

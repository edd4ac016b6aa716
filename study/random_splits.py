"""How much higher accuracies are on random splits than on the official one, with and without separate artists.

The original study tested its classifiers on a random quarter of all clips, with the test's artists also in training.
"""

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit

from study.classifiers import CLASSIFIERS, REPORTED

DRAWS = 5       # random splits of each kind


def random_splits(data):
    """The official split, and random splits of the same size.

    Parameters
    ----------
    data : Statistics

    Yields
    ------
    way : str
        ``official split``, ``artists at random`` (with all their clips) or ``clips at random``.
    training, test : ndarray of int
        Rows of the data. Validation clips take part in the random splits.
    """
    yield "official split", data.rows["training"], data.rows["test"]
    rows = np.concatenate(list(data.rows.values()))
    sizes = {"train_size": len(data.rows["training"]) / len(rows), "test_size": len(data.rows["test"]) / len(rows)}
    for way, kind, groups in (("artists at random", GroupShuffleSplit, data.artists[rows]),
                              ("clips at random", ShuffleSplit, None)):
        for learned, asked in kind(DRAWS, random_state=0, **sizes).split(rows, groups=groups):
            yield way, rows[learned], rows[asked]


def accuracies_by_split(data):
    """Test accuracy of the three classifiers that the study reports, on the official split and on random ones.

    Parameters
    ----------
    data : Statistics

    Returns
    -------
    DataFrame, one row per split
        ``split``, ``artist in training`` (share of the test clips whose artist is in training), and the accuracy of
        each classifier, 0 to 1.
    """
    found, labels = [], np.asarray(data.labels)     # scikit-learn 1.6 takes no tensors
    for way, learned, asked in random_splits(data):
        known = np.isin(data.artists[asked], data.artists[learned]).mean()
        scores = {name: CLASSIFIERS[name](0).fit(data.values[learned], labels[learned])
                  .score(data.values[asked], labels[asked]) for name in REPORTED}
        found.append({"split": way, "artist in training": known, **scores})
    return pd.DataFrame(found)

"""Tables within a Markdown file, written from the results.

A table is between two comments; the first names its content,

    <!-- table fma_small mel128_* baseline_* -->
    <!-- end -->

and ``python experiments.py table --readme README.md`` updates it from ``results/``. Instead of ``table`` (experiments
of the study) there are ``study emotify`` (the study's own table of features and networks), ``ablations fma_small
mel128_*`` (with one thing changed), ``ladder allmusic cqt_square`` (splits that leak), ``families allmusic``
(classifiers by the statistics they read) and ``variance fma_small`` (what moves a figure, and how many clips a
comparison needs).
"""

import re
from fnmatch import fnmatch
from pathlib import Path

from audio.cache import save_whole
from fma import DataError
from study.predictions import load_answers
from study.result_files import load_results
from study.rows import EXPERIMENTS, STUDY
from study.tables import ablations_table, families_table, ladder_table, load_ladder, results_table, study_table
from study.variance import variance_tables

KINDS = "study|table|ablations|ladder|families|variance"
MARKED = re.compile(rf"(<!-- ({KINDS}) (\S+)(?: ([^\n]+?))? -->\n)(?:(?!<!-- (?:{KINDS}) ).)*?(<!-- end -->)",
                    re.DOTALL)


def marked_tables(text, results_dir="results"):
    """A text with every marked table updated from the results.

    Parameters
    ----------
    text : str
        With tables between ``<!-- table DATASET NAMES -->`` and ``<!-- end -->``; names may contain ``*``. ``table``
        takes experiments of the study and baselines, ``ablations`` experiments with one thing changed, ``ladder`` the
        name of one experiment, the others none.
    results_dir : path-like

    Returns
    -------
    str
    """
    def write(match):
        begin, kind, dataset, names, end = match.groups()
        return f"{begin}\n{_table(kind, dataset, names, results_dir)}\n\n{end}"

    return MARKED.sub(write, text)


def _table(kind, dataset, names, results_dir):
    """The table of one mark."""
    if kind in ("table", "ablations", "ladder") and not names:
        raise DataError(f"<!-- {kind} {dataset} --> names no experiment: write them behind the data set, * for all")
    if kind == "ladder":
        return ladder_table(load_ladder(results_dir, dataset, names))
    results = load_results(Path(results_dir) / dataset)
    if kind == "study":
        return study_table(results)
    if kind == "families":
        return families_table(results)
    if kind == "variance":
        results = [r for r in results if r["experiment"] in STUDY]
        return variance_tables(results, load_answers(results, results_dir))
    chosen = [r for r in results if any(fnmatch(r["experiment"], name) for name in names.split())
              and (kind == "ablations" or "ablates" not in EXPERIMENTS.get(r["experiment"], {}))]
    if not chosen:
        raise DataError(f"{results_dir}/{dataset} has no result named {names}: correct the first line of the table")
    return ablations_table(chosen, results_dir) if kind == "ablations" else results_table(chosen)


def write_marked_tables(path, results_dir="results"):
    """Update the marked tables of a file."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} not found: name the file whose tables to update")
    try:
        text = marked_tables(path.read_text(encoding="utf-8"), results_dir).encode()
    except UnicodeError as error:
        raise DataError(f"{path}, or a result in it, is not UTF-8: convert it to UTF-8") from error
    save_whole(path, lambda temporary: temporary.write_bytes(text))

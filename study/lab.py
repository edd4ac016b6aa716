"""The names that the notebooks need to get from a cache to results, in one import."""

from audio.audit import audit
from dataset import FeatureDataset, JointDataset
from evaluation import largest_share
from features import cpu_count, fill_cache
from learning.runs import load_history, load_probabilities, versions
from study.comparisons import (
    best_on_validation,
    blocks_against_plain,
    choosing_on_test,
    compare_runs,
    contrast,
    contrasts,
    cqt_against_mel,
    in_words,
    layers,
    optimism,
    recorded_size,
    recurrent_against_plain,
    right_by_clip,
    shuffled_accuracy,
    step_seconds,
    surest_mistakes,
    verdicts,
    with_others,
)
from study.ensembles import ENSEMBLES, fit_weights
from study.predictions import compare_predictions, load_answers, load_predictions
from study.result_files import load_results, read_result, save_table
from study.rows import EXPERIMENTS, FURTHER, INGREDIENTS, RECIPE, STRONG, STUDY, TITLES
from study.runner import run_experiments
from study.tables import (
    ablation_pairs,
    ablations_table,
    compare_ablations,
    families_table,
    ladder_table,
    load_ladder,
    results_table,
)
from study.variance import clips_needed, variance_table
from training import build, choose_device


def introduce(name, *shown, about):
    """Print what a notebook's first cell says: the data, versions and device, and what its text is about.

    Parameters
    ----------
    name : str
        Of the data set.
    *shown
        What describes it.
    about : str
        Names of the data sets that the text was written for; on another one, that is said.
    """
    print(*shown, sep="\n")
    print(versions(), choose_device())
    if name not in about.split():
        print(f"The text is about {about.replace(' ', ' and ')}: what it says of genres, numbers and causes does not "
              f"hold for {name}.\nFigures, tables and printed lines are of {name}, unless they name other data.")

"""The names that the notebooks need to get from a cache to results, in one import."""

from audio.audit import audit
from dataset import FeatureDataset, JointDataset
from features import cpu_count, fill_cache
from learning.runs import load_history, load_probabilities, versions
from study.comparisons import (
    best_on_validation,
    blocks_against_plain,
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
    ladder_table,
    load_ladder,
    results_table,
)
from study.variance import clips_needed, variance_table
from training import build, choose_device

__all__ = [
    "ENSEMBLES", "EXPERIMENTS", "FURTHER", "INGREDIENTS", "RECIPE", "STRONG", "STUDY", "TITLES", "FeatureDataset",
    "JointDataset", "ablation_pairs", "ablations_table", "audit", "best_on_validation", "blocks_against_plain",
    "build", "choose_device", "clips_needed", "compare_ablations", "compare_predictions", "compare_runs", "contrast",
    "contrasts",
    "cpu_count", "cqt_against_mel", "fill_cache", "fit_weights", "in_words", "ladder_table", "layers",
    "load_answers", "load_history", "load_ladder", "load_predictions", "load_probabilities", "load_results",
    "optimism", "read_result", "recorded_size", "recurrent_against_plain", "results_table", "right_by_clip",
    "run_experiments", "save_table", "shuffled_accuracy", "step_seconds", "surest_mistakes",
    "variance_table", "verdicts", "versions",
]

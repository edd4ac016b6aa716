"""The figures and players that the notebooks show, in one import."""

from plots.diagrams import plot_diagram, plot_shapes
from plots.features import (
    plot_feature,
    plot_features,
    plot_grid,
    plot_normalisation,
    plot_recurrence,
    plot_relevance,
    plot_spectra,
    plot_values,
    plot_waveform,
    plot_waveforms,
    plot_windows,
)
from plots.metadata import effective_number, plot_artist_shares, plot_splits, plot_years_and_plays
from plots.players import listen, player, upload_button
from plots.predictions import plot_calibration, plot_course, plot_probabilities
from plots.results import plot_cost, plot_differences, plot_forest, plot_pairs, plot_protocols, plot_recall
from plots.runs import (
    plot_confusion,
    plot_embedding,
    plot_genre_accuracy,
    plot_history,
    plot_intervals,
    plot_panels,
    plot_roc,
    plot_roc_and_confusion,
)

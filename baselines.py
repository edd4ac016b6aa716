"""Twelve classifiers on track statistics: the accuracy to expect without a network.

    python baselines.py                         # all twelve, on fma_metadata/features.csv if it exists
    python baselines.py SVC LDA --data-dir data/emotify --repeats 3
    python baselines.py --data-dir data/emotify --only mfcc40       # fewer columns, results under a name of their own
    python baselines.py SVC LDA --data-dir data/allmusic --folds    # cross-validated by artist
    python baselines.py SVC --features mel128 vggish                # statistics of cached features instead

The statistics are FMA's features.csv, or if there is none, those that ``features.py --statistics`` computes. Results
are saved beside the networks', as ``results/<dataset>/baseline_<name>.json``. Nothing is chosen on validation; its
accuracy is only reported.
"""

import argparse
import sys

from fma import DataError, add_data_options, find_data, run_command, some
from study.classifiers import CLASSIFIERS, fit_baselines
from study.statistics import ONLY, Statistics
from study.tables import results_table


def main(argv=None):
    parser = argparse.ArgumentParser(description="Fit classifiers on track statistics and print their results.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(CLASSIFIERS)} (default: all)")
    add_data_options(parser)
    parser.add_argument("--only", choices=ONLY, help="fewer columns (mfcc40: mean and deviation of the 20 MFCC; "
                                                     "the others: one family of features)")
    parser.add_argument("--features", nargs="+", metavar="NAME", default=[],
                        help="use statistics of these cached features instead, for example mel128 vggish")
    parser.add_argument("--folds", action="store_true", help="cross-validate by artist: every clip is tested once")
    parser.add_argument("--repeats", type=int, help="seeds of classifiers that draw random numbers "
                                                    "(default: as many as the existing result has, else 1)")
    parser.add_argument("--features-dir", help="the feature cache (default: features in the data folder)")
    parser.add_argument("--runs-dir", default="runs", help="where each clip's scores are saved (default: runs)")
    parser.add_argument("--results-dir", default="results")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in CLASSIFIERS]
    if unknown:
        raise DataError(f"no classifier is named {some(unknown)}: choose from {', '.join(CLASSIFIERS)}")
    if args.only and args.features:
        raise DataError("--only selects among FMA's statistics, --features replaces them: pass one of the two")
    data = Statistics(find_data(args.data_dir), args.subset, args.features_dir, args.only, args.features)
    print(data)
    results, _ = fit_baselines(data, args.names or tuple(CLASSIFIERS), args.repeats, args.results_dir, args.runs_dir,
                               folds=args.folds)
    print("\n" + results_table(list(results.values()), seconds=True))


if __name__ == "__main__":
    sys.exit(run_command(main))

"""Model cards [1]_ of exported weights, as Markdown: what they are for, what not, and their accuracy.

References
----------
.. [1] M. Mitchell et al., "Model cards for model reporting", FAT* 2019, arXiv:1810.03993.
"""

from classifier.network import NETWORKS, clip_part
from evaluation import format_interval, largest_share
from study.tables import format_table, plain_cell

CARD = """\
# Model card: {name}

Says which of {count} genres a piece of music is of: {genres}. {use}

| | |
|:--|:--|
| network | {model[class]}, {parameters:,} parameters ([code](../{module}.py)) |
| input | `{feature}`, {shape} for {seconds:g} seconds; normalised per bin on the training clips |
| trained on | {dataset}, {learned} |
| output | logits, divided by {temperature} (fitted on {calibrated_on}), then a softmax |
| versions | {versions} |

## How well

{protocol}
**{accuracy} %** of {test[clips]} test clips {of_artists} are right (with other {units}: {interval} %), and the macro
AUC is {auc:.3f}; {balanced} % of a genre on average, and {chance} % by always naming the largest. Genre by genre, with
intervals over {units}:

{table}

A long interval, or a high figure on few {units}, says little. Of each genre (row), which is answered (column), in %:

{confusion}

**Calibration.** On test it is {sure} % sure on average, and right in {accuracy} %; the expected calibration error is
{before} % before the temperature and {after} % after{cross_fitted}. If every probability were true, it would
be {least} % on so few clips. The log loss is {loss[before]} before and {loss[after]} after. Sureness holds for music
like that of {dataset}, not for other kinds.

{none}
## What it must not be used for

* **Decisions about people**: who is paid, played, found or removed. It is wrong on {wrong:.0f} % of the test clips.
* **Facts about a piece.** A genre is what somebody called it, and says as much about a scene, a place or a market as
  about sound.
* **Music that has no genre here**: {unknown}
* **Comparing with published figures** on other splits, or on more genres.

"""

NONE = """\
**None of these** is the answer where a second, linear network on the same input finds that more probable than
{threshold}. It has learned {sounds}; clips of {controls} from the same
other collection count as known. Each clip below was judged by one that has not heard its artist, its voices or its
noises. Refused, in %, by threshold:

{table}

"folds" and "test" are clips of {dataset}: they lose their answer. Of those in {which} that keep it, {answered} % are
right ({interval}), of those that lose it {refused} % would have been. **It refuses the kinds of
sound that it has learned, and few others**: "unheard" is what it would refuse of a kind, at {threshold}, had it not
learned this kind. Speech was spoken by a synthesiser. Silence, and less than a second, get a reason, not an answer.

"""

FMA = """
## Data and licence

The audio of the [Free Music Archive](https://github.com/mdeff/fma) (Defferrard et al., ISMIR 2017) is under the
licences its artists chose, most of them Creative Commons, some without permission for commercial use or derived works;
the metadata are CC BY 4.0. No audio is in the weights or in this repository. The weights are the authors' own, under
the repository's MIT licence. Whether a network is a derived work of what it was trained on is not settled: who needs
to be sure should train on clips whose licences allow it.
"""


def model_card(name, card):
    """The model card of an export, as Markdown.

    Parameters
    ----------
    name : str
    card : dict
        As `shipping.export_run` returns it.

    Returns
    -------
    str
    """
    from training import MODELS

    test, genres, training = card["test"], card["genres"], card["training"]
    kind, args = MODELS[card["model"]["class"]], card["model"]["args"]
    by_folds, detects = card["tested_on"] == "folds", "none_of_these" in card
    shares = {"accuracy": test["accuracy"], "balanced": test["balanced_accuracy"], "sure": card["sureness"],
              "chance": largest_share(test["genres"]), **card["calibration_error"]}
    return (CARD + FMA if card["dataset"].startswith("fma_") else CARD).format_map(card | {
        **{key: f"{100 * share:.1f}" for key, share in shares.items()},
        "name": name, "count": len(genres), "genres": ", ".join(map(plain_cell, genres)),
        "use": f"`python predict.py song.mp3 {_option(name)}", "module": kind.__module__,
        "parameters": sum(p.numel() for p in kind(**args).parameters()),
        "shape": f"{args['n_bins']} × {args['n_frames']}", "seconds": clip_part(card)["seconds"],
        "learned": f"seed {training['seed']}: the training split alone, {training['epochs']} epochs"
        if "epochs" in training else
        f"all {card['clips']} clips: a logistic regression, C = {training['strength']}",
        "versions": ", ".join(f"{library} {number}" for library, number in card["versions"].items()),
        "protocol": "Every clip was tested by a network of the same kind that has learned no clip of its artist "
        "(cross-validation):" if by_folds else "The epoch was chosen on validation; the test was read after that:",
        "cross_fitted": ", each fold's fitted on the others" if by_folds else "",
        "loss": {when: f"{loss:.3f}" for when, loss in card["log_loss"].items()}, "auc": test["macro_auc"],
        "wrong": 100 - 100 * test["accuracy"], "interval": format_interval(test["interval"]),
        "of_artists": "whose artists are unknown" if test["artists"] is None else f"of {test['artists']} artists",
        "units": "clips" if test["artists"] is None else "artists",
        "table": format_table([_line(genre, row) for genre, row in test["genres"].items()],
                              ["genre", "test clips", "right %", "95 % interval", "AUC"]),
        "confusion": format_table([[genre, *(f"{100 * n / max(1, sum(counts)):.0f}" for n in counts)]
                                   for genre, counts in zip(genres, test["confusion"], strict=True)],
                                  ["genre", *genres]),
        "none": _none_of_these(card) if detects else "",
        "unknown": "what is refused was learned from few kinds; the rest gets one of the genres all the same."
        if detects else f"it gets one of the {len(genres)} all the same."})


def _line(genre, row):
    """A genre's line of the table of accuracies."""
    return [genre, row["clips"], f"{100 * row['accuracy']:.1f}" if row["clips"] else None,
            format_interval(row["interval"]), None if row["auc"] is None else f"{row['auc']:.3f}"]


def _option(name):
    """The option of predict.py that chooses a network, and when it does."""
    for key, names in NETWORKS.items():
        if name in names:
            there = "" if name == names[0] else "not "
            return f"--network {key}` uses it" + (
                f" if the encoder of {names[0]} is {there}installed." if len(names) > 1 else ".")
    return f"--weights weights/{name}` uses it."


def _none_of_these(card):
    """What the card says of the detector."""
    found = card["none_of_these"]
    table = [[row["sounds"], "known" if row["known"] else "other", row["clips"],
              *(f"{100 * share:.0f}" for share in row["refused"]),
              None if row["unheard"] is None else f"{100 * row['unheard']:.0f}"] for row in found["table"]]
    names = {known: ", ".join(plain_cell(row["sounds"]) for row in found["table"] if row["known"] is known and
                              row["sounds"] not in ("folds", "test")) for known in (True, False)}
    right = {name: "–" if share is None else f"{100 * share:.1f}" for name, share in found["right"].items()}
    columns = ["sounds", "", "clips", *map(str, found["thresholds"]), "unheard"]
    return NONE.format(
        threshold=found["threshold"], sounds=names[False], controls=names[True] or "no genre", dataset=card["dataset"],
        table=format_table(table, columns), which=card["tested_on"],
        interval=f"with other artists {format_interval(found['interval'])}", **right)

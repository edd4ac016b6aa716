"""Model cards [1]_ of exported weights, as Markdown: what they are for, what not, and their accuracy.

References
----------
.. [1] M. Mitchell et al., "Model cards for model reporting", FAT* 2019, arXiv:1810.03993.
"""

from evaluation import format_accuracy, format_interval
from study.tables import format_table, plain_cell

CARD = """\
# Model card: {name}

Says which of {count} genres a piece of music is of: {genres}. `python predict.py song.mp3` uses it{default}.

| | |
|:--|:--|
| network | {network}, {parameters:,} parameters ([code](../{module}.py)) |
| input | `{feature}`, {bins} × {frames} for {seconds}; normalised per bin on the training clips |
| trained on | {dataset}, from scratch, seed {seed}: the training split alone, {epochs} epochs |
| output | logits, divided by {temperature} (fitted on validation), then a softmax |
| versions | {versions} |

## How well

The epoch was chosen on validation; the test was read after that:
**{accuracy} %** of {clips} test clips {of_artists} are right (with other {units}: {interval} %), and the macro
AUC is {auc}. Genre by genre, with intervals over {units}:

{table}

A long interval, or a high figure on few {units}, says little.

**Calibration.** On test it is {sure} % sure on average, and right in {accuracy} %; the expected calibration error is
{before} % before the temperature and {after} % after. Sureness holds for music like that of {dataset}. It does not for
speech, noise or music of other kinds, which get a genre all the same, at times a sure one.

## What it must not be used for

* **Decisions about people**: who is paid, played, found or removed. It is wrong on {wrong} % of the test clips.
* **Facts about a piece.** A genre is what somebody called it, and says as much about a scene, a place or a market as
  about sound.
* **Music that has no genre here**: it gets one of the {count} all the same.
* **Comparing with published figures** on other splits, or on more genres.

"""

FMA = """
## Data and licence

The audio of the [Free Music Archive](https://github.com/mdeff/fma) (Defferrard et al., ISMIR 2017) is under the
licences its artists chose, most of them Creative Commons, some without permission for commercial use or derived works;
the metadata are CC BY 4.0. No audio is in the weights or in this repository. The weights are the authors' own, under
the repository's MIT licence. Whether a network is a derived work of what it was trained on is not settled: who needs
to be sure should train on clips whose licences allow it.
"""


def model_card(name, card, default=False):
    """The model card of an export, as Markdown.

    Parameters
    ----------
    name : str
    card : dict
        As `network.export_run` returns it.
    default : bool
        Whether predict.py uses this network by default.

    Returns
    -------
    str
    """
    from training import MODELS

    test, model, feature = card["test"], card["model"], card["feature_parameters"]
    rows = [[genre, r["clips"], format_accuracy({"accuracy": r["accuracy"]}) if r["clips"] else None,
             format_interval(r["interval"]), None if r["auc"] is None else f"{r['auc']:.3f}"]
            for genre, r in test["genres"].items()]
    kind, args = MODELS[model["class"]], model["args"]
    text = CARD + FMA if card["dataset"].startswith("fma_") else CARD
    return text.format(
        name=name, count=len(card["genres"]), genres=", ".join(map(plain_cell, card["genres"])),
        default=" where no other weights are named" if default else f" with `--weights weights/{name}`",
        network=model["class"], parameters=sum(p.numel() for p in kind(**args).parameters()), module=kind.__module__,
        feature=card["feature"], bins=args["n_bins"], frames=args["n_frames"],
        seconds=f"{feature['seconds']} seconds" if "seconds" in feature else
        "30 seconds" if "frames" in feature or "frames_kept" in feature else "a clip", dataset=card["dataset"],
        seed=card["training"]["seed"], epochs=card["training"]["epochs"], temperature=card["temperature"],
        versions=", ".join(f"{lib} {number}" for lib, number in card["versions"].items()),
        accuracy=format_accuracy({"accuracy": test["accuracy"]}),
        wrong=f"{100 - 100 * test['accuracy']:.0f}", clips=test["clips"],
        of_artists="whose artists are unknown" if test["artists"] is None else f"of {test['artists']} artists",
        units="clips" if test["artists"] is None else "artists",
        interval=format_interval(test["interval"]), auc=f"{test['macro_auc']:.3f}",
        table=format_table(rows, ["genre", "test clips", "right %", "95 % interval", "AUC"]),
        sure=f"{100 * card['sureness']:.1f}", before=f"{100 * card['calibration_error']['before']:.1f}",
        after=f"{100 * card['calibration_error']['after']:.1f}")

"""The study as data: every experiment is a row, with the accuracy that the original study reports."""

# feature: (FrequencyCNN, TemporalCNN, SquareCNN), as the original study reports them: the best test accuracy
# over saved epochs, in per cent.
REPORTED = {
    "cqt": (45.5, 39.3, 43.1),
    "chroma_cqt": (36.0, 32.8, 33.5),
    "chroma_cens": (31.6, 28.4, 29.9),
    "chroma_stft": (37.6, 35.1, 35.5),
    "mel_stft": (40.9, 36.8, 38.6),
    "mfcc": (None, None, None),
    "mel128": (None, None, None),
}
CNNS = {"frequency": "FrequencyCNN", "temporal": "TemporalCNN", "square": "SquareCNN"}

# A row: feature, model (its class), args (of the class), training (settings that differ from Training's
# defaults), reported (the original's accuracy, in per cent).
EXPERIMENTS = {
    f"{feature}_{short}": {"feature": feature, "model": model, "reported": reported}
    for feature, figures in REPORTED.items()
    for (short, model), reported in zip(CNNS.items(), figures, strict=True)
}
for kind, second, every in (("resnet", 42.8, 44.8), ("densenet", 45.8, 46.7)):
    for place, blocks, reported in (("second", ("basic", kind, "basic", "basic"), second), ("all", (kind,) * 4, every)):
        for feature, figure in (("cqt", reported), ("mel128", None)):
            EXPERIMENTS[f"{feature}_frequency_{kind}_{place}"] = {
                "feature": feature, "model": "FrequencyCNN", "args": {"blocks": blocks}, "reported": figure}
for model, figures in (("SequentialCRNN", (41.5, 40.1, 44.9, 43.4)), ("ParallelCRNN", (42.0, 44.9, 43.1, 41.6))):
    for k, reported in enumerate(figures):
        rnn, both = ("lstm", "gru")[k // 2], bool(k % 2)
        for feature, figure in (("cqt", reported), ("mel128", None)):
            EXPERIMENTS[f"{feature}_{model[:-4].lower()}_{rnn}{'_bi' if both else ''}"] = {
                "feature": feature, "model": model, "args": {"rnn": rnn, "bidirectional": both}, "reported": figure}
for feature, figure in (("cqt", 51.1), ("mel_stft", None), ("mel128", None)):
    EXPERIMENTS[f"{feature}_bbnn"] = {"feature": feature, "model": "BBNN", "training": {"epochs": 100},
                                      "reported": figure}
    EXPERIMENTS[f"{feature}_bbnn_paper"] = {"feature": feature, "model": "BBNN", "args": {"variant": "paper"},
                                            "training": {"epochs": 100}}

STUDY = tuple(EXPERIMENTS)      # the rows above: what the original built, on its features and on mel128

# Ablations: a row of the study with one thing changed, or restored to that of the original study.
CHANGES = {
    "linear": {"scale": "linear"},                              # amplitude or power instead of decibels
    "linear_raw": {"scale": "linear", "normalise": "nothing"},  # the input of the original study
    "one_dropout": {"args": {"dropouts": 1}},                   # before the first dense layer only
    "last_pool6": {"args": {"last_pool": 6}},                   # the original's, which ignores four of ten frames
}
ABLATED = dict.fromkeys(("cqt_frequency", "cqt_square", "mel_stft_frequency", "mel_stft_square"), list(CHANGES))
ABLATED |= dict.fromkeys(("mel128_frequency", "mel128_square"), list(CHANGES)[:3])  # 128 frames leave two to pool
ABLATED |= {"cqt_frequency_resnet_all": ["linear_raw"], "cqt_sequential_gru": ["linear_raw", "one_dropout"],
            "cqt_parallel_gru": ["linear_raw", "one_dropout", "last_pool6"],
            "mel128_sequential_gru": ["linear_raw", "one_dropout"],
            "mel128_parallel_gru": ["linear_raw", "one_dropout"]}

# Beyond the study: our own networks and training settings, and ablations of each ingredient.
RECIPE = {"epochs": 24, "batch_size": 64, "optimizer": "adamw", "lr": 3e-3, "one_cycle": True, "weight_decay": 0.05,
          "label_smoothing": 0.1, "average": 0.998, "roll": True, "equaliser_db": 8.0, "low_pass": 0.2,
          "mix_style": 0.4}
STRONG = "statistics_resnet"
EXPERIMENTS[STRONG] = {"feature": "mel128", "model": "StatisticsResNet", "args": {"width": 16}, "training": RECIPE}
EXPERIMENTS[f"{STRONG}_cqt"] = EXPERIMENTS[STRONG] | {"feature": "cqt", "training": RECIPE | {"low_pass": 0.0}}
for name, features in (("scratch", ("mel128", "mfcc_3s")), ("vggish", ("mel128", "mfcc_3s", "vggish"))):
    EXPERIMENTS[f"fusion_{name}"] = {"feature": features, "model": "Fusion", "args": {"width": 0},
                                     "training": RECIPE}        # statistics only, no ResNet
EXPERIMENTS["fusion_cqt_mel_mfcc"] = {"feature": ("cqt", "mel_stft", "mfcc"), "model": "Fusion",
                                      "training": RECIPE | {"low_pass": 0.0}}       # low_pass is for mel128 only
EXPERIMENTS["vggish_dense"] = {"feature": "vggish", "model": "Dense", "training": RECIPE | {"epochs": 40, "mixup": 1.0}}
EXPERIMENTS["musicnn_dense"] = EXPERIMENTS["vggish_dense"] | {"feature": "musicnn"}      # of audio/embeddings.py
EXPERIMENTS["fusion_musicnn"] = {"feature": ("cqt", "mel_stft", "musicnn"), "model": "Fusion", "args": {"width": 0},
                                 "training": RECIPE | {"low_pass": 0.0}}
# Tags teach genre (tag_models.py): one encoder, trained on genres alone, on genres and sub-genres, or on sub-genres and
# then taken over. What was taken over and tuned has had twice the training, hence tags_none_long.
PLAIN = {"width": 0}        # statistics only, no ResNet
TAGGED = {"feature": "mel128", "model": "EncoderClassifier", "args": PLAIN, "training": RECIPE}
EXPERIMENTS |= {
    "tags_none": TAGGED,
    "tags_none_long": TAGGED | {"training": RECIPE | {"epochs": 2 * RECIPE["epochs"]}},
    "tags_heads": TAGGED | {"model": "TwoHeads"},
    "tags_aligned": TAGGED | {"model": "CoAligned"},
    "tags_aligned_decoders": TAGGED | {"model": "CoAligned", "args": PLAIN | {"decoders": 1.0}},
    "tags_probe": TAGGED | {"args": PLAIN | {"frozen": True}, "start": "tags_aligned",
                            "training": RECIPE | {"epochs": 12, "weight_decay": 0.01}},
    "tags_tuned": TAGGED | {"start": "tags_aligned"},
    "tags_tuned_decoders": TAGGED | {"start": "tags_aligned_decoders"},
}
EXPERIMENTS["recurrence_square"] = {"feature": "recurrence", "model": "SquareCNN"}     # of audio/recurrence.py
INGREDIENTS = {
    "no_statistics": {"model": "ResNet"},
    "no_resnet": {"args": {"width": 0}},
    "no_augmentation": {"training": {"roll": False, "equaliser_db": 0.0, "low_pass": 0.0, "mix_style": 0.0},
                        "args": {"masked": 0.0}},
    "no_roll": {"training": {"roll": False}},
    "no_equaliser": {"training": {"equaliser_db": 0.0}},
    "no_low_pass": {"training": {"low_pass": 0.0}},
    "no_mix_style": {"training": {"mix_style": 0.0}},
    "no_masks": {"args": {"masked": 0.0}},
    "masks_everywhere": {"args": {"masked": 0.0}, "training": {"mask_bins": 16, "mask_frames": 16}},
    "no_smoothing": {"training": {"label_smoothing": 0.0}},
    "no_average": {"training": {"average": 0.0}},
    "mixup": {"training": {"mixup": 0.3}},
}
# Further work named by the original study, on one of its networks: five-second chunks, pitch shifts.
FURTHER = {
    "chunks": {"training": {"chunk": 107}},
    "shift_bins": {"training": {"shift_bins": 2}},              # of the CQT: semitones
    "pitch_copies": {"training": {"pitch_copies": True}},       # features.py --pitch-shift -2 -1 1 2
}
CHANGES |= INGREDIENTS | FURTHER
ABLATED[STRONG] = list(INGREDIENTS)
ABLATED["cqt_square"] = [*ABLATED["cqt_square"], *FURTHER]


def with_change(name, change):
    """The row of an experiment with one thing changed."""
    row, new = EXPERIMENTS[name], CHANGES[change]
    merged = {part: row.get(part, {}) | new[part] for part in ("args", "training") if part in new}
    return row | new | merged | {"reported": None, "ablates": name}


# Why the CQT beats mel: features that differ from one of the two in a parameter (transforms.VARIANTS).
PUZZLE = tuple(f"{feature}_{short}" for feature in ("mel84", "mel_fine", "mel84_fine", "logstft84", "cqt128")
               for short in ("frequency", "square"))
for name in PUZZLE:
    feature, short = name.rsplit("_", 1)
    EXPERIMENTS[name] = {"feature": feature, "model": CNNS[short]}

for name, changes in ABLATED.items():
    EXPERIMENTS |= {f"{name}_{change}": with_change(name, change) for change in changes}


def find_row(name):
    """The row of an experiment; None if there is none.

    Every network is also there for a feature of one's own: ``flux_square`` is SquareCNN on ``flux``. What follows a
    comma says which of its runs (`result_files.load_runs`).
    """
    name = name.split(",")[0]
    bases = [base for base in EXPERIMENTS if base.startswith(("mel128_", STRONG)) and base != f"{STRONG}_cqt"]
    for base in sorted(bases, key=len, reverse=True) if name not in EXPERIMENTS else ():
        feature = name.removesuffix(f"_{base.removeprefix('mel128_')}")
        if feature not in ("", name):
            return EXPERIMENTS[base] | {"feature": feature, "reported": None}
    return EXPERIMENTS.get(name)


def features_of(row):
    """Names of the features that a row reads."""
    return (row["feature"],) if isinstance(row["feature"], str) else row["feature"]


# make demo: one network of each family, on five seconds of each clip at a time. The slow ones read MFCCs, which have a
# fourth of the CQT's bins.
EXPERIMENTS |= {f"mfcc_{name}": EXPERIMENTS[f"cqt_{name}"] | {"feature": "mfcc", "reported": None}
                for name in ("sequential_gru", "bbnn")}
QUICK = {"epochs": 20, "one_cycle": True, "lr": 2e-3, "batch_size": 16}     # of any row
DEMO = {name: {"epochs": epochs, "batch_size": batch_size, "lr": lr, "chunk": 107} for name, epochs, batch_size, lr in (
    ("cqt_frequency", 40, 8, 2e-3), ("cqt_temporal", 40, 8, 2e-3), ("cqt_square", 60, 8, 2e-3),
    ("mfcc_sequential_gru", 60, 16, 3e-3), ("mfcc_bbnn", 30, 16, 6e-3))}        # what differs from QUICK

TITLES = {"demo": "the SYNTHETIC demo corpus: its figures say that the code runs, nothing about music",
          "fma_small": "FMA-small, official split", "emotify": "Emotify-400",
          "allmusic": "AllMusic-492"}

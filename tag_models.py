"""Networks that learn genre from a clip's tags as well, after co-aligned autoencoders (COALA) [1]_.

`CoAligned` learns from tags alone: an encoder of the clip and one of its tags are trained until each finds the other's
vector of the same clip among those of a batch. `EncoderClassifier` takes over the encoder, frozen or to be tuned.
`TwoHeads` is what to compare them with: tags as a second output of an ordinary classifier.

In training `LEARN_TAGS` are called with the tags of the clips, and return logits and a loss that is added to that of
the genres; otherwise they are networks like any other. A tag is a sub-genre of FMA, see `training_tags`.

References
----------
.. [1] X. Favory, K. Drossos, T. Virtanen, X. Serra, "COALA: co-aligned autoencoders for learning semantically enriched
   audio representations", ICML workshop on self-supervision in audio and speech, 2020, arXiv:2006.08386.
.. [2] T. Chen, S. Kornblith, M. Norouzi, G. Hinton, "A simple framework for contrastive learning of visual
   representations", ICML 2020, arXiv:2002.05709.
"""

import hashlib

import torch
from torch import nn
from torch.nn import functional

from fma import DataError, load_genres, sub_genres
from learning.runs import is_finished, load_config
from resnet_models import Encoder

LEARN_TAGS = "TwoHeads", "CoAligned"     # networks that are called with the tags of the clips in training
MAP = 32        # the spectrogram decoder restores a clip's means over so many ranges of bins and of frames


def training_tags(dataset):
    """The sub-genres of the training clips, below FMA's top level: the genres to be learned are none of them.

    Returns
    -------
    names : list of str
        Sub-genres that a training clip has, sorted.
    tags : Tensor, shape (tracks, names), float32, on the dataset's device
        1 where a training clip has a tag. Validation and test clips have none here, whatever tracks.csv says of them.

    Raises
    ------
    DataError
        If no training clip has a tag.
    """
    there = sub_genres(dataset.tracks, load_genres(dataset.data_dir))
    learned = dataset.tracks.index[dataset.rows["training"]]
    there = there[there.index.isin(learned)]
    if there.empty:
        raise DataError(f"{dataset.data_dir}/fma_metadata names no sub-genre of a training clip: tags are learned from "
                        "the column track,genres of tracks.csv and from genres.csv, as FMA has them")
    names = sorted(there.unique())
    tags = torch.zeros(len(dataset.tracks), len(names))
    tags[dataset.tracks.index.get_indexer(there.index), [names.index(name) for name in there]] = 1
    return names, tags.to(dataset.device)


def contrastive_loss(clips, tagged, tags, temperature):
    """NT-Xent [2]_: each vector is to find its partner among the vectors of a batch.

    Parameters
    ----------
    clips, tagged : Tensor, shape (batch, values)
        Vectors of the clips, and of their tags.
    tags : Tensor, shape (batch, tags)
        Clips with the same tags do not count as different from each other, and clips without any do not count.
    temperature : float
        Divides the cosines.

    Returns
    -------
    Tensor, scalar
        Mean of both directions, summed over the clips with tags.

    Examples
    --------
    >>> round(float(contrastive_loss(torch.eye(2), torch.eye(2), torch.eye(2), 1.0)), 4)    # 2 log(1 + 2 / e)
    1.1029
    """
    with torch.autocast(clips.device.type, enabled=False):      # a tenth of a cosine is a factor of e
        vectors = functional.normalize(torch.cat([clips, tagged]).float(), dim=1)       # (2 batch, values)
        cosines = vectors @ vectors.T
    has_tags, places = tags.any(1), torch.arange(len(vectors), device=tags.device)
    different = (tags[:, None] != tags).any(2) & has_tags                               # (batch, batch)
    partner = places.roll(len(tags))
    candidates = different.repeat(2, 2) | (places == partner[:, None])
    losses = functional.cross_entropy((cosines / temperature).masked_fill(~candidates, -torch.inf), partner,
                                      reduction="none")
    return (losses.view(2, -1).mean(0) * has_tags).sum()


class EncoderClassifier(nn.Module):
    """An `Encoder` of the clip and one linear layer on its normalised vector.

    Parameters
    ----------
    n_bins, n_frames, n_classes : int
        Size of the input, and number of genres.
    width, hidden : int
        Arguments of the encoder.
    frozen : bool
        The encoder stays as it is, and only the linear layer is trained: a linear probe.

    Examples
    --------
    >>> EncoderClassifier(128, n_frames=128)(torch.zeros(2, 128, 128)).shape
    torch.Size([2, 8])
    """

    def __init__(self, n_bins, n_frames=640, n_classes=8, width=16, hidden=512, frozen=False):
        super().__init__()
        encoder, self.frozen = Encoder(n_bins, n_frames, width, hidden), frozen
        self.n_values = encoder.n_values
        self.encode = nn.Sequential(encoder, nn.BatchNorm1d(encoder.n_values)).requires_grad_(not frozen)
        self.classify = nn.Linear(encoder.n_values, n_classes)

    def train(self, mode=True):
        super().train(mode)
        self.encode.train(mode and not self.frozen)         # dropout off, statistics of the norms as they were
        return self

    def forward(self, x):                                   # (batch, bins, frames)
        return self.classify(self.encode(x))                # (batch, classes)


class TwoHeads(EncoderClassifier):
    """An `EncoderClassifier` that is trained to name the tags of a clip as well: multi-task learning.

    Parameters
    ----------
    n_bins, n_frames, n_classes, width, hidden
        As of `EncoderClassifier`.
    n_tags : int
    weight : float
        Of the tags' cross entropy, which counts the tags of a clip in equal shares.
    """

    def __init__(self, n_bins, n_frames=640, n_classes=8, n_tags=105, weight=1.0, **given):
        super().__init__(n_bins, n_frames, n_classes, **given)
        self.name_tags, self.weight = nn.Linear(self.n_values, n_tags), weight

    def forward(self, x, tags=None):                        # (batch, bins, frames), (batch, tags)
        vectors = self.encode(x)
        if tags is None:
            return self.classify(vectors)
        shares = tags / tags.sum(1, keepdim=True).clamp(min=1)      # of a clip without tags all are 0, and so its loss
        return self.classify(vectors), self.weight * functional.cross_entropy(self.name_tags(vectors).float(), shares,
                                                                              reduction="sum")


class CoAligned(EncoderClassifier):
    """Encoders of a clip and of its tags, aligned by `contrastive_loss` [1]_.

    No gradient of the genres reaches the encoders. The linear layer is trained beside them, on vectors that it does not
    change, so its accuracy on validation says which epoch's encoder is best.

    Parameters
    ----------
    n_bins, n_frames, n_classes, width, hidden
        As of `EncoderClassifier`.
    n_tags : int
    size : int
        Values of the vectors that are aligned: a linear projection of the clip's, and the tag encoder's.
    temperature : float
    decoders : float
        Weight of the two reconstructions that make autoencoders of the encoders: the mean squared error of the
        spectrogram, reduced to 32 × 32 means, and the binary cross entropy of the tags; 0: no decoders.
    """

    def __init__(self, n_bins, n_frames=640, n_classes=8, n_tags=105, size=128, temperature=0.1, decoders=0.0, **given):
        super().__init__(n_bins, n_frames, n_classes, **given)
        self.project, self.temperature, self.decoders = nn.Linear(self.n_values, size), temperature, decoders
        self.encode_tags = nn.Sequential(nn.Linear(n_tags, 512), nn.ReLU(), nn.Dropout(0.25), nn.Linear(512, size))
        if decoders:
            self.decode = nn.Sequential(nn.Linear(self.n_values, 1024), nn.Unflatten(1, (64, 4, 4)), *upsample(64, 32),
                                        *upsample(32, 16), nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Flatten(1, 2))
            self.decode_tags = nn.Sequential(nn.ReLU(), nn.Linear(size, n_tags))

    def forward(self, x, tags=None):                        # (batch, bins, frames), (batch, tags)
        vectors = self.encode(x)                            # (batch, values)
        logits = self.classify(vectors.detach())
        if tags is None:
            return logits
        tagged = self.encode_tags(tags)                     # (batch, size)
        loss = contrastive_loss(self.project(vectors), tagged, tags, self.temperature)
        if self.decoders:
            means = functional.adaptive_avg_pool2d(x, MAP)                              # (batch, 32, 32)
            loss = loss + self.decoders * (self.decode(vectors).float() - means).square().mean((1, 2)).sum()
            named = self.decode_tags(tagged).float()
            wrong = functional.binary_cross_entropy_with_logits(named, tags, reduction="none").mean(1)
            loss = loss + self.decoders * (wrong * tags.any(1)).sum()
        return logits, loss

    @torch.no_grad()
    def tag_cosines(self, x):
        """How near each tag is to each clip: Tensor (batch, tags), cosines of their vectors."""
        tags = self.encode_tags(torch.eye(self.encode_tags[0].in_features, device=x.device))
        return functional.normalize(self.project(self.encode(x)), dim=1) @ functional.normalize(tags, dim=1).T


def upsample(n_in, n_out):
    """A transposed convolution that doubles the map, batch norm and ReLU."""
    return nn.ConvTranspose2d(n_in, n_out, 4, 2, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()


def take_encoder(model, run_dir, data, new_run):
    """Set the encoder of an `EncoderClassifier` to that of a run, unless the training to come (`new_run`) is finished.

    A DataError says that the run is not finished, or that its `data` (fingerprints) are not those of the training to
    come. Returns a hash of the run's weights: sixteen hexadecimal digits.
    """
    from safetensors.torch import load

    if is_finished(new_run):
        return load_config(new_run).get("start")
    if not is_finished(run_dir):
        raise DataError(f"{run_dir} is not finished: train {run_dir.parts[-2]} with the same seed and data first")
    if not data.items() <= (load_config(run_dir).get("data") or {}).items():
        raise DataError(f"{run_dir} was trained on other data: delete it and train it again")
    content = (run_dir / "model.safetensors").read_bytes()
    model.encode.load_state_dict({name.removeprefix("encode."): value for name, value in load(content).items()
                                  if name.startswith("encode.")})
    return hashlib.sha256(content).hexdigest()[:16]

"""Predict genres with a trained network, averaged over chunks if it was trained on chunks."""

import torch
import torch.distributed as dist

from learning.augmentation import evenly_spaced_chunks
from learning.devices import inference_autocast, world


@torch.no_grad()
def predict(model, dataset, rows, precision="float32", chunk=0, batch_size=128):
    """Class probabilities of some rows; each process computes its share, and all get the result.

    Parameters
    ----------
    precision : str
        Of the training; float32 takes its place where the device does not multiply it fast.
    chunk : int
        Frames that the network learned from: the logits of such chunks are averaged over a clip. 0: the whole clip.

    Returns
    -------
    probabilities : Tensor on the CPU, shape (len(rows), classes), float32
    """
    rank, size = world()
    model.eval()
    rows = torch.as_tensor(rows, device=dataset.device)
    out = torch.zeros(len(rows), len(dataset.genres), device=dataset.device)
    for part in torch.arange(len(rows), device=dataset.device)[rank::size].split(batch_size):
        with inference_autocast(precision, dataset.device):
            out[part] = clip_logits(model, dataset.batch(rows[part])[0], chunk).softmax(1)
    if size > 1:
        dist.all_reduce(out)
    return out.cpu()


def clip_logits(model, x, chunk=0):
    """Logits of whole clips, averaged over their chunks if there are any: Tensor (batch, classes), float32."""
    if not chunk:
        return model(x).float()
    chunks = evenly_spaced_chunks(x, chunk)                 # (batch, chunks, bins, chunk)
    return model(chunks.flatten(0, 1)).float().view(len(x), chunks.shape[1], -1).mean(1)


def score(model, dataset, split, precision="float32", chunk=0):
    """Cross entropy and accuracy of a network on a split."""
    rows = dataset.rows[split]
    probabilities, labels = predict(model, dataset, rows, precision, chunk), dataset.labels[rows].cpu()
    picked = probabilities.gather(1, labels[:, None]).clamp(min=1e-12)
    return float(-picked.log().mean()), float((probabilities.argmax(1) == labels).float().mean())

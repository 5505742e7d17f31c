"""The masked diffusion objective: what is hidden, who sees whom, how much a slot weighs, how losses are averaged.

Read in this order: ``draws`` (noise by counter), ``forward`` (what is hidden), ``weights`` (w of a slot), ``views``
(what rows see), ``loss`` (the network's part).

Shapes: B canvases of a micro-batch, G of the global batch, N positions, K blocks (paths, then the summary), V words.
"""

from nap_trainer.objective.forward import DeviceBatch, ForwardProcess, Masked
from nap_trainer.objective.loss import DiffusionLoss
from nap_trainer.objective.views import View, Views

__all__ = ["DeviceBatch", "DiffusionLoss", "ForwardProcess", "Masked", "View", "Views"]

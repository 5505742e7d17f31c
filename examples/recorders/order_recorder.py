"""Record the decoding order of LLaDA's or Fast-dLLM's own loop, for `nap metrics`.

    from order_recorder import OrderRecorder

    recorder = OrderRecorder(model, mask_id=126336)
    out = generate(model, prompt, steps=128, ...)        # LLaDA's generate, or Fast-dLLM's with either cache
    recorder.save("order.json", out)                     # then: nap metrics order.json

It changes nothing in their code: a hook reads the ids that each call of the network is given. What was masked at one
call and is not at the next was committed in between. Row 0 of a batch is recorded; with classifier-free guidance that
is the conditional row.
"""

from __future__ import annotations

import json
from typing import Any


class OrderRecorder:
    """Hangs on a model until `save`; `mask_id` is 126336 for LLaDA, 151666 for Dream."""

    def __init__(self, model: Any, mask_id: int) -> None:
        self.mask_id, self.masked, self.slots = mask_id, None, None
        self.steps: list[list[int]] = []
        self.hook = model.register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """One call of the network: the whole canvas, a block of it (dual cache) or its tail (prefix cache)."""
        ids = (args[0] if args else kwargs["input_ids"])[0].tolist()
        if self.masked is None:
            self.size, self.masked = len(ids), {i for i, token in enumerate(ids) if token == self.mask_id}
            self.slots = sorted(self.masked)
        where = kwargs.get("replace_position")
        given = range(self.size - len(ids), self.size) if where is None else where[0].nonzero()[:, 0].tolist()
        self.take(dict(zip(given, ids, strict=True)))

    def take(self, tokens: dict[int, int]) -> None:
        """What of the masked set has a token now was committed by the call before."""
        committed = sorted(at for at in self.masked if tokens.get(at, self.mask_id) != self.mask_id)
        self.masked -= set(committed)
        if committed:
            self.steps.append(committed)

    def save(self, file: str, output: Any) -> None:
        """Add the last step from what the loop returned, write the order, and let go of the model."""
        self.take(dict(enumerate(output[0].tolist())))
        self.hook.remove()
        with open(file, "w") as stream:
            json.dump({"slots": self.slots, "steps": self.steps}, stream)

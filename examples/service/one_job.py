"""One job: submit it, watch its canvas, read the answer. Start a server first: `nap serve`."""

from __future__ import annotations

import sys

from nap_runtime import Client, DecodeConfig
from nap_runtime.service.answers import Finished, Update

QUESTION = "A shirt costs $50 and is on sale for 20% off. What is the final price?"


def main(address: str | None = None) -> None:
    with Client(address) as client:
        job = client.submit(QUESTION, DecodeConfig(steps=33), labels={"example": "one"})
        print("job", job.id)
        for event in client.watch(job.id):  # goes on where it was if the server is restarted meanwhile
            if isinstance(event.body, Update):
                for path, text in event.body.texts.items():
                    print(f"step {event.body.last:>2}  {'summary' if path is None else f'path {path + 1}'}  {text}")
            elif isinstance(event.body, Finished) and event.body.result is not None:
                print("answer", event.body.result.answer)


if __name__ == "__main__":
    main(*sys.argv[1:2])

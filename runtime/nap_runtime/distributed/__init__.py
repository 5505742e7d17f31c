"""How workers talk: communicators (in-process and torch.distributed) and the exchanges built on them."""

"""One device's think-blocks: what a worker is given, its step loop, its reports."""

from nap_runtime.worker.denoiser import Denoiser, prepare
from nap_runtime.worker.loop import BlockWorker
from nap_runtime.worker.reporting import Report
from nap_runtime.worker.task import Outcome, Resume, Task

__all__ = ["BlockWorker", "Denoiser", "Outcome", "Report", "Resume", "Task", "prepare"]

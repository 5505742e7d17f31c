"""One device's think-blocks: what a worker is given, its step loop, its reports."""

from nap_runtime.worker.loop import BlockWorker, Denoiser, Outcome, Resume, Task
from nap_runtime.worker.reporting import Report

__all__ = ["BlockWorker", "Denoiser", "Outcome", "Report", "Resume", "Task"]

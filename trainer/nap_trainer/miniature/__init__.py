"""The paper's result in miniature: arms, one development search, one test, statistics, and the page that shows them.

Read in this order: ``arms`` (what is compared), ``study`` (sizes, grid, priorities), ``driver`` (what runs, resumably),
``decoding`` (many canvases through the runtime), ``grading``, ``stats``, ``report``. The plan that was fixed before any
run is ``docs/study-plan.md``.
"""

"""How fast it is, here: ways to do the same work, timed in turn on this machine, and told as ratios.

A figure alone flatters: the same disk gave 0.4 and 2.5 GB/s in one hour. So each way is timed beside its
baselines in the same rounds, the order changes from round to round, fsync is inside what is timed, and the
content is verified outside of it. Nothing here knows how snapshots are moved.

Plan: `ways.py` says what a way is, `rounds.py` times them, `comparison.py` does the arithmetic, `report.py`
puts comparisons and the machine (`machine.py`) together, as JSON, `table.py` and `plot.py` for people.
`content.py` makes what is moved and verifies it, `cache.py` says what the page cache holds,
`neighbour.py` keeps the process busy.
"""

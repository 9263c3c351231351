"""How fast it is, here: ways to do the same work, timed in turn on this machine, and told as ratios.

A figure alone flatters: the same disk gave 0.4 and 2.5 GB/s in one hour. So each way is timed beside its
baselines in the same rounds, the order changes from round to round, fsync is inside what is timed, and the
content is verified outside of it, by code that is not what is measured.

Plan, from the inside out. What knows nothing of snapshots: `ways.py` says what a way is, `rounds.py` times
them, `comparison.py` does the arithmetic, `report.py` puts comparisons and the machine (`machine.py`)
together, as JSON, `table.py` and `plot.py` for people. `neighbour.py` keeps the process busy.

What is moved: `content.py` makes it and verifies it, `lmdb_content.py` does so in a store, `cache.py` has the
page cache hold it or not.

Where: `stage.py` has the files, and the two processes of the other side. `child.py` is how they are told what
to do, `hardware.py` is the one that writes and sends and does no more, `receiver.py` the one that receives.

The ways: `saves.py` and `walks.py` are ours, `python_ways.py` and `command_ways.py` what people have without
us. `suite.py` is what `snapstore bench` runs of all that.
"""

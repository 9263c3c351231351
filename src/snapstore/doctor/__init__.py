"""What is wrong with a directory of snapshots, or with what it stands on, and what to change.

`examine(path)` looks and changes nothing, beside a running node too; `treat(path)` sweeps as an opening
of the directory does. Nothing here prints, and no network is known.

Plan: `contents.py` says what lies in the directory, `snapshots.py` what of it is stored and sound,
`leftovers.py` what others left behind, `mount.py` which file system it is on, `room.py` whose it is and
how full, `probes.py` which system calls work, `pace.py` how fast it is; each gives findings,
`finding.py`, and `examination.py` puts them together. `explanation.py` tells all of one snapshot,
`image_kind.py` which store made its bytes.
"""

from snapstore.doctor.examination import Examination, examine
from snapstore.doctor.explanation import Explanation, explain
from snapstore.doctor.finding import Finding, Level
from snapstore.doctor.treatment import Treatment, treat

__all__ = ["Examination", "Explanation", "Finding", "Level", "Treatment", "examine", "explain", "treat"]

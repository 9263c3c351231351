"""`python -m snapstore.testing.power_cut`: the long run with snapstore's own saver, and the replay of a find.

Arguments in, lines and an exit status out: 0 nothing lost, 1 violations, 2 wrong arguments, 3 not
possible on this machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from snapstore.testing.power_cut.errors import PowerCutUnavailable
from snapstore.testing.power_cut.filesystems import FILE_SYSTEMS
from snapstore.testing.power_cut.harness import PowerCut, PowerCutReport
from snapstore.testing.power_cut.own_saver import check_directory, save_and_purge
from snapstore.testing.power_cut.recording import Recording
from snapstore.testing.power_cut.states import CrashState


def main(arguments: list[str] | None = None) -> int:
    """Run one file system, or replay one state; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.replay:
            recording, state = options.replay
            return _replay(Path(recording), CrashState.from_text(state))
        report = PowerCut(
            options.filesystem, atom_size=options.atom_size, jobs=options.jobs, keep=options.keep
        ).run(
            save_and_purge,
            check_directory,
            states=options.states,
            seed=options.seed,
            progress=_print_progress,
        )
    except PowerCutUnavailable as error:
        print(error, file=sys.stderr)
        return 3
    print(report)
    if report.violations:
        print("To see one again: --replay RECORDING STATE")
    return 1 if report.violations else 0


def _replay(recording: Path, state: CrashState) -> int:
    problems = PowerCut(Recording.kept(recording).file_system.name).replay(recording, state, check_directory)
    print(*problems or ["nothing is wrong"], sep="\n")
    return 1 if problems else 0


def _print_progress(report: PowerCutReport) -> None:
    print(
        f"{report.filesystem}: {report.distinct} states, {len(report.violations)} violations,"
        f" {report.elapsed_s:.0f} s",
        file=sys.stderr,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m snapstore.testing.power_cut", description=__doc__)
    parser.add_argument("--filesystem", choices=FILE_SYSTEMS, default="ext4")
    parser.add_argument("--states", type=int, default=2000, help="distinct crash states to check")
    parser.add_argument("--seed", type=int, help="draws the states; printed if not given")
    parser.add_argument("--atom-size", type=int, default=4096, help="bytes that a disk writes as a whole")
    parser.add_argument("--jobs", type=int, help="recordings looked through at once; one per processor")
    parser.add_argument(
        "--keep", type=Path, default=Path("power-cut-found"), help="directory for recordings with violations"
    )
    parser.add_argument("--replay", nargs=2, metavar=("RECORDING", "STATE"), help="look at one state again")
    return parser


if __name__ == "__main__":
    sys.exit(main())

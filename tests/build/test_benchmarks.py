# Copyright: the authors of this file, see git log
#
# This work is licensed under the terms of the GNU GPL, version 2 or later.
# See the COPYING file in the top-level directory.
"""docs/benchmarks.rst is what the results that are kept give."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPOSITORY / "scripts"))

# pylint: disable=wrong-import-position
from bench import compare, page, plots, pristine  # noqa: E402
from bench import render, results, tables  # noqa: E402
from bench.formula import GIB, MIB, TIB, Flavour, guess  # noqa: E402
from bench.measurement import IMPOSSIBLE, Sample  # noqa: E402
from bench.results import Figure, Results  # noqa: E402

AGAIN = "run make bench-page"
KEPT = REPOSITORY / page.RESULTS
# How far off the formula may be
WITHIN = 0.05


class Page(unittest.TestCase):
    """What is made of the results."""

    def setUp(self) -> None:
        self.maxDiff = None
        self.results = results.load(KEPT)

    def test_page(self) -> None:
        self.assertEqual((REPOSITORY / page.PAGE).read_text("utf-8"),
                         page.text(self.results), AGAIN)

    def test_readme(self) -> None:
        text = (REPOSITORY / page.README).read_text("utf-8")
        self.assertEqual(text, page.readme(text, self.results), AGAIN)

    def test_plots(self) -> None:
        text = (REPOSITORY / page.PAGE).read_text("utf-8")
        names = re.findall(r"^\.\. image:: benchmarks/(\S+)$", text, re.M)
        self.assertTrue(names)
        self.assertEqual(
            sorted([*names, KEPT.name]),
            sorted(path.name for path in KEPT.parent.iterdir()))
        for name in names:
            self.assertIn(plots.MADE_OF + results.digest(KEPT),
                          (KEPT.parent / name).read_text("utf-8"),
                          f"{name}: {AGAIN}")

    def test_about(self) -> None:
        for file in (KEPT.parent / "kernel-memory.svg", REPOSITORY / page.PAGE):
            text = file.read_text("utf-8")
            for value in (self.results.about["machine"]["kernel"],
                          self.results.about["machine"]["kvm"],
                          self.results.about["subjects"][0]["version"]
                          .split()[0]):
                self.assertIn(value, text)


class Claims(unittest.TestCase):
    """What the results have to show."""

    def setUp(self) -> None:
        self.results = results.load(KEPT)

    def test_complete(self) -> None:
        self.assertEqual(self.results.about["failures"], [])
        self.assertEqual({figure.measurement for figure in self.results},
                         set(tables.SECTIONS))
        version = self.results.about["subjects"][-1]["version"]
        self.assertEqual(self.results.subjects,
                         [f"stock {version}, off", f"stock {version}, on",
                          "off", "on"])
        for figure in self.results:
            self.assertTrue(figure.values or figure.reason, figure)

    def test_formula_holds(self) -> None:
        cases = 0
        for figure in self.results:
            # What a QEMU takes anyhow is more than a part of less.
            if (figure.metric == "kernel" and figure.values
                    and figure.predicted and figure.predicted > 64 * MIB
                    and not self.results.dynamic(figure.subject)):
                cases += figure.measurement == "nested"
                self.assertLess(abs(figure.median / figure.predicted - 1),
                                WITHIN, figure)
        self.assertGreaterEqual(cases, 8)

    def test_at_or_ahead_in_memory(self) -> None:
        for peer in self.results.subjects:
            if peer in ("on", "off"):
                continue
            for one in compare.compare(self.results, "on", peer):
                if one.subject.metric == "kernel":
                    self.assertFalse(one.behind, one)


class Figures(unittest.TestCase):
    """Small things that the page is made of."""

    @staticmethod
    def figure(*values: float, unit: str = "bytes") -> Figure:
        return Figure("memory", "on", {}, "kernel", unit, list(values))

    def test_formula(self) -> None:
        self.assertEqual(Flavour(rmap=True).bytes(TIB),
                         2 * GIB + 4 * MIB + 8192 + 512 * MIB
                         + 2 * MIB + 4096)
        self.assertEqual(Flavour(rmap=False, spaces=2).bytes(TIB),
                         2 * (514 * MIB + 4096))
        self.assertEqual(Flavour(rmap=True).dirty_log(TIB), 64 * MIB)
        for flavour in (Flavour(rmap, tracking) for rmap in (False, True)
                        for tracking in (False, True)):
            size = flavour.bytes(64 * GIB)
            self.assertEqual(guess(64 * GIB, size + 200 * 1024), flavour)

    def test_statistics(self) -> None:
        figure = self.figure(5.0, 1.0, 2.0, 3.0, 1000.0)
        self.assertEqual(figure.median, 3.0)
        self.assertEqual(figure.spread, (2.0, 5.0))
        self.assertEqual(self.figure(7.0).spread, (7.0, 7.0))

    def test_cells(self) -> None:
        self.assertEqual(tables.cell(None), "")
        self.assertEqual(tables.cell(self.figure(2571.4 * MIB)), "2571 MiB")
        self.assertEqual(tables.cell(self.figure(2.5 * MIB)), "2.5 MiB")
        self.assertEqual(tables.cell(self.figure(-4096.0)), "0")
        self.assertEqual(tables.size_text(16 * TIB), "16 TiB")
        self.assertEqual(tables.size_text(40.09 * GIB), "40.1 GiB")
        out = Figure("memory", "off", {}, "kernel", "bytes",
                     predicted=40.09 * GIB, reason="too large")
        self.assertEqual(tables.cell(out), "(40.1 GiB)")
        self.assertEqual(
            tables.cell(self.figure(1e-3, 2e-3, 3e-3, unit="s"), True),
            "2.0 ms (1.5 to 2.5 ms)")
        out = Figure("start", "off", {}, "start", "s",
                     reason=f"{IMPOSSIBLE}: too large")
        self.assertEqual(tables.cell(out), IMPOSSIBLE)
        self.assertEqual(
            tables.cell(self.figure(9e-4, 9.2e-4, 1.4e-3, unit="s"), True),
            "920 µs (910 µs to 1.2 ms)")

    def compare(self, ours: tuple[float, ...], theirs: tuple[float, ...]
                ) -> compare.Comparison:
        return compare.Comparison("what", self.figure(*ours),
                                  self.figure(*theirs))

    def test_behind(self) -> None:
        gib = float(GIB)
        self.assertTrue(self.compare((2 * gib,), (gib,)).behind)
        self.assertEqual(self.compare((2 * gib,), (gib,)).text(), "2.00 *")
        self.assertFalse(self.compare((gib,), (2 * gib,)).behind)
        # Less than noise
        self.assertFalse(self.compare((1.04 * gib,), (gib,)).behind)
        # The spread is larger than the difference.
        self.assertFalse(self.compare((gib, 2 * gib, 3 * gib),
                                      (gib, 1.2 * gib, 3 * gib)).behind)
        # Too little to matter
        small = self.compare((300.0 * 1024,), (1024.0,))
        self.assertFalse(small.behind)
        self.assertEqual(small.ratio, 1.0)
        self.assertEqual(self.compare((gib,), (0.0,)).text(), "of 0")

    def test_markup(self) -> None:
        table = tables.Table(["a", "b"], [["1", "2 *"], ["", "3"]])
        self.assertEqual(render.markdown(table),
                         "| a | b |\n| --- | --- |\n| 1 | 2 * |\n|  | 3 |\n")
        self.assertEqual(render.rst(table),
                         ".. list-table::\n   :header-rows: 1\n\n"
                         "   * - a\n     - b\n   * - 1\n     - 2 \\*\n"
                         "   * -\n     - 3\n")

    def test_left_out_is_kept(self) -> None:
        found = Results({"subjects": []})
        found.add("memory", "off", {"size": TIB},
                  Sample("kernel", "bytes", None, {"plugged": "0"}, 1.0,
                         "too large"))
        figure = found.find("memory", "kernel", "off", size=TIB, plugged="0")
        assert figure is not None
        self.assertIsNone(figure.median)
        self.assertEqual((figure.predicted, figure.reason),
                         (1.0, "too large"))


CONFIGURE = """\
#!/bin/sh
echo "$@" >>../configured
cat >build.ninja <<END
rule copy
  command = cp \$in \$out
build qemu-system-x86_64: copy ../qemu/$1
END
"""


class Pristine(unittest.TestCase):
    """The QEMU without the series is built once."""

    def setUp(self) -> None:
        # pylint: disable=consider-using-with
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.build = Path(directory.name)
        self.configured = self.build / pristine.DIRECTORY / "configured"
        source = self.build / "qemu"
        source.mkdir()
        (source / "configure").write_text(CONFIGURE, "utf-8")
        (source / "configure").chmod(0o755)
        (source / "file").write_text("without", "utf-8")
        git = ["git", "-C", str(source), "-c", "user.name=x",
               "-c", "user.email=x@y"]
        for command in (["init", "-q"], ["add", "."],
                        ["commit", "-q", "-m", "x"], ["tag", "debian"]):
            subprocess.run([*git, *command], check=True)
        (source / "file").write_text("with", "utf-8")
        subprocess.run([*git, "commit", "-q", "-a", "-m", "y"], check=True)
        self.link = Path("qemu-bundle") / "share" / "bios"
        self.arguments("file")

    def arguments(self, text: str) -> None:
        """What QEMU's configure was given."""
        (self.build / "qemu-configure-arguments").write_text(
            f"{text}\n", "utf-8")
        link = self.build / "qemu-build" / self.link
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to("/firmware/bios")

    def test_build(self) -> None:
        for _turn in range(2):
            binary = Path(pristine.qemu(self.build))
            self.assertEqual(binary.read_text("utf-8"), "without")
            self.assertEqual(self.configured.read_text("utf-8"), "file\n")
            self.assertEqual(str((binary.parent / self.link).readlink()),
                             "/firmware/bios")
        self.arguments("file\n--more")
        pristine.qemu(self.build)
        self.assertEqual(self.configured.read_text("utf-8"), "file --more\n")

    def test_failure(self) -> None:
        self.arguments("nothing")
        for _turn in range(2):
            with self.assertRaisesRegex(pristine.BuildError,
                                        "ninja failed, see .*/log"):
                pristine.qemu(self.build)


if __name__ == "__main__":
    unittest.main()

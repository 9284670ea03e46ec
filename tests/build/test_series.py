# Copyright: the authors of this file, see git log
#
# This work is licensed under the terms of the GNU GPL, version 2 or later.
# See the COPYING file in the top-level directory.
"""The series there and back: export and format."""

from __future__ import annotations

from pathlib import Path

from sandbox import AUTHOR, SandboxTest, diff_of_line, mail, write

EXPORT = "scripts/series/export"
FORMAT = "scripts/series/format"


class Export(SandboxTest):
    def setUp(self) -> None:
        super().setUp()
        self.configure()

    def test_of_an_unchanged_series_changes_nothing(self) -> None:
        # The patches of the sandbox are written by hand.
        self.succeed(EXPORT)
        before, head = self.patches(), self.git("rev-parse", "HEAD")
        self.succeed(EXPORT)
        self.assertEqual(self.patches(), before)
        self.assertEqual(self.git("rev-parse", "HEAD"), head)

    def test_commit_becomes_a_patch(self) -> None:
        tree_with = "Why: because é.\n\nSigned-off-by: Ann <ann@x.org>"
        subject = ("mem: third, whose subject is so long that a mail has to "
                   "fold it into two lines")
        self.edit_core(20, "third")
        self.git("commit", "--quiet", "-am", f"{subject}\n\n{tree_with}")
        tree = self.git("rev-parse", "HEAD^{tree}")
        self.succeed(EXPORT)
        self.assertEqual(
            (self.root / "patches" / "series").read_text().splitlines(),
            ["# The order counts", "0001-mem-first.patch",
             "0002-mem-second.patch",
             "0003-mem-third-whose-subject-is-so-long-that-a-mail-has-t"
             ".patch"])
        self.succeed("make", "distclean")
        self.configure()
        self.assertEqual(self.git("rev-parse", "HEAD^{tree}"), tree)
        self.assertEqual(self.git("show", "-s", "--format=%B").strip(),
                         f"{subject}\n\n{tree_with}")

    def test_new_file_moves_to_the_repository(self) -> None:
        added = self.qemu / "tests" / "unit" / "test-new.c"
        write(added, "new test\n")
        added.chmod(0o755)
        self.git("add", "tests")
        self.edit_core(20, "third")
        self.git("commit", "--quiet", "-am", "mem: third\n\nWhy.")
        self.succeed(EXPORT)
        moved = self.root / "tests" / "unit" / "test-new.c"
        self.assertEqual(moved.read_text(), "new test\n")
        self.assertTrue(moved.stat().st_mode & 0o100)
        self.assertTrue(added.is_symlink())
        self.assertEqual(added.read_text(), "new test\n")
        text = (self.root / "patches" / "0003-mem-third.patch").read_text()
        self.assertIn("---\nAdds: tests/unit/test-new.c\n\ndiff", text)
        self.assertNotIn("new test", text)
        self.succeed("./configure")

    def test_link_replaced_by_a_file(self) -> None:
        # As sed -i and some editors do.
        file = self.qemu / "hw" / "mem" / "new.c"
        file.unlink()
        write(file, "edited\n")
        self.fail_with(["hw/mem/new.c"], EXPORT)
        self.git("commit", "--quiet", "--all", "--fixup=HEAD^")
        self.succeed("git", "-C", str(self.qemu), "rebase", "--quiet",
                     "--autosquash", "-i", "debian",
                     env=AUTHOR | {"GIT_SEQUENCE_EDITOR": "true"})
        self.succeed(EXPORT)
        self.assertTrue(file.is_symlink())
        self.assertEqual((self.root / "hw" / "mem" / "new.c").read_text(),
                         "edited\n")

    def test_refuses_edits(self) -> None:
        self.edit_core(20, "edited")
        self.fail_with(["hw/mem/core.c", "not committed"], EXPORT)

    def test_refuses_when_patches_changed(self) -> None:
        write(self.root / "patches" / "0002-mem-second.patch",
              mail("mem: second", diff_of_line(30, "second, changed")))
        self.edit_core(20, "mine")
        self.git("commit", "--quiet", "-am", "mem: third\n\nWhy.")
        before = self.patches()
        self.fail_with(["patches/ ", "git stash"], EXPORT)
        self.assertEqual(self.patches(), before)

    def test_refuses_a_commit_of_nothing_but_added_files(self) -> None:
        file = self.qemu / "hw" / "mem" / "new.c"
        file.unlink()
        write(file, "edited\n")
        self.git("commit", "--quiet", "-am", "mem: third\n\nWhy.")
        self.fail_with(["mem: third", "squash"], EXPORT)

    def test_refuses_to_overwrite_a_file(self) -> None:
        write(self.root / "hw" / "mem" / "other.c", "the repository's\n")
        write(self.qemu / "hw" / "mem" / "other.c", "of build/qemu\n")
        self.git("add", "hw")
        self.git("commit", "--quiet", "-m", "mem: third\n\nWhy.")
        self.fail_with(["hw/mem/other.c"], EXPORT)
        self.assertEqual((self.root / "hw" / "mem" / "other.c").read_text(),
                         "the repository's\n")

    def test_dropped_commit_drops_its_patch(self) -> None:
        self.git("reset", "--quiet", "--hard", "HEAD^")
        self.succeed(EXPORT)
        self.assertFalse(
            (self.root / "patches" / "0002-mem-second.patch").exists())
        self.succeed("./configure")
        self.assertNotIn("second\n",
                         (self.qemu / "hw" / "mem" / "core.c").read_text())


class Format(SandboxTest):
    def setUp(self) -> None:
        super().setUp()
        self.configure()

    def test_mails_give_the_tree(self) -> None:
        (self.root / "hw" / "mem" / "new.c").chmod(0o755)
        self.succeed("make", "series")
        mails = sorted((self.build / "series").iterdir())
        self.assertEqual([file.name for file in mails],
                         ["0000-cover-letter.patch", "0001-mem-first.patch",
                          "0002-mem-second.patch"])
        letter = mails[0].read_text()
        self.assertIn("[PATCH 0/2] mem: a cover letter\n", letter)
        self.assertIn("\nWhat it is about.\n", letter)
        self.assertNotIn("***", letter)
        first = mails[1].read_text()
        self.assertIn("new file mode 100755", first)
        self.assertIn("+new file\n", first)
        self.assertNotIn("Adds:", first)
        # As its receiver would use it, with nothing of ours at hand.
        tree = self.scratch / "receiver"
        self.source.rename(tree)
        env = {"GIT_CONFIG_GLOBAL": "/dev/null"} | AUTHOR
        for command in (["init", "-q"], ["add", "-Af"],
                        ["commit", "-qm", "qemu"],
                        ["am", "-q", str(mails[1]), str(mails[2])]):
            self.succeed("git", "-C", str(tree), *command, env=env)
        self.assertEqual((tree / "hw/mem/new.c").read_text(), "new file\n")
        self.assertFalse((tree / "hw/mem/new.c").is_symlink())
        self.assertEqual((tree / "hw/mem/core.c").read_text(),
                         (self.qemu / "hw/mem/core.c").read_text())

    def test_is_the_same_each_time(self) -> None:
        def mails() -> dict[Path, bytes]:
            return {file: file.read_bytes()
                    for file in (self.build / "series").iterdir()}
        self.succeed(FORMAT)
        first = mails()
        self.succeed(FORMAT)
        self.assertEqual(mails(), first)

    def test_style(self) -> None:
        write(self.root / "hw" / "mem" / "new.c", "a\ttab\n")
        self.fail_with(["0001-mem-first.patch", "ERROR: tab in 1 lines"],
                       FORMAT)

    def test_file_that_no_patch_adds(self) -> None:
        write(self.root / "include" / "hw" / "lost.h", "lost\n")
        self.fail_with(["include/hw/lost.h", "Adds: FILE"], FORMAT)

    def test_file_that_two_patches_add(self) -> None:
        write(self.root / "patches" / "0002-mem-second.patch",
              mail("mem: second", diff_of_line(30, "second"),
                   ("hw/mem/new.c",)))
        self.fail_with(["0002-mem-second.patch", "hw/mem/new.c"],
                       "./configure")

    def test_no_cover_letter(self) -> None:
        (self.root / "patches" / "cover-letter.txt").unlink()
        self.fail_with(["patches/cover-letter.txt", "subject"], FORMAT)

    def test_edits(self) -> None:
        self.edit_core(20, "edited")
        self.fail_with(["hw/mem/core.c"], FORMAT)

    def test_each_patch_is_built(self) -> None:
        out = self.succeed("make", "series-build")
        self.assertIn("building with 0001-mem-first.patch", out)
        self.assertIn("building with 0002-mem-second.patch", out)
        leftovers = list(self.build.glob("series-*"))
        self.assertEqual(leftovers, [])

    def test_patch_that_does_not_build(self) -> None:
        self.git("rm", "--quiet", "hw/mem/core.c")
        self.git("commit", "--quiet", "-m", "mem: third\n\nWhy.")
        self.succeed(EXPORT)
        self.fail_with(["does not build with 0003-mem-third.patch"],
                       "make", "series-build")

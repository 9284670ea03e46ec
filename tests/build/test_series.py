# Copyright: the authors of this file, see git log
#
# This work is licensed under the terms of the GNU GPL, version 2 or later.
# See the COPYING file in the top-level directory.
"""The series there and back: export and format."""

from __future__ import annotations

from pathlib import Path

from sandbox import (AUTHOR, FIRST, SECOND, SandboxTest, diff_of_line, mail,
                     write)

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
        text = "Why: because é."
        signed = "Fixes: it\nSigned-off-by: Ann <ann@x.org>"
        subject = ("mem: third, whose subject is so long that a mail has to "
                   "fold it into two lines")
        self.edit_core(20, "third")
        self.commit(subject, text, f"core\n{signed}")
        tree = self.git("rev-parse", "HEAD^{tree}")
        self.succeed(EXPORT)
        self.assertEqual(
            (self.root / "patches" / "series").read_text().splitlines(),
            ["# The order counts", FIRST, SECOND,
             "core/0003-mem-third-whose-subject-is-so-long-that-a-mail-has-t"
             ".patch"])
        self.succeed("make", "distclean")
        self.configure()
        self.assertEqual(self.git("rev-parse", "HEAD^{tree}"), tree)
        self.assertEqual(
            self.git("show", "-s", "--format=%B").strip(),
            f"{subject}\n\n{text}\n\nFixes: it\nTopic: core\n"
            "Signed-off-by: Ann <ann@x.org>")

    def test_new_file_moves_to_the_repository(self) -> None:
        added = self.qemu / "tests" / "unit" / "test-new.c"
        write(added, "new test\n")
        added.chmod(0o755)
        self.git("add", "tests")
        self.edit_core(20, "third")
        self.commit("mem: third")
        self.succeed(EXPORT)
        moved = self.root / "tests" / "unit" / "test-new.c"
        self.assertEqual(moved.read_text(), "new test\n")
        self.assertTrue(moved.stat().st_mode & 0o100)
        self.assertTrue(added.is_symlink())
        self.assertEqual(added.read_text(), "new test\n")
        text = (self.root / "patches/core/0003-mem-third.patch").read_text()
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

    def test_refuses_a_commit_without_a_topic(self) -> None:
        self.edit_core(20, "third")
        self.git("commit", "--quiet", "-am", "mem: third\n\nWhy.")
        before = self.patches()
        self.fail_with(["mem: third", "names no topic", "'Topic: NAME'"],
                       EXPORT)
        self.assertEqual(self.patches(), before)

    def test_refuses_what_is_no_name_of_a_topic(self) -> None:
        self.edit_core(20, "third")
        self.commit("mem: third", topic="../core")
        self.fail_with(["mem: third", "'../core'"], EXPORT)

    def test_refuses_topics_that_interleave(self) -> None:
        for number, topic in ((20, "other"), (25, "core")):
            self.edit_core(number, topic)
            self.commit(f"mem: {topic}", topic=topic)
        self.fail_with(["mem: core is of the topic core, but comes after one "
                        "of the topic other"], EXPORT)

    def test_keeps_a_folder_for_each_topic(self) -> None:
        for number, topic in ((20, "other"), (25, "vhost-user")):
            self.edit_core(number, topic)
            self.commit(f"mem: {topic}", topic=topic)
        self.succeed(EXPORT)
        head = self.git("rev-parse", "HEAD")
        self.assertEqual(
            (self.root / "patches" / "series").read_text().splitlines()[1:],
            [FIRST, SECOND, "other/0001-mem-other.patch",
             "vhost-user/0001-mem-vhost-user.patch"])
        self.assertIn("Why.\n---", (
            self.root / "patches/other/0001-mem-other.patch").read_text())
        self.succeed("./configure")
        self.assertEqual(self.git("rev-parse", "HEAD"), head)
        self.git("reset", "--quiet", "--hard", "HEAD^")
        self.succeed(EXPORT)
        self.assertFalse((self.root / "patches" / "vhost-user").exists())

    def test_graft_gives_what_was_exported(self) -> None:
        self.succeed(EXPORT)
        self.edit_core(20, "third")
        self.git("commit", "--quiet", "-am",
                 "mem: third\n\nTwo\nlines.\n\nTopic: core\n"
                 "Signed-off-by: Ann <ann@x.org>\n"
                 "Reviewed-by: Bob <bob@x.org>\n")
        message = self.git("show", "-s", "--format=%B")
        self.succeed(EXPORT)
        self.assertEqual(self.git("show", "-s", "--format=%B"), message)
        head, before = self.git("rev-parse", "HEAD"), self.patches()
        self.succeed(EXPORT)
        self.assertEqual(self.git("rev-parse", "HEAD"), head)
        self.assertEqual(self.patches(), before)

    def test_refuses_a_message_that_a_mail_would_change(self) -> None:
        self.edit_core(20, "third")
        self.commit("mem: third", "Why:\n\n---\n\nnobody knows.")
        before = self.patches()
        self.fail_with(["mem: third", "does not carry"], EXPORT)
        self.assertEqual(self.patches(), before)

    def test_refuses_edits(self) -> None:
        self.edit_core(20, "edited")
        self.fail_with(["hw/mem/core.c", "not committed"], EXPORT)

    def test_refuses_when_patches_changed(self) -> None:
        write(self.root / "patches" / SECOND,
              mail("mem: second", diff_of_line(30, "second, changed")))
        self.edit_core(20, "mine")
        self.commit("mem: third")
        before = self.patches()
        self.fail_with(["patches/ ", "git stash"], EXPORT)
        self.assertEqual(self.patches(), before)

    def test_refuses_a_commit_of_nothing_but_added_files(self) -> None:
        file = self.qemu / "hw" / "mem" / "new.c"
        file.unlink()
        write(file, "edited\n")
        self.commit("mem: third")
        self.fail_with(["mem: third", "squash"], EXPORT)

    def test_refuses_to_overwrite_a_file(self) -> None:
        write(self.root / "hw" / "mem" / "other.c", "the repository's\n")
        write(self.qemu / "hw" / "mem" / "other.c", "of build/qemu\n")
        self.git("add", "hw")
        self.commit("mem: third")
        self.fail_with(["hw/mem/other.c"], EXPORT)
        self.assertEqual((self.root / "hw" / "mem" / "other.c").read_text(),
                         "the repository's\n")

    def test_dropped_commit_drops_its_patch(self) -> None:
        self.git("reset", "--quiet", "--hard", "HEAD^")
        self.succeed(EXPORT)
        self.assertFalse(
            (self.root / "patches" / SECOND).exists())
        self.succeed("./configure")
        self.assertNotIn("second\n",
                         (self.qemu / "hw" / "mem" / "core.c").read_text())


class Format(SandboxTest):
    def setUp(self) -> None:
        super().setUp()
        self.cover = self.root / "patches" / "core" / "cover-letter.txt"
        self.configure()

    def test_mails_give_the_tree(self) -> None:
        (self.root / "hw" / "mem" / "new.c").chmod(0o755)
        self.succeed("make", "series")
        mails = sorted((self.build / "series" / "core").iterdir())
        self.assertEqual([file.name for file in mails],
                         ["0000-cover-letter.patch", "0001-mem-first.patch",
                          "0002-mem-second.patch"])
        letter = mails[0].read_text()
        self.assertIn("Subject: [PATCH 0/2] mem: core\n", letter)
        self.assertIn("\nWhat core is about.\n\nBased on QEMU 10.0.99.\n",
                      letter)
        self.assertNotIn("***", letter)
        first = mails[1].read_text()
        self.assertIn("new file mode 100755", first)
        self.assertIn("+new file\n", first)
        self.assertNotIn("Adds:", first)
        self.assertNotIn("Topic:", first)
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

    def test_topics_are_mailed_one_by_one(self) -> None:
        for number, topic in ((20, "other"), (25, "vhost-user")):
            self.edit_core(number, topic)
            self.commit(f"mem: {topic}", topic=topic)
            write(self.root / "patches" / topic / "cover-letter.txt",
                  f"mem: letter of {topic}\n\nText of {topic}.\n")
        self.succeed(EXPORT)
        out = self.succeed(FORMAT)
        self.assertIn("build/series/other: 1 patches and a cover letter", out)
        series = self.build / "series"
        self.assertEqual([str(file.relative_to(series))
                          for file in sorted(series.rglob("*.patch"))],
                         ["core/0000-cover-letter.patch", FIRST, SECOND,
                          "other/0000-cover-letter.patch",
                          "other/0001-mem-other.patch",
                          "vhost-user/0000-cover-letter.patch",
                          "vhost-user/0001-mem-vhost-user.patch"])
        letter = (series / "vhost-user/0000-cover-letter.patch").read_text()
        self.assertIn("Subject: [PATCH 0/1] mem: letter of vhost-user\n",
                      letter)
        self.assertIn("Text of vhost-user.\n\nBased on QEMU 10.0.99 and, in "
                      "this order, core, other.\n", letter)
        self.assertIn("1 file changed", letter)

    def fix_twice(self, number: int, other: int) -> None:
        """Two patches of the topic that has to consist of such as stand alone,
        first of all."""
        self.git("reset", "--quiet", "--hard", "debian^{}")
        for line, name in ((number, "one"), (other, "two")):
            self.edit_core(line, name)
            self.commit(f"mem: fix {name}", topic="fixes")
        self.cover = self.root / "patches" / "fixes" / "cover-letter.txt"
        write(self.cover, "mem: fixes\n\nAll alone.\n")
        self.succeed(EXPORT)
        (self.root / "hw" / "mem" / "new.c").unlink()

    def test_fixes_stand_alone(self) -> None:
        self.fix_twice(20, 27)
        self.succeed(FORMAT)

    def test_fixes_that_do_not(self) -> None:
        self.fix_twice(20, 22)
        out = self.fail_with(["fixes/0002-mem-fix-two.patch",
                              "hw/mem/core.c:19", "do not apply alone"],
                             FORMAT)
        self.assertNotIn("0001", out)
        write(self.cover, "mem: fixes\n\nAll alone, but that patch 2\nneeds "
              "patch 1.\n")
        self.succeed(FORMAT)

    def test_stat(self) -> None:
        self.edit_core(20, "two\nlines")
        write(self.qemu / "tests" / "README", "tests\n\nof it\n")
        self.commit("mem: third", topic="other")
        self.assertEqual(self.succeed(FORMAT, "--stat").splitlines(),
                         ["Lines added to QEMU's own files, and without the "
                          "topic fixes",
                          "     4      4  hw/mem/core.c",
                          "     2      2  tests/README",
                          "     6      6  in 2 files"])
        self.edit_core(20, "many\n" * 594)
        self.succeed(FORMAT, "--stat")
        self.commit("mem: fourth", topic="other")
        self.fail_with(["   600    600  in 2 files", "too many lines",
                        "600 to QEMU's own files, where 599 are the most"],
                       FORMAT, "--stat")

    def test_stat_of_fixes(self) -> None:
        """What it takes to mend QEMU's own faults is not limited."""
        self.fix_twice(20, 27)
        self.edit_core(30, "many\n" * 700)
        self.commit("mem: fix three", topic="fixes")
        self.edit_core(10, "hook")
        self.commit("mem: hook", topic="other")
        self.assertEqual(self.succeed(FORMAT, "--stat").splitlines()[-1:],
                         ["   704      1  in 1 files"])

    def test_is_the_same_each_time(self) -> None:
        def mails() -> dict[Path, bytes]:
            return {file: file.read_bytes()
                    for file in (self.build / "series").rglob("*.patch")}
        self.succeed(FORMAT)
        first = mails()
        self.succeed(FORMAT)
        self.assertEqual(mails(), first)

    def test_style(self) -> None:
        write(self.root / "hw" / "mem" / "new.c", "a\ttab\n")
        self.fail_with([FIRST, "ERROR: tab in 1 lines"],
                       FORMAT)

    def test_file_that_no_patch_adds(self) -> None:
        write(self.root / "include" / "hw" / "lost.h", "lost\n")
        self.fail_with(["include/hw/lost.h", "Adds: FILE"], FORMAT)

    def test_file_that_two_patches_add(self) -> None:
        write(self.root / "patches" / SECOND,
              mail("mem: second", diff_of_line(30, "second"),
                   ("hw/mem/new.c",)))
        self.fail_with([SECOND, "hw/mem/new.c"],
                       "./configure")

    def test_no_cover_letter(self) -> None:
        self.cover.unlink()
        self.fail_with(["patches/core/cover-letter.txt is missing"], FORMAT)

    def test_subject_that_says_so(self) -> None:
        write(self.cover, "Subject: mem: core\n\nText.\n")
        self.fail_with(["patches/core/cover-letter.txt begins with "
                        "'Subject:'"], FORMAT)

    def test_edits(self) -> None:
        self.edit_core(20, "edited")
        self.fail_with(["hw/mem/core.c"], FORMAT)

    def test_each_patch_is_built(self) -> None:
        out = self.succeed("make", "series-build")
        self.assertIn(f"building with {FIRST}", out)
        self.assertIn(f"building with {SECOND}", out)
        leftovers = list(self.build.glob("series-*"))
        self.assertEqual(leftovers, [])

    def test_patch_that_does_not_build(self) -> None:
        self.git("rm", "--quiet", "hw/mem/core.c")
        self.commit("mem: third")
        self.succeed(EXPORT)
        self.fail_with(["does not build with core/0003-mem-third.patch"],
                       "make", "series-build")

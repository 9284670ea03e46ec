# Copyright: the authors of this file, see git log
#
# This work is licensed under the terms of the GNU GPL, version 2 or later.
# See the COPYING file in the top-level directory.
"""configure: what it makes, what it keeps, what it refuses and how."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

from sandbox import (FIRST, SECOND, SandboxTest, diff_of_line, mail, tiny_qemu,
                     write)

import needs


def as_nobody(build: Path) -> list[str]:
    """What runs a command without root's rights, in a new build directory."""
    if os.geteuid() != 0:
        return []
    build.mkdir()
    os.chown(build, 65534, 65534)
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


class Configure(SandboxTest):
    def test_makes_a_build_that_builds(self) -> None:
        self.configure()
        core = (self.qemu / "hw" / "mem" / "core.c").read_text()
        self.assertIn("first\n", core)
        self.assertIn("second\n", core)
        link = self.qemu / "hw" / "mem" / "new.c"
        self.assertEqual(os.readlink(link), "../../../../hw/mem/new.c")
        self.assertEqual(link.read_text(), "new file\n")
        self.assertEqual(
            self.git("log", "--format=%an %ad %s", "--date=iso",
                     "debian..grafted").splitlines(),
            ["Ann Author 2020-02-20 20:20:20 +0100 mem: second",
             "Ann Author 2020-02-20 20:20:20 +0100 mem: first"])
        self.assertTrue((self.qemu / "debian/patches/a.patch").is_file())
        self.succeed("ninja", "-C", "build")
        for name in ("qemu-system-x86_64", "qemu-storage-daemon"):
            self.assertEqual((self.build / name).read_text(), "10.0.99\n")

    def test_takes_a_tarball(self) -> None:
        tarball = self.scratch / "qemu.tar.xz"
        with tarfile.open(tarball, "w:xz") as archive:
            archive.add(self.source, "qemu-10.0.99")
        self.succeed("./configure", f"--qemu-src={tarball}")
        self.assertTrue((self.qemu / "hw" / "mem" / "new.c").is_symlink())

    def test_works_from_another_directory(self) -> None:
        self.succeed("sh", "-c", f"cd / && '{self.root}/configure' "
                                 f"--qemu-src='{self.source}'")
        self.assertTrue((self.build / "build.ninja").is_file())

    def test_unknown_option(self) -> None:
        self.fail_with(["unknown option '--everything'", "--help"],
                       "./configure", "--everything")
        self.assertFalse(self.build.exists())

    def test_options_of_qemus_own_configure(self) -> None:
        options = ["--enable-gnutls", "--disable-tcg", "--without-default-x",
                   "--with-suffix=q u"]
        self.configure(*options)
        arguments = self.build / "qemu-configure-arguments"
        first = arguments.read_text().splitlines()
        self.assertEqual(first[-len(options):], options)
        self.assertIn("--enable-tcg", first)
        state = self.build / "qemu-build" / "configured"
        before = state.stat().st_mtime_ns
        self.succeed("./configure", "--again")
        self.assertEqual(arguments.read_text().splitlines(), first)
        self.assertEqual(state.stat().st_mtime_ns, before)
        self.configure()
        self.assertNotIn("--disable-tcg", arguments.read_text())

    def test_help_names_each_option(self) -> None:
        text = self.succeed("./configure", "--help")
        for option in ("--qemu-src", "--target-list", "--prefix", "--cc",
                       "--enable-debug", "--enable-sanitizers",
                       "--enable-fuzzing", "--build-dir", "--install-deps",
                       "--again", "--enable-X", "--disable-X", "--with-X",
                       "--without-X"):
            self.assertIn(option, text)

    def test_options_reach_qemu_and_are_remembered(self) -> None:
        self.configure("--prefix=/opt/q", "--enable-debug", "--cc=gcc")
        arguments = self.build / "qemu-configure-arguments"
        first = arguments.read_text().splitlines()
        for option in ("--prefix=/opt/q", "--enable-debug", "--cc=gcc",
                       "--target-list=x86_64-softmmu"):
            self.assertIn(option, first)
        self.succeed("./configure", "--again")
        self.assertEqual(arguments.read_text().splitlines(), first)
        self.configure()
        self.assertNotIn("--enable-debug",
                         arguments.read_text().splitlines())

    def test_source_that_is_not_there(self) -> None:
        self.fail_with(["/nowhere does not exist"],
                       "./configure", "--qemu-src=/nowhere")
        self.assert_not_half_made()

    def test_source_that_is_not_qemu(self) -> None:
        write(self.scratch / "other" / "README", "something else\n")
        self.fail_with(["does not hold QEMU's source"], "./configure",
                       f"--qemu-src={self.scratch}/other")
        self.assert_not_half_made()

    def test_source_of_another_version(self) -> None:
        tiny_qemu(self.scratch / "new", "10.1.0")
        self.fail_with(["QEMU 10.1.0", "--qemu-src="], "./configure",
                       f"--qemu-src={self.scratch}/new")
        self.assert_not_half_made()

    def test_missing_package_without_root(self) -> None:
        shutil.rmtree(self.build, ignore_errors=True)
        self.fail_with(
            ["are missing", "--install-deps",
             "apt-get install libglib2.0-dev libpixman-1-dev zlib1g-dev\n"],
            *as_nobody(self.build), "./configure", f"--qemu-src={self.source}",
            env={"PKG_CONFIG_LIBDIR": "/nowhere", "PKG_CONFIG_PATH": ""})
        self.assert_not_half_made()

    def test_missing_modules_of_python(self) -> None:
        if os.geteuid() != 0:
            needs.lack(needs.ROOT, "only root can hide what is installed")
        hidden = "/usr/lib/python3/dist-packages/sphinx_rtd_theme"
        mount = f"mount -t tmpfs none {hidden}"
        unshare = ["unshare", "--mount", "sh", "-c"]
        if self.run_here(*unshare, mount).returncode:
            needs.lack(needs.ROOT, "no file system can be mounted here")
        nobody = as_nobody(self.build)
        self.fail_with(
            ["are missing", "apt-get install python3-sphinx-rtd-theme\n"],
            *unshare, f'{mount} && exec "$@"', "sh", *nobody,
            "./configure", f"--qemu-src={self.source}")
        self.assert_not_half_made()

    def test_too_little_disk(self) -> None:
        self.build.mkdir()
        unshare = ["unshare", "--mount"] if os.geteuid() == 0 else \
            ["unshare", "--map-root-user", "--mount"]
        mount = "mount -t tmpfs -o size=20m none build"
        if self.run_here(*unshare, "sh", "-c", mount).returncode:
            needs.lack(needs.ROOT, "no file system can be mounted here")
        self.fail_with(
            ["too little disk", "20 MiB free", "Make room"], *unshare, "sh",
            "-c", f"{mount} && ./configure --qemu-src={self.source}")
        self.configure()

    def test_hunk_that_does_not_apply(self) -> None:
        good = (self.root / "patches" / SECOND).read_text()
        write(self.root / "patches" / SECOND,
              good.replace(" line 28\n", " line twenty-eight\n"))
        self.fail_with([f"patches/{SECOND}", "hw/mem/core.c",
                        "10.0.99", "--qemu-src"],
                       "./configure", f"--qemu-src={self.source}")
        self.assert_not_half_made()
        write(self.root / "patches" / SECOND, good)
        self.configure()

    def test_hunk_at_an_offset_applies(self) -> None:
        self.assertNotIn("offset", self.configure())
        core = self.source / "hw" / "mem" / "core.c"
        write(core, "more\n" * 7 + core.read_text())
        self.assertIn(f"patches/{FIRST} fits at an offset of lines: "
                      "hw/mem/core.c +7\n", self.configure())
        self.assertIn("second\n",
                      (self.qemu / "hw" / "mem" / "core.c").read_text())

    def test_hunk_does_not_apply_with_fuzz(self) -> None:
        core = self.source / "hw" / "mem" / "core.c"
        # The outermost line of context, which patch would do without
        write(core, core.read_text().replace("line 27\n", "line 2.7\n"))
        self.fail_with([f"patches/{SECOND}", "hw/mem/core.c"],
                       "./configure", f"--qemu-src={self.source}")

    def test_patch_that_is_in_no_folder(self) -> None:
        write(self.root / "patches" / "series", "0001-mem-first.patch\n")
        self.fail_with(["names 0001-mem-first.patch",
                        "TOPIC/NNNN-NAME.patch"],
                       "./configure", f"--qemu-src={self.source}")

    def test_topics_that_interleave(self) -> None:
        text = mail("mem: more", diff_of_line(20, "more"))
        self.write_series({FIRST: "", "other/0001.patch": text, SECOND: ""})
        self.fail_with([f"patches/{SECOND} is of the topic core",
                        "keep all of a topic together"],
                       "./configure", f"--qemu-src={self.source}")

    def test_says_what_it_was_tested_with(self) -> None:
        tested = self.root / "patches" / "tested-with"
        write(tested, "1:10.0.99+ds-1+deb13u1\n")
        self.assertNotIn("tested with", self.configure())
        write(tested, "1:10.0.9+ds-1+deb13u1\n")
        self.assertIn("last tested with another version, "
                      "1:10.0.9+ds-1+deb13u1\n", self.configure())

    def test_patch_names_a_missing_file(self) -> None:
        (self.root / "hw" / "mem" / "new.c").unlink()
        self.fail_with([FIRST, "hw/mem/new.c"],
                       "./configure", f"--qemu-src={self.source}")
        self.assert_not_half_made()

    def test_patch_with_a_new_file(self) -> None:
        write(self.root / "patches" / SECOND,
              mail("mem: second", "diff --git a/x.c b/x.c\n"
                   "new file mode 100644\n--- /dev/null\n+++ b/x.c\n"
                   "@@ -0,0 +1 @@\n+x\n"))
        self.fail_with([SECOND, "Adds: x.c"],
                       "./configure", f"--qemu-src={self.source}")

    def test_leftovers_of_an_interrupted_run(self) -> None:
        write(self.build / "qemu.tmp" / "VERSION", "half")
        write(self.build / "qemu-build" / "build.ninja", "half")
        self.configure()
        self.succeed("ninja", "-C", "build")

    def test_failure_of_qemus_configure(self) -> None:
        write(self.source / "configure",
              "#!/bin/sh\necho no good compiler\nexit 1\n")
        self.fail_with(["no good compiler"], "./configure",
                       f"--qemu-src={self.source}")
        tiny_qemu(self.scratch / "again")
        shutil.copy(self.scratch / "again" / "configure",
                    self.source / "configure")
        self.configure()
        self.succeed("ninja", "-C", "build")

    def test_moved_repository(self) -> None:
        self.configure()
        self.root = self.root.rename(self.scratch / "elsewhere")
        self.succeed("./configure")
        self.succeed("ninja", "-C", "build")
        self.assertEqual(
            os.readlink(self.root / "build" / "qemu-system-x86_64"),
            "qemu-build/qemu-system-x86_64")


class AnotherBuild(SandboxTest):
    """A build beside build/, of the same source."""

    def options(self, build: Path) -> list[str]:
        return (build / "qemu-configure-arguments").read_text().splitlines()

    def test_shares_the_source_and_nothing_else(self) -> None:
        self.configure()
        other = self.root / "build-other"
        self.succeed("./configure", "--build-dir=build-other",
                     "--enable-sanitizers")
        self.assertEqual((other / "qemu").resolve(), self.qemu)
        for option in ("--enable-asan", "--enable-ubsan"):
            self.assertIn(option, self.options(other))
            self.assertNotIn(option, self.options(self.build))
        write(self.qemu / "VERSION", "10.0.1234\n")
        self.succeed("ninja", "-C", "build-other")
        self.assertEqual((other / "qemu-system-x86_64").read_text(),
                         "10.0.1234\n")
        self.assertFalse((self.build / "qemu-system-x86_64").exists())

    def test_gets_the_source_if_it_is_the_first(self) -> None:
        self.configure("--build-dir=build-other")
        self.succeed("ninja", "-C", "build-other")
        self.assertFalse((self.build / "build.ninja").exists())
        self.configure()
        self.succeed("ninja", "-C", "build")

    def test_is_removed_with_build(self) -> None:
        self.configure()
        self.succeed("./configure", "--build-dir=build-sanitizers")
        self.succeed("make", "distclean")
        self.assertFalse((self.root / "build-sanitizers").exists())

    def test_gcc_is_not_taken_to_lack_a_sanitizer(self) -> None:
        self.configure("--cc=gcc", "--enable-sanitizers")
        self.assertIn("--extra-cflags=-Wno-maybe-uninitialized",
                      self.options(self.build))

    def test_fuzzing_names_what_it_needs(self) -> None:
        self.fail_with(
            ["are missing", " clang ", " libclang-rt-dev"],
            *as_nobody(self.build), "./configure", f"--qemu-src={self.source}",
            "--enable-fuzzing", "--cc=clang-of-nobody")
        self.assert_not_half_made()


class SecondRun(SandboxTest):
    """build/qemu holds work, which a run of configure may not lose."""

    def setUp(self) -> None:
        super().setUp()
        self.configure()

    def change_patches(self) -> None:
        self.write_series({
            FIRST: mail("mem: first", diff_of_line(10, "first, changed"),
                        ("hw/mem/new.c",)),
            SECOND: mail("mem: second", diff_of_line(30, "second"))})

    def test_changes_nothing(self) -> None:
        def state() -> dict[str, int]:
            return {str(file): file.stat().st_mtime_ns for file in
                    [*self.qemu.glob("[!.]*/**/*"),
                     self.build / "qemu-build" / "build.ninja"]}
        before = state()
        self.succeed("./configure")
        self.assertEqual(state(), before)

    def test_keeps_edits_and_commits(self) -> None:
        self.edit_core(20, "committed")
        self.commit("mine")
        self.edit_core(21, "edited")
        head = self.git("rev-parse", "HEAD")
        self.succeed("./configure")
        self.assertEqual(self.git("rev-parse", "HEAD"), head)
        self.assertIn("edited\n",
                      (self.qemu / "hw" / "mem" / "core.c").read_text())

    def test_grafts_changed_patches_and_touches_no_other_file(self) -> None:
        version = self.qemu / "VERSION"
        before = version.stat()
        self.change_patches()
        self.succeed("./configure")
        self.assertIn("first, changed\n",
                      (self.qemu / "hw" / "mem" / "core.c").read_text())
        self.assertEqual(version.stat().st_mtime_ns, before.st_mtime_ns)
        self.assertEqual(version.stat().st_ino, before.st_ino)

    def test_build_warns_of_changed_patches(self) -> None:
        warning = "patches/ has changed since ./configure"
        self.assertNotIn(warning, self.succeed("ninja", "-C", "build"))
        self.change_patches()
        self.assertIn(warning, self.succeed("ninja", "-C", "build"))
        self.assertNotIn(warning, self.succeed("make"))

    def test_refuses_to_overwrite_edits(self) -> None:
        self.edit_core(20, "edited")
        self.change_patches()
        self.fail_with(["hw/mem/core.c", "commit", "scripts/series/export"],
                       "./configure")
        self.assertIn("edited\n",
                      (self.qemu / "hw" / "mem" / "core.c").read_text())

    def test_refuses_to_overwrite_commits(self) -> None:
        self.edit_core(20, "committed")
        self.commit("my work")
        self.change_patches()
        self.fail_with(["my work", "scripts/series/export"], "./configure")
        self.assertIn("committed\n",
                      (self.qemu / "hw" / "mem" / "core.c").read_text())

    def test_refuses_another_source_over_edits(self) -> None:
        self.edit_core(20, "edited")
        other = tiny_qemu(self.scratch / "other", "10.0.100")
        self.fail_with(["hw/mem/core.c", "scripts/series/export"],
                       "./configure", f"--qemu-src={other}")
        self.git("checkout", ".")
        self.succeed("./configure", f"--qemu-src={other}")
        self.assertEqual((self.qemu / "VERSION").read_text(), "10.0.100\n")

    def test_misfit_leaves_all_as_it_was(self) -> None:
        head = self.git("rev-parse", "HEAD")
        write(self.root / "patches" / SECOND,
              mail("mem: second", diff_of_line(30, "x").replace(
                  "line 29", "line 92")))
        self.fail_with([SECOND, "hw/mem/core.c"],
                       "./configure")
        self.assertEqual(self.git("rev-parse", "HEAD"), head)
        self.assertEqual(self.git("status", "--porcelain"), "")

    def test_distclean_keeps_work(self) -> None:
        self.edit_core(20, "edited")
        self.fail_with(["scripts/series/export"], "make", "distclean")
        self.assertTrue(self.qemu.exists())
        self.git("checkout", ".")
        self.succeed("make", "distclean")
        self.assertFalse(self.build.exists())

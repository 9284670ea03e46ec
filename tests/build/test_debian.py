# Copyright: the authors of this file, see git log
#
# This work is licensed under the terms of the GNU GPL, version 2 or later.
# See the COPYING file in the top-level directory.
"""What is had from Debian, and how: through apt, from an archive of our own."""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from sandbox import REPOSITORY, SandboxTest, tiny_qemu, write

sys.path.insert(0, str(REPOSITORY / "scripts"))

# pylint: disable=wrong-import-position
from debian_sources import running_release  # noqa: E402

# Nobody listens there.
UNREACHABLE = "http://127.0.0.1:9/debian"
RUNNING = running_release()


class DebianTest(SandboxTest):
    """An archive, and an apt that is set up for what a test says."""

    def setUp(self) -> None:
        super().setUp()
        self.archive = self.scratch / "archive"
        self.archive.mkdir()
        self.parts = self.scratch / "parts"
        self.parts.mkdir()
        self.env = {"APT_CONFIG": str(self.scratch / "apt.conf")}
        self.set_up_apt(f"deb [trusted=yes] file:{self.archive} {RUNNING} "
                        "main\n")

    def set_up_apt(self, entries: str) -> None:
        write(self.scratch / "sources.list", entries)
        write(self.scratch / "apt.conf",
              f'Dir::Etc::sourcelist "{self.scratch}/sources.list";\n'
              f'Dir::Etc::sourceparts "{self.parts}";\n'
              # A release that is asked for is to be among the private ones.
              'APT::Default-Release "nowhere";\n'
              'Acquire::Retries "0";\n')

    def publish(self, suite: str, index: str, *scan: str) -> None:
        """Write an index, as a command prints it."""
        directory = self.archive / "dists" / suite
        file = directory / "main" / index
        text = subprocess.run(scan, cwd=self.archive, check=True,
                              capture_output=True).stdout
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text)
        with gzip.open(f"{file}.gz", "wb") as packed:
            packed.write(text)
        sums = "".join(
            f" {hashlib.sha256(path.read_bytes()).hexdigest()} "
            f"{path.stat().st_size} {path.relative_to(directory)}\n"
            for path in sorted((directory / "main").rglob("*"))
            if path.is_file())
        write(directory / "Release",
              f"Origin: Debian\nSuite: {suite}\nCodename: {suite}\n"
              f"Components: main\nArchitectures: amd64 all\nSHA256:\n{sums}")

    def source_package(self, suite: str, version: str) -> None:
        """Have a suite offer the tiny QEMU as version 1:UPSTREAM-REVISION."""
        upstream = version.rpartition("-")[0]
        work = self.scratch / "package"
        source = tiny_qemu(work / f"qemu-{upstream}",
                           upstream.partition("+")[0])
        shutil.rmtree(source / "debian")
        orig = work / f"qemu_{upstream}.orig.tar.xz"
        with tarfile.open(orig, "w:xz") as tarball:
            tarball.add(source, source.name)
        write(source / "debian" / "source" / "format", "3.0 (quilt)\n")
        write(source / "debian" / "control",
              "Source: qemu\nMaintainer: Ann Author <ann@x.org>\n\n"
              "Package: qemu\nArchitecture: all\nDescription: tiny\n")
        write(source / "debian" / "changelog",
              f"qemu (1:{version}) stable; urgency=low\n\n  * Tiny.\n\n"
              " -- Ann Author <ann@x.org>  Thu, 20 Feb 2020 20:20:20 +0100\n")
        subprocess.run(["dpkg-source", "-b", source.name], cwd=work,
                       check=True, capture_output=True)
        shutil.rmtree(source)
        pool = f"pool/{suite}"
        (self.archive / pool).mkdir(parents=True, exist_ok=True)
        for file in work.glob("qemu_*"):
            file.rename(self.archive / pool / file.name)
        self.publish(suite, "source/Sources", "dpkg-scansources", pool)

    def package(self, suite: str, name: str, version: str,
                files: dict[str, bytes], depends: str = "") -> None:
        """Have a suite offer a package with some files, all executable."""
        tree = self.scratch / "tree"
        write(tree / "DEBIAN" / "control",
              f"Package: {name}\nVersion: {version}\nArchitecture: all\n"
              "Maintainer: Ann Author <ann@x.org>\nDescription: tiny\n"
              + (f"Depends: {depends}\n" if depends else ""))
        for path, content in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content)
            (tree / path).chmod(0o755)
        pool = f"pool/{suite}"
        (self.archive / pool).mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg-deb", "--build", tree, self.archive / pool],
                       check=True, capture_output=True)
        shutil.rmtree(tree)
        self.publish(suite, "binary-amd64/Packages", "dpkg-scanpackages",
                     "--multiversion", pool)


class Source(DebianTest):
    """The source package that the series is for."""

    def test_newest_of_debian_13(self) -> None:
        for suite, version in (("trixie", "10.0.2+ds-2+deb13u1"),
                               ("trixie", "10.0.13+ds-0+deb13u1"),
                               ("trixie", "10.0.9+ds-0+deb13u1"),
                               ("trixie", "10.1.0+ds-1"),
                               ("bookworm", "10.0.99+ds-1"),
                               ("trixie-backports", "10.0.98+ds-1")):
            self.source_package(suite, version)
        write(self.root / "patches" / "tested-with", "1:10.0.2+ds-2\n")
        out = self.succeed("./configure", env=self.env)
        self.assertIn("QEMU 10.0.13 (Debian qemu 1:10.0.13+ds-0+deb13u1)",
                      out)
        self.assertIn("last tested with another version, 1:10.0.2+ds-2", out)
        self.assertTrue((self.qemu / "hw" / "mem" / "new.c").is_symlink())

    def test_updates_and_security(self) -> None:
        self.source_package("trixie", "10.0.2+ds-2")
        self.source_package("trixie-security", "10.0.2+ds-2+deb13u1")
        self.set_up_apt(
            f"deb [trusted=yes] file:{self.archive} {RUNNING} main\n"
            f"deb [trusted=yes] file:{self.archive} {RUNNING}-security main")
        self.assertIn("1:10.0.2+ds-2+deb13u1)",
                      self.succeed("./configure", env=self.env))

    def test_takes_the_place_of_an_older_release(self) -> None:
        unpack = self.root / "scripts" / "series" / "unpack"
        text = unpack.read_text()
        write(unpack, text.replace("10.0.*)", "*)"))
        write(self.source / "VERSION", "7.2.22\n")
        self.configure()
        write(unpack, text)
        self.source_package("trixie", "10.0.13+ds-1")
        self.edit_core(20, "edited")
        self.fail_with(["hw/mem/core.c", "not committed"], "./configure",
                       env=self.env)
        self.git("checkout", ".")
        self.succeed("./configure", env=self.env)
        self.assertEqual((self.qemu / "VERSION").read_text(), "10.0.13\n")

    def test_no_network(self) -> None:
        self.set_up_apt(f"deb {UNREACHABLE} {RUNNING} main\n")
        self.fail_with(["cannot get the lists", "127.0.0.1",
                        "Check the network", "--qemu-src"],
                       "./configure", env=self.env)
        self.assert_not_half_made()
        self.configure()

    def test_not_on_offer(self) -> None:
        self.source_package("trixie", "10.1.0+ds-1")
        self.fail_with(["apt offers no source of qemu 1:10.0.*+ds-*",
                        "--qemu-src"], "./configure", env=self.env)
        self.assert_not_half_made()

    def test_not_signed(self) -> None:
        self.source_package("trixie", "10.0.13+ds-1")
        self.set_up_apt(f"deb file:{self.archive} {RUNNING} main\n")
        self.fail_with(["is not signed"], "./configure", env=self.env)
        self.assert_not_half_made()

    def test_not_what_was_signed(self) -> None:
        self.source_package("trixie", "10.0.13+ds-1")
        orig = "qemu_10.0.13+ds.orig.tar.xz"
        file = self.archive / "pool" / "trixie" / orig
        good = file.read_bytes()
        file.write_bytes(good[:-1] + b"!")
        self.fail_with(["Hash Sum mismatch"], "./configure", env=self.env)
        self.assert_not_half_made()
        # Nor is it taken from there later.
        file.write_bytes(good)
        write(self.build / "dl" / orig, "something else")
        self.succeed("./configure", env=self.env)

    def test_entries_are_derived(self) -> None:
        self.set_up_apt(
            "# deb http://commented.example bookworm main\n"
            "deb [arch=amd64 signed-by=/k.gpg] http://a.example/d bookworm "
            "main c # all\n"
            "deb http://a.example/d bookworm-backports main\n"
            "deb-src http://s.example/d/ trixie-security main\n"
            "deb http://others.example/d cloud-sdk-bookworm main\n"
            "deb cdrom:[Debian]/ bookworm main\n")
        write(self.parts / "debian.sources",
              "Types: deb deb-src\nURIs: http://b.example/d\n"
              "# A comment\n"
              "Suites: stable stable-updates nodistro\n"
              "Components: main\nSigned-By:\n"
              " -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n\n"
              "Enabled: no\nTypes: deb\nURIs: http://off.example/d\n"
              "Suites: bookworm\nComponents: main\n")
        code = ("import sys; sys.path.insert(0, 'scripts'); "
                "sys.dont_write_bytecode = True; "
                "from pathlib import Path; import debian_sources as d; "
                "d.write(Path('out'), [*d.all_pockets('trixie'), "
                "'trixie-backports'], 'deb-src')")
        self.succeed("/usr/bin/python3", "-c", code, env=self.env)
        written = "".join(f.read_text() for f in
                          sorted((self.root / "out").iterdir()))
        self.assertEqual(
            re.sub("\n+", "\n", written),
            "deb-src [arch=amd64 signed-by=/k.gpg] http://a.example/d trixie "
            "main c\n"
            "deb-src [arch=amd64 signed-by=/k.gpg] http://a.example/d "
            "trixie-backports main c\n"
            "deb-src http://s.example/d/ trixie-security main\n"
            "Types: deb-src\nUris: http://b.example/d\n"
            "Suites: trixie trixie-backports trixie-updates\n"
            "Components: main\nSigned-By: \n"
            " -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n")


class Meson(DebianTest):
    """A meson for QEMU, if the system's is too old."""

    MODULES = "usr/lib/python3/dist-packages"

    def setUp(self) -> None:
        super().setUp()
        write(self.source / "pythondeps.toml",
              'meson = { accepted = ">=99.5.0", installed = "99.5.0" }\n')

    def offer(self, version: str) -> None:
        self.package(f"{RUNNING}-backports", "meson", version,
                     {f"{self.MODULES}/mesonbuild/__init__.py": b""})

    def test_is_not_had_if_not_needed(self) -> None:
        write(self.source / "pythondeps.toml",
              'meson = { accepted = ">=0.5.0", installed = "99.5.0" }\n')
        self.configure()
        self.assertFalse((self.build / "meson").exists())

    def test_is_unpacked_for_qemu_alone(self) -> None:
        self.offer("99.10.0-1")
        command = ["./configure", f"--qemu-src={self.source}"]
        self.assertIn("Getting meson 99.5.0 or later",
                      self.succeed(*command, env=self.env))
        modules = self.build / "meson" / self.MODULES
        self.assertTrue((modules / "mesonbuild" / "__init__.py").is_file())
        for file in ("python-path",
                     "pyvenv/lib/python3/site-packages/meson.pth"):
            self.assertEqual((self.build / "qemu-build" / file).read_text(),
                             f"{modules}\n")
        shutil.rmtree(self.archive)
        self.assertNotIn("Getting", self.succeed(*command, env=self.env))

    def test_too_old_in_backports(self) -> None:
        self.offer("99.4.9-1")
        self.fail_with([f"{RUNNING}-backports has no meson 99.5.0 or later"],
                       "./configure", f"--qemu-src={self.source}",
                       env=self.env)
        self.assertFalse((self.build / "meson").exists())


class Programs(DebianTest):
    """Programs that are unpacked and run where they lie."""

    LIBRARIES = "usr/lib/x86_64-linux-gnu"

    def get(self, suite: str) -> str:
        """Get a program of a suite, return what its wrapper runs it with."""
        code = ("import sys; sys.path.insert(0, 'scripts'); "
                "sys.dont_write_bytecode = True; import debian_program as d; "
                f"sys.exit(d.main(d.DebianProgram('true', 'toy', '7.2', "
                f"'{suite}'), 'Toy', ['toy']))")
        self.succeed("/usr/bin/python3", "-c", code, env=self.env)
        self.assertIn("coreutils", self.succeed("toy/true", "--version"))
        return (self.root / "toy" / "true").read_text()

    def offer(self, suite: str) -> None:
        self.package(suite, "libtoy", "1-1", {
            f"{self.LIBRARIES}/{path.name}": path.read_bytes()
            for path in (Path("/lib64/ld-linux-x86-64.so.2"),
                         Path(f"/{self.LIBRARIES}/libc.so.6"))})
        for version in ("7.1-9", "7.2.1-1", "8.0-1"):
            self.package(suite, "toy", version,
                         {"usr/bin/true": Path("/usr/bin/true").read_bytes()},
                         "libtoy, dpkg")

    def test_of_another_release_bring_all_along(self) -> None:
        suite = "trixie" if RUNNING == "bookworm" else "bookworm"
        self.offer(suite)
        self.assertIn(f"root/{self.LIBRARIES}/ld-linux-x86-64.so.2 "
                      "--library-path ", self.get(suite))

    def test_of_backports_run_with_what_is_there(self) -> None:
        suite = f"{RUNNING}-backports"
        self.offer(suite)
        wrapper = self.get(suite)
        self.assertIn("export LD_LIBRARY_PATH=", wrapper)
        self.assertNotIn("ld-linux", wrapper)

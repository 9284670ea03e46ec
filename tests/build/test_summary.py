# Copyright: the authors of this file, see git log
#
# This work is licensed under the terms of the GNU GPL, version 2 or later.
# See the COPYING file in the top-level directory.
"""make check and its last line."""

from __future__ import annotations

import json

from sandbox import FIRST, SandboxTest, diff_of_line, mail, write


class Summary(SandboxTest):
    def summary(self, *programs: dict[str, object]) -> tuple[int, list[str]]:
        write(self.build / "meson-logs" / "testlog.json",
              "".join(json.dumps(program) + "\n" for program in programs))
        done = self.run_here("scripts/test-summary", "build")
        return done.returncode, done.stdout.splitlines()

    @staticmethod
    def program(stdout: str, result: str = "OK", code: int = 0
                ) -> dict[str, object]:
        return {"name": "prog", "stdout": stdout, "result": result,
                "returncode": code}

    def test_counts(self) -> None:
        status, lines = self.summary(
            self.program("1..3\nok 1 /a\n# noise\nok 2 - b # SKIP no KVM\n"
                         "ok 3 /c\n"))
        self.assertEqual(status, 0)
        self.assertEqual(lines, ["skipped: prog: b: no KVM",
                                 "2 passed, 0 failed, 1 skipped"])

    def test_notes(self) -> None:
        noted = self.program("# note: of the machine\nok 1 /a\n1..1\n")
        _, lines = self.summary(noted, noted)
        self.assertEqual(lines, ["note: of the machine",
                                 "2 passed, 0 failed, 0 skipped"])

    def test_plan_at_the_end(self) -> None:
        _, lines = self.summary(self.program("ok 1 /a\n1..1\n"))
        self.assertEqual(lines[-1], "1 passed, 0 failed, 0 skipped")

    def test_failure(self) -> None:
        status, lines = self.summary(
            self.program("1..2\nnot ok 1 /a\nok 2 /b\n", "FAIL", 1))
        self.assertEqual(status, 1)
        self.assertEqual(lines, ["FAILED: prog: /a",
                                 "1 passed, 1 failed, 0 skipped"])

    def test_crash(self) -> None:
        status, lines = self.summary(
            self.program("1..3\nok 1 /a\n", "ERROR", -11))
        self.assertEqual(status, 1)
        self.assertEqual(lines[0], "FAILED: prog: 1 of 3 tests ran "
                                   "(killed by signal 11)")
        self.assertEqual(lines[-1], "1 passed, 1 failed, 0 skipped")

    def test_crash_before_the_plan(self) -> None:
        status, lines = self.summary(self.program("", "ERROR", 127))
        self.assertEqual(status, 1)
        self.assertEqual(lines[-1], "0 passed, 1 failed, 0 skipped")

    def test_failing_exit_status_after_good_results(self) -> None:
        status, lines = self.summary(
            self.program("1..1\nok 1 /a\n", "ERROR", 1))
        self.assertEqual(status, 1)
        self.assertEqual(lines[-1], "1 passed, 1 failed, 0 skipped")

    def test_timeout(self) -> None:
        status, lines = self.summary(
            self.program("1..2\nok 1 /a\n", "TIMEOUT", -15))
        self.assertEqual(status, 1)
        self.assertEqual(lines, ["FAILED: prog: timed out after 1 tests",
                                 "1 passed, 1 failed, 0 skipped"])

    def test_all_skipped(self) -> None:
        status, lines = self.summary(self.program("1..0 # SKIP no KVM\n",
                                                  "SKIP"))
        self.assertEqual(status, 1)
        self.assertEqual(lines, ["skipped: prog: no KVM",
                                 "0 passed, 0 failed, 1 skipped"])

    def test_nothing_ran(self) -> None:
        done = self.run_here("scripts/test-summary", "build")
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout.splitlines()[-1],
                         "0 passed, 1 failed, 0 skipped")


class Check(SandboxTest):
    """The whole way, with a unit test that is a shell script."""

    def setUp(self) -> None:
        super().setUp()
        self.test = self.root / "tests" / "unit" / "test-toy.c"
        write(self.test, "#!/bin/sh\necho 1..2\necho ok 1 /toy/a\n"
                         "echo 'ok 2 /toy/b # SKIP of its mood'\n")
        write(self.root / "patches" / FIRST,
              mail("mem: first", diff_of_line(10, "first"),
                   ("hw/mem/new.c", "tests/unit/test-toy.c")))
        self.configure()

    def test_ci_ends_with_the_summary(self) -> None:
        out = self.succeed(".ci/run").splitlines()
        self.assertIn("skipped: test-toy: /toy/b: of its mood", out)
        self.assertEqual(out[-1], "1 passed, 0 failed, 1 skipped")

    def test_ci_fails_with_a_test(self) -> None:
        write(self.test, "#!/bin/sh\necho 1..1\necho not ok 1 /toy/a\n")
        out = self.fail_with(["FAILED: test-toy: /toy/a"], ".ci/run")
        self.assertEqual(out.splitlines()[-1],
                         "0 passed, 1 failed, 0 skipped")

    def test_ci_fails_with_the_build(self) -> None:
        (self.qemu / "VERSION").unlink()
        out = self.fail_with(["no test was run"], ".ci/run")
        self.assertEqual(out.splitlines()[-1],
                         "0 passed, 1 failed, 0 skipped")

    def test_sanitizers_are_told_to_fail_tests(self) -> None:
        write(self.test, "#!/bin/sh\necho 1..1\n"
                         "case $ASAN_OPTIONS,$UBSAN_OPTIONS in\n"
                         "*detect_leaks=1*,*halt_on_error=1*)\n"
                         "    echo ok 1 /toy/with ;;\n"
                         "*) echo ok 1 /toy/without '# SKIP no sanitizer'\n"
                         "esac\n")
        out = self.succeed("make", "check-sanitizers").splitlines()
        self.assertEqual(out[-1], "1 passed, 0 failed, 0 skipped")
        self.fail_with(["skipped: test-toy: /toy/without: no sanitizer",
                        "0 passed, 0 failed, 1 skipped"], "make", "check")

    def test_require_reaches_tests(self) -> None:
        write(self.test, "#!/bin/sh\necho 1..1\n"
                         "echo ok 1 /toy/a \"# SKIP with $REQUIRE.\"\n")
        for require in ("", "net", "kvm,guest,root,net"):
            out = self.run_here("make", "check", f"REQUIRE={require}").stdout
            self.assertIn(f"skipped: test-toy: /toy/a: with {require}.\n",
                          out)
        out = self.fail_with(['no test lacks "kmv"'],
                             "make", "check", "REQUIRE=net,kmv")
        self.assertNotIn("test-toy", out)

    def test_new_test_is_found(self) -> None:
        write(self.root / "tests" / "system" / "run.py",
              "print('1..1\\nok 1 system')\n")
        write(self.root / "tests" / "system" / "test_toy.py", "")
        out = self.succeed("make", "check")
        self.assertEqual(out.splitlines()[-1],
                         "2 passed, 0 failed, 1 skipped")


class Qtests(SandboxTest):
    """Qtests that are shell scripts and tell what they run with."""

    X86 = ["only-test: qemu-system-x86_64",
           "virtio-mem-test: qemu-system-x86_64"]
    AARCH64 = ["virtio-mem-test-aarch64: qemu-system-aarch64"]

    def setUp(self) -> None:
        super().setUp()
        tests = [f"tests/qtest/{name}.c"
                 for name in ("virtio-mem-test", "only-test")]
        for test in tests:
            write(self.root / test,
                  "#!/bin/sh\necho 1..1\n"
                  "echo ok 1 ${QTEST_QEMU_BINARY##*/} '# SKIP as it is'\n")
        write(self.root / "patches" / FIRST,
              mail("mem: first", diff_of_line(10, "first"),
                   ("hw/mem/new.c", *tests)))

    def check(self, target: str) -> list[str]:
        """Programs and emulators of all qtests that ran."""
        out = self.run_here("make", target).stdout
        return sorted(line[len("skipped: "):-len(": as it is")]
                      for line in out.splitlines()
                      if line.startswith("skipped: "))

    def test_one_emulator(self) -> None:
        self.configure()
        self.assertEqual(self.check("check"), self.X86)

    def test_two_emulators(self) -> None:
        self.configure("--target-list=x86_64-softmmu,aarch64-softmmu")
        self.assertEqual(self.check("check"),
                         sorted(self.X86 + self.AARCH64))

    def test_another_emulator(self) -> None:
        self.configure("--target-list=aarch64-softmmu")
        self.assertEqual(self.check("check"), self.AARCH64)
        self.assertFalse((self.build / "qemu-build/tests/qtest/only-test")
                         .exists())

    def test_check_aarch64(self) -> None:
        self.configure()
        self.assertEqual(self.check("check-aarch64"), self.AARCH64)
        self.assertFalse((self.build / "qemu-build/tests").exists())

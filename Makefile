# One line each; the work is done in configure, meson.build and scripts/

FUZZ_SECONDS = 600
STRESS_SEEDS = 20
BENCH =
# What no test may be skipped for the lack of: kvm,guest,root,net
REQUIRE ?=
export REQUIRE

all: build/build.ninja
	ninja -C build

demo: all
	/usr/bin/python3 scripts/demo --build-dir build

docs: build/build.ninja
	scripts/build-docs build

check: build/build.ninja
	@scripts/check build

# Sequences of steps that nobody has taken before
stress: all
	BUILD_DIR=$(CURDIR)/build QEMU_SYSTEM=$(CURDIR)/build/qemu-system-x86_64 \
	PYTHONPATH=$(CURDIR)/build/qemu/python /usr/bin/python3 tests/system/stress.py \
	    --seed $$(od -An -N4 -tu4 /dev/urandom) --seeds $(STRESS_SEEDS) --steps 200

# Other builds of the same source, so that build/ stays as it is
check-aarch64:
	./configure --build-dir=build-aarch64 --target-list=aarch64-softmmu
	@scripts/check build-aarch64 --suite=qtest

check-s390x:
	./configure --build-dir=build-s390x --target-list=s390x-softmmu
	@scripts/check build-s390x --suite=qtest

check-sanitizers:
	./configure --build-dir=build-sanitizers --enable-sanitizers
	@scripts/check build-sanitizers

fuzz-build:
	./configure --build-dir=build-fuzz --enable-sanitizers --enable-fuzzing
	ninja -C build-fuzz/qemu-build qemu-fuzz-x86_64

fuzz: fuzz-build
	scripts/fuzz build-fuzz --seconds=$(FUZZ_SECONDS)

fuzz-merge: fuzz-build
	scripts/fuzz build-fuzz --merge

# Options are in BENCH; scripts/bench --help tells
bench: all
	/usr/bin/python3 scripts/bench $(BENCH)

# Make the page of the manual, its plots and the figures in README.md of the
# results that are kept, or of a new run's
bench-page: all
	/usr/bin/python3 scripts/bench --report docs/benchmarks/results.json --page

series: build/build.ninja
	scripts/series/format

series-build: build/build.ninja
	ninja -C build series-build

install: all
	ninja -C build/qemu-build install

clean:
	test ! -d build/qemu-build || ninja -C build/qemu-build clean

distclean:
	test ! -d build/qemu || scripts/series/graft --check
	rm -rf build build-aarch64 build-s390x build-sanitizers build-fuzz

# The directories of tests change when a test comes or goes.
build/build.ninja: configure meson.build meson_options.txt $(wildcard patches patches/* patches/*/* tests/*)
	./configure --again

.PHONY: all demo docs bench bench-page check stress check-aarch64 check-s390x check-sanitizers fuzz fuzz-build fuzz-merge series series-build install clean distclean

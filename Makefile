# One line each; the work is done in configure, meson.build and scripts/

all: build/build.ninja
	ninja -C build

demo: all
	/usr/bin/python3 scripts/demo --build-dir build

check: build/build.ninja
	@scripts/check build

# Another build of the same source, so that build/ stays as it is
check-aarch64:
	./configure --build-dir=build-aarch64 --target-list=aarch64-softmmu
	@scripts/check build-aarch64 --suite=qtest

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
	rm -rf build build-aarch64

# The directories of tests change when a test comes or goes.
build/build.ninja: configure meson.build meson_options.txt $(wildcard patches/* tests/*)
	./configure --again

.PHONY: all demo check check-aarch64 series series-build install clean distclean

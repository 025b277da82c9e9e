# What each of these does, and what it needs, is said at the top of the script it calls.

.PHONY: demo test test-env soak bench dist

demo:       ## Build, and run the example job on a store in a local directory.
	bash examples/log-count/demo.sh

test:       ## Everything that has to hold before a change lands. Installs what it needs.
	bash tests/run.sh

test-env:   ## Only install what the tests need.
	bash tests/run.sh setup

soak:       ## What takes longer than a test may.
	bash tests/run.sh soak

bench:      ## Ratios beside other mounts and beside the limit of disk and wire.
	bash benches/run.sh

dist:       ## Static programs as .deb, .rpm and tarball, in dist/.
	bash systemd/dist.sh

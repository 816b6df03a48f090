# Every command sets up what it needs first. PYTHON=python3.13 (or a path) uses that interpreter, in an environment of its own.
export PYTHON

.PHONY: help demo test check bench js docs

help:
	@echo "make demo    an agent on a local language model, streamed to a page in your browser; PORT=4600 is another port"
	@echo "make test    all tests: the fast ones, then those that start real servers"
	@echo "make check   style, types, the floors of the house and its public face"
	@echo "make bench   the benchmarks, beside the servers they are compared with (bench/README.md)"
	@echo "make js      the package for JavaScript, built and packed into dist/ (clients/js/README.md)"
	@echo "make docs    docs/clients.md, written from the tests of clients"

demo:
	@scripts/demo

test:
	@scripts/test

check:
	@scripts/check

bench:
	@scripts/bench

js:
	@scripts/js

docs:
	@scripts/docs
